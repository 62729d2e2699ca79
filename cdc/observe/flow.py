"""What flows through: received, projected, applied. Counted in batches, handed over when asked."""

import threading
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, product
from operator import attrgetter
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.registry import Collector

from cdc.assemble import Transaction
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.observe.histogram import SECONDS, Histogram
from cdc.projection.batch import Batch
from cdc.rows import Bulk

KINDS: Final = ("inserted", "updated", "deleted", "truncated")
OPERATIONS: Final = ("upsert", "update", "delete", "truncate", "move", "append")
_TABLE_AND_KIND: Final = attrgetter("relation.name", "__class__")
_CHANGES: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000)


class Queue(Protocol):
    """What waits to be projected."""

    @property
    def queued_bytes(self) -> int: ...


class Flow(Collector):
    """Counts what each thread of the pipeline has done."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue: Queue | None = None
        self.changes = 0
        """How many changes had been received when it was last asked."""
        self._lock = threading.Lock()
        self._unapplied: deque[tuple[Lsn, float]] = deque()
        self._received: Counts[tuple[TableName, type]] = Counts()
        self._operations: Counts[tuple[str, type]] = Counts()
        self._uncommitted: Counts[tuple[str, type]] = Counts()
        registry.register(self)
        self._define_counters(registry)
        self._define_histograms(registry)
        self._define_gauges(registry)

    def _define_counters(self, registry: CollectorRegistry) -> None:
        self._changes_received = Counter(
            "cdc_changes_received",
            "Row changes received from the source.",
            ("table", "kind"),
            registry=registry,
        )
        self._operations_applied = Counter(
            "cdc_operations_applied",
            "Operations of committed batches, before merging.",
            ("projector", "kind"),
            registry=registry,
        )
        self._transactions_applied = Counter(
            "cdc_transactions_applied",
            "Source transactions applied and committed.",
            registry=registry,
        )
        self._batches_applied = Counter(
            "cdc_batches_applied", "Read-database commits.", registry=registry
        )

    def _define_histograms(self, registry: CollectorRegistry) -> None:
        self._commit_to_apply = Histogram(
            "cdc_commit_to_apply_seconds",
            "From a transaction's commit in the write database to its commit in the read database.",
            SECONDS,
        )
        self._project_seconds = Histogram(
            "cdc_project_seconds",
            "Seconds that a projector took in a batch, or a piece of a large transaction, with the "
            "merging of what it returned.",
            SECONDS,
            label="projector",
        )
        self._apply_seconds = Histogram(
            "cdc_apply_seconds",
            "Seconds that writing a batch, or a piece, to the read database took, with its commit "
            "and what was retried.",
            SECONDS,
        )
        self._batch_changes = Histogram(
            "cdc_batch_changes", "Streamed changes in a batch, or a piece, that had some.", _CHANGES
        )
        for one in (
            self._commit_to_apply,
            self._project_seconds,
            self._apply_seconds,
            self._batch_changes,
        ):
            registry.register(one)

    def _define_gauges(self, registry: CollectorRegistry) -> None:
        Gauge(
            "cdc_queue_bytes",
            "Changes that were read and wait to be projected, in bytes.",
            registry=registry,
        ).set_function(lambda: self.queue.queued_bytes if self.queue else 0)
        self.queue_limit = Gauge(
            "cdc_queue_limit_bytes",
            "How many there may be until reading pauses: source.queue_bytes.",
            registry=registry,
        )
        self._last_commit = Gauge(
            "cdc_last_applied_commit_timestamp_seconds",
            "When the last transaction that was applied was committed in the write database, in "
            "Unix time; 0 while none is known.",
            registry=registry,
        )

    def expect(self, tables: Iterable[TableName], projectors: Sequence[str]) -> None:
        """Begin every series of these tables and projectors at zero."""
        for table, kind in product(tables, KINDS):
            self._changes_received.labels(str(table), kind)
        for projector, kind in product(projectors, OPERATIONS):
            self._operations_applied.labels(projector, kind)
        for projector in projectors:
            self._project_seconds.expect(projector)

    def committed(self, at: datetime | None) -> None:
        """Note when the last transaction was committed that the checkpoint found has."""
        if at is not None:
            self._last_commit.set(at.timestamp())

    def forget_unapplied(self) -> None:
        """Forget what was received: the stream begins again at the checkpoint."""
        self._uncommitted.clear()
        with self._lock:
            self._unapplied.clear()

    def oldest_unapplied(self, reached: Lsn) -> float | None:
        """Give when the first transaction that is not applied was committed, in Unix time.

        What lies before `reached` was applied by another daemon, if not by this one.
        """
        with self._lock:
            return next((at for lsn, at in self._unapplied if lsn >= reached), None)

    def received(self, items: Sequence[Transaction | Bulk]) -> None:
        """Count transactions, or pieces of them, and rows set apart."""
        bulks = [item for item in items if isinstance(item, Bulk)]
        transactions = list(chain.from_iterable(map(_transactions, items)))
        changes = chain.from_iterable(transaction.changes for transaction in transactions)
        with self._lock:
            self._unapplied.extend((t.commit_lsn, t.commit_time.timestamp()) for t in transactions)
            self._received.update(map(_TABLE_AND_KIND, changes))
            for bulk in bulks:
                self._received.update(bulk.received())

    def applied(self, batch: Batch, *, seconds: float) -> None:
        """Count a batch that was written; its transactions where it was committed."""
        self._took(batch, seconds)
        self._uncommitted.update(batch.operations)
        if not batch.complete:
            return
        now = time.time()
        times = [t.commit_time.timestamp() for t in batch.transactions if t.ends]
        if times:
            self._commit_to_apply.observe(max(0.0, now - committed) for committed in times)
            self._transactions_applied.inc(len(times))
            self._last_commit.set(times[-1])
        self._batches_applied.inc()
        with self._lock:
            self._operations.update(self._uncommitted)
        self._uncommitted.clear()

    def _took(self, batch: Batch, seconds: float) -> None:
        if batch.empty:  # no more than a position
            return
        self._apply_seconds.observe([seconds])
        if batch.changes:
            self._batch_changes.observe([batch.changes])
        if batch.laps is not None:
            for projector, spent in batch.laps.seconds.items():
                self._project_seconds.observe([spent], projector)

    def reached(self, checkpoint: Lsn) -> None:
        """Note how far the read database is."""
        with self._lock:
            while self._unapplied and self._unapplied[0][0] < checkpoint:
                self._unapplied.popleft()

    def collect(self) -> Iterator[Metric]:
        """Hand what was counted cheaply to the counters; called before they are collected."""
        with self._lock:
            received, self._received = self._received, Counts()
            self.changes += received.total()
            operations, self._operations = self._operations, Counts()
        for (table, kind), count in received.items():
            self._changes_received.labels(str(table), kind.__name__.lower()).inc(count)
        for (projector, operation), count in operations.items():
            self._operations_applied.labels(projector, operation.__name__.lower()).inc(count)
        return iter(())

    def operations(self) -> dict[str, int]:
        """Give how many operations have been applied so far, by projector."""
        deque(self.collect())
        found: Counts[str] = Counts()
        for family in self._operations_applied.collect():
            for sample in family.samples:
                found[sample.labels["projector"]] += int(sample.value)
        return found


def _transactions(item: Transaction | Bulk) -> Sequence[Transaction]:
    return item.transactions if isinstance(item, Bulk) else (item,)

"""Metrics for Prometheus: base units, labels from closed sets, every series there at the start."""

import threading
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import chain, product
from operator import attrgetter
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

from cdc.assemble import Transaction
from cdc.copy_state import Copy, Unit
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.observe.lag import Lag
from cdc.observe.progress import ratios
from cdc.observe.state import State
from cdc.observe.timings import Timings
from cdc.projection.batch import Batch
from cdc.projection.quarantine import NOTHING, Held
from cdc.rows import Bulk
from cdc.verify_state import Verification

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
KINDS: Final = ("inserted", "updated", "deleted", "truncated")
OPERATIONS: Final = ("upsert", "update", "delete", "truncate", "move", "append")
TARGETS: Final = ("source", "read")
_TABLE_AND_KIND: Final = attrgetter("relation.name", "__class__")
REASONS: Final = ("unavailable", "active", "locked", "transaction_lost")


def _transactions(item: Transaction | Bulk) -> Sequence[Transaction]:
    return item.transactions if isinstance(item, Bulk) else (item,)


class Metrics(Collector):
    """Everything that is counted, and the lag."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.lag = Lag()
        self.state = State.STARTING
        self.retrying: str | None = None
        self.progress: dict[Unit, Copy] = {}
        self._held = NOTHING
        self._lock = threading.Lock()
        self._unapplied: deque[tuple[Lsn, float]] = deque()
        self._received: Counts[tuple[TableName, type]] = Counts()
        self._operations: Counts[tuple[str, type]] = Counts()
        self._uncommitted: Counts[tuple[str, type]] = Counts()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._define_counters()
        self._define_gauges()
        self.enter(State.STARTING)

    def _define_counters(self) -> None:
        counter = self._counter
        self.changes_received = counter(
            "cdc_changes_received", "Row changes received from the source.", "table", "kind"
        )
        self.operations_applied = counter(
            "cdc_operations_applied",
            "Operations of committed batches, before merging.",
            "projector",
            "kind",
        )
        self.transactions_applied = counter(
            "cdc_transactions_applied", "Source transactions applied and committed."
        )
        self.batches_applied = counter("cdc_batches_applied", "Read-database commits.")
        self.copy_rows = counter(
            "cdc_copy_rows",
            "Rows of the source table that were copied and committed, once for each projector.",
            "table",
        )
        self.retries = counter(
            "cdc_retries", "Attempts that failed in a way that passes.", "target", "reason"
        )
        for target, reason in product(TARGETS, REASONS):
            self.retries.labels(target, reason)
        self.commit_to_apply = Timings(
            "cdc_commit_to_apply_seconds",
            "From a transaction's commit in the write database to its commit in the read database.",
            _SECONDS,
        )
        self.registry.register(self.commit_to_apply)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _define_gauges(self) -> None:
        self._gauge(
            "cdc_replication_lag_bytes", "WAL written and not applied, in bytes."
        ).set_function(self.lag.bytes)
        self._gauge(
            "cdc_replication_lag_seconds",
            "Age of the oldest write that is not applied; 0 when caught up.",
        ).set_function(self.lag_seconds)
        self.mismatched = self._gauge(
            "cdc_verify_mismatched_rows",
            "Read rows missing, extra or different, and not mended, at the last verification.",
            "projector",
        )
        self._quarantined = self._gauge(
            "cdc_quarantined_keys",
            "Keys whose changes are set aside, one having failed for a reason that will not pass.",
            "projector",
        )
        self._states = self._gauge("cdc_state", "1 for the state the daemon is in.", "state")
        self._copy_progress = self._gauge(
            "cdc_copy_progress_ratio",
            "How much of the source table is copied, by the estimate of its rows; 1 when done. Of "
            "several projectors the one furthest behind counts.",
            "table",
        )
        build = self._gauge("cdc_build_info", "1, with the version as label.", "version")
        build.labels(version("cdc-daemon")).set(1)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def expect(self, tables: Iterable[TableName], projectors: Iterable[str]) -> None:
        """Begin every series of these tables and projectors at zero."""
        for table, kind in product(tables, KINDS):
            self.changes_received.labels(str(table), kind)
            self.copy_rows.labels(str(table))
            self._copy_progress.labels(str(table))
        for projector, kind in product(projectors, OPERATIONS):
            self.operations_applied.labels(projector, kind)
            self.mismatched.labels(projector)
            self._quarantined.labels(projector)

    def quarantine(self, held: Held) -> None:
        """Tell which keys are in quarantine; cheap where nothing has changed."""
        if held is self._held:
            return
        counts = held.counts()
        for projector in {*self._held.counts(), *counts}:
            self._quarantined.labels(projector).set(counts[projector])
        self._held = held

    def verified(self, verifications: Iterable[Verification]) -> None:
        """Tell what verifications found, of the projectors that are done with."""
        of: dict[str, list[Verification]] = {}
        for one in verifications:
            of.setdefault(one.unit.projector, []).append(one)
        for projector, theirs in of.items():
            if not any(one.due for one in theirs):
                self.mismatched.labels(projector).set(sum(one.mismatched for one in theirs))

    def enter(self, state: State, *, because: str | None = None) -> None:
        """Change the state; `because` says what is being retried."""
        self.state = state
        self.retrying = because
        for other in State:
            self._states.labels(other.value).set(other is state)

    def lag_seconds(self) -> float:
        """Seconds the read database is behind."""
        with self._lock:
            self.lag.pending(self._unapplied[0][1] if self._unapplied else None)
        return self.lag.seconds(now=time.time())

    def forget_unapplied(self) -> None:
        """Forget what was received: the stream begins again at the checkpoint."""
        self._uncommitted.clear()
        with self._lock:
            self._unapplied.clear()

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

    def applied(self, batch: Batch, *, checkpoint: Lsn | None) -> None:
        """Count a batch that was written; its transactions' times where it was committed."""
        self._uncommitted.update(batch.operations)
        if not batch.complete:
            return
        now = time.time()
        times = [t.commit_time.timestamp() for t in batch.transactions if t.ends]
        self.commit_to_apply.observe(max(0.0, now - committed) for committed in times)
        self.transactions_applied.inc(len(times))
        self.copies(batch.copies)
        for source, rows in batch.copied.items():
            self.copied(source, rows)
        self.batches_applied.inc()
        with self._lock:
            self._operations.update(self._uncommitted)
            if checkpoint is not None:
                self._reached(checkpoint)
        self._uncommitted.clear()

    def copied(self, source: TableName, rows: int) -> None:
        """Count rows that a copy brought, once they are committed."""
        self.copy_rows.labels(str(source)).inc(rows)

    def copies(self, now: Mapping[Unit, Copy]) -> None:
        """Note how far copies are; what was asked for anew meanwhile, or is not named, stays."""
        with self._lock:
            known = self.progress
            self.progress = known | {
                unit: copy
                for unit, copy in now.items()
                if unit not in known or copy.asked >= known[unit].asked
            }
            for source, ratio in ratios(self.progress.values()).items():
                self._copy_progress.labels(str(source)).set(ratio)

    def _reached(self, checkpoint: Lsn) -> None:
        self.lag.applied(checkpoint)
        while self._unapplied and self._unapplied[0][0] < checkpoint:
            self._unapplied.popleft()

    def collect(self) -> Iterator[Metric]:
        """Hand what was counted cheaply to the counters; called before they are collected."""
        with self._lock:
            received, self._received = self._received, Counts()
            operations, self._operations = self._operations, Counts()
        for (table, kind), count in received.items():
            self.changes_received.labels(str(table), kind.__name__.lower()).inc(count)
        for (projector, operation), count in operations.items():
            self.operations_applied.labels(projector, operation.__name__.lower()).inc(count)
        return iter(())

    def value(self, name: str, **labels: str) -> Any:
        """Read a series, for the status."""
        return self.registry.get_sample_value(name, labels)

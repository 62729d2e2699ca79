"""Metrics for Prometheus: base units, labels from closed sets, every series there at the start."""

import threading
import time
from collections import Counter as Counts
from collections.abc import Iterable
from importlib.metadata import version
from itertools import product
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from cdc.assemble import Transaction
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.observe.lag import Lag
from cdc.observe.state import State
from cdc.projection.batch import Batch

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
KINDS: Final = ("inserted", "updated", "deleted", "truncated")
OPERATIONS: Final = ("upsert", "update", "delete", "truncate", "move", "append")
TARGETS: Final = ("source", "read")
REASONS: Final = ("unavailable", "active", "locked", "transaction_lost")


class Metrics:
    """Everything that is counted, and the lag."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lag = Lag()
        self.state = State.STARTING
        self.retrying: str | None = None
        self._lock = threading.Lock()
        self._unapplied: dict[int, float] = {}
        self._uncommitted: Counts[tuple[str, str]] = Counts()
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
        self.retries = counter(
            "cdc_retries", "Attempts that failed in a way that passes.", "target", "reason"
        )
        for target, reason in product(TARGETS, REASONS):
            self.retries.labels(target, reason)
        self.commit_to_apply = Histogram(
            "cdc_commit_to_apply_seconds",
            "From a transaction's commit in the write database to its commit in the read database.",
            buckets=_SECONDS,
            registry=self.registry,
        )

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
        self._states = self._gauge("cdc_state", "1 for the state the daemon is in.", "state")
        build = self._gauge("cdc_build_info", "1, with the version as label.", "version")
        build.labels(version("cdc-daemon")).set(1)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def expect(self, tables: Iterable[TableName], projectors: Iterable[str]) -> None:
        """Begin every series of these tables and projectors at zero."""
        for table, kind in product(tables, KINDS):
            self.changes_received.labels(str(table), kind)
        for projector, kind in product(projectors, OPERATIONS):
            self.operations_applied.labels(projector, kind)

    def enter(self, state: State, *, because: str | None = None) -> None:
        """Change the state; `because` says what is being retried."""
        self.state = state
        self.retrying = because
        for other in State:
            self._states.labels(other.value).set(other is state)

    def lag_seconds(self) -> float:
        """Seconds the read database is behind."""
        with self._lock:
            self.lag.pending(next(iter(self._unapplied.values()), None))
        return self.lag.seconds(now=time.time())

    def forget_unapplied(self) -> None:
        """Forget what was received: the stream begins again at the checkpoint."""
        self._uncommitted.clear()
        with self._lock:
            self._unapplied.clear()

    def received(self, transaction: Transaction) -> None:
        """Count a transaction, or a piece of one."""
        if not transaction.changes:
            return
        with self._lock:
            self._unapplied.setdefault(transaction.commit_lsn, transaction.commit_time.timestamp())
        counts = Counts((id(c.relation), type(c)) for c in transaction.changes)
        relations = {id(c.relation): c.relation for c in transaction.changes}
        for (relation, kind), count in counts.items():
            table = str(relations[relation].name)
            self.changes_received.labels(table, kind.__name__.lower()).inc(count)

    def applied(self, batch: Batch, *, checkpoint: Lsn | None) -> None:
        """Count a batch that was written; its transactions' times where it was committed."""
        self._uncommitted.update(batch.operations)
        if not batch.complete:
            return
        ended = [transaction for transaction in batch.transactions if transaction.ends]
        self._time(ended)
        self._count_operations()
        self.transactions_applied.inc(len(ended))
        self.batches_applied.inc()
        if checkpoint is not None:
            self.lag.applied(checkpoint)

    def _time(self, transactions: list[Transaction]) -> None:
        now = time.time()
        for transaction in transactions:
            self.commit_to_apply.observe(max(0.0, now - transaction.commit_time.timestamp()))
        with self._lock:
            for transaction in transactions:
                self._unapplied.pop(transaction.commit_lsn, None)

    def _count_operations(self) -> None:
        for (projector, kind), count in self._uncommitted.items():
            self.operations_applied.labels(projector, kind.lower()).inc(count)
        self._uncommitted.clear()

    def value(self, name: str, **labels: str) -> Any:
        """Read a series, for the status."""
        return self.registry.get_sample_value(name, labels)

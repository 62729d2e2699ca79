"""Metrics for Prometheus: base units, labels from closed sets, every series there at the start."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
)

from cdc.assemble import Transaction
from cdc.copy_state import Copy, Unit
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.observe.failures import Failures
from cdc.observe.flow import Flow, Queue
from cdc.observe.heartbeats import Heartbeats
from cdc.observe.history import History
from cdc.observe.lag import Lag
from cdc.observe.positions import Positions, Streamed
from cdc.observe.progress import ratios
from cdc.observe.slot import SlotWal
from cdc.observe.state import State
from cdc.projection.batch import Batch
from cdc.projection.quarantine import NOTHING, Held
from cdc.rows import Bulk
from cdc.source.slot import Sample
from cdc.verify_state import Verification


class Metrics:
    """Everything that is counted, and the lag."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.since = time.time()
        self.lag = Lag(began=self.since)
        self.heartbeats = Heartbeats()
        self.history = History()
        self.flow = Flow(self.registry)
        self.failures = Failures(self.registry)
        self.positions = Positions(self.lag)
        self.slot = SlotWal()
        self.state = State.STARTING
        self.retrying: str | None = None
        self.progress: dict[Unit, Copy] = {}
        self._held = NOTHING
        self._lock = threading.Lock()
        self._turning = threading.Lock()
        for part in (self.heartbeats, self.positions, self.slot):
            self.registry.register(part)
        ProcessCollector(registry=self.registry)
        self._define_lag()
        self._define_states()
        self.enter(State.STARTING)

    def _define_lag(self) -> None:
        self._gauge(
            "cdc_replication_lag_bytes", "WAL written and not applied, in bytes."
        ).set_function(self.lag.bytes)
        self._gauge(
            "cdc_replication_lag_seconds",
            "Age of the oldest write that is not applied; 0 when caught up.",
        ).set_function(self.lag_seconds)

    def _define_states(self) -> None:
        self._mismatched = self._gauge(
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
        self._copy_rows = Counter(
            "cdc_copy_rows",
            "Rows of the source table that were copied and committed, once for each projector.",
            ("table",),
            registry=self.registry,
        )
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

    def expect(self, tables: Sequence[TableName], projectors: Sequence[str]) -> None:
        """Begin every series of these tables and projectors at zero."""
        self.flow.expect(tables, projectors)
        for table in tables:
            self._copy_rows.labels(str(table))
            self._copy_progress.labels(str(table))
        for projector in projectors:
            self._mismatched.labels(projector)
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
                self._mismatched.labels(projector).set(sum(one.mismatched for one in theirs))

    # The state, and the lag.

    def enter(self, state: State, *, because: str | None = None) -> None:
        """Change the state; `because` says what is being retried, or waited for."""
        with self._turning:
            self._enter(state, because)

    def turn(self, before: State, after: State, *, because: str | None = None) -> bool:
        """Change the state if it is `before`; tell whether it was."""
        with self._turning:
            found = self.state is before
            if found:
                self._enter(after, because)
            return found

    def _enter(self, state: State, because: str | None) -> None:
        if state is not self.state:
            self.since = time.time()
        self.state = state
        self.retrying = because
        for other in State:
            self._states.labels(other.value).set(other is state)

    def sampled(self, found: Sample) -> None:
        """Take how the write database stands."""
        confirmed = None if found.confirmed is None else Lsn(found.confirmed)
        self.lag.sampled(Lsn(found.wal), now=time.time(), confirmed=confirmed)
        self.slot.look(found, now=time.monotonic())

    def lag_seconds(self) -> float:
        """Seconds the read database is behind."""
        self.lag.pending(self.flow.oldest_unapplied(self.lag.checkpoint))
        return self.lag.seconds(now=time.time())

    # The flow.

    def streams(self, stream: Streamed, queue: Queue, *, since: Lsn) -> None:
        """Note that a stream begins, at the checkpoint: what was received before is forgotten."""
        self.flow.forget_unapplied()
        self.lag.applied(since)
        self.positions.stream, self.flow.queue = stream, queue

    def stopped_streaming(self) -> None:
        """Note that nothing is queued any more; how far the stream was is still told."""
        self.flow.queue = None

    def received(self, items: Sequence[Transaction | Bulk]) -> None:
        """Count transactions, or pieces of them, and rows set apart."""
        self.flow.received(items)

    def applied(self, batch: Batch, *, checkpoint: Lsn | None, seconds: float) -> None:
        """Count a batch that was written, in so many seconds."""
        self.flow.applied(batch, seconds=seconds)
        if not batch.complete:
            return
        self.copies(batch.copies)
        for source, rows in batch.copied.items():
            self.copied(source, rows)
        if checkpoint is not None:
            self.lag.applied(checkpoint)
            self.heartbeats.reached(checkpoint, now=time.monotonic())
            self.flow.reached(checkpoint)

    def copied(self, source: TableName, rows: int) -> None:
        """Count rows that a copy brought, once they are committed."""
        self._copy_rows.labels(str(source)).inc(rows)

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

    # For the status.

    def operations(self) -> dict[str, int]:
        """Give how many operations have been applied so far, by projector."""
        return self.flow.operations()

    def remember(self, *, now: float) -> None:
        """Take a sample for the history, if the last one is a second old."""
        if self.history.due(now):
            operations = self.operations()
            self.history.take(
                now,
                lag_seconds=self.lag_seconds(),
                changes=self.flow.changes,
                operations=operations,
            )

    def value(self, name: str, **labels: str) -> Any:
        """Read a series, for the status."""
        return self.registry.get_sample_value(name, labels)

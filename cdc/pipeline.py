"""The flow, on one page.

socket --> frame --> message --> Transaction --> Batch --> rows + checkpoint --> acknowledgement
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cdc.assemble import Transaction
from cdc.beside.copier import Copier
from cdc.beside.copying import Copying
from cdc.beside.verifier import Verifier
from cdc.beside.verifying import Verifying
from cdc.chunk import Chunk
from cdc.errors import CdcError, SourceUnavailable
from cdc.exchange import Exchange, Item, Stopped
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.observe.watchdog import Doing
from cdc.projection.batch import Batch
from cdc.projection.check import Probe
from cdc.projection.laps import Laps
from cdc.projection.projector import FunctionProjector, Projector
from cdc.reader import Reader
from cdc.rows import Bulk
from cdc.sink.writer import Writer
from cdc.source.frame import Keepalive
from cdc.source.stream import Stream

_IDLE_SECONDS: Final = 1.0
_AT_ONCE_BYTES: Final = 256 * 1024
_GROUPS_QUEUED: Final = 8  # at least: what is offered together waits until there is room for all
_OFFER_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 1.0
_MAKES_WAY_BYTES: Final = 1024**2
_LEAST_WAIT_SECONDS: Final = 0.05
_UNMOVED_SECONDS: Final = 5.0


@dataclass(kw_only=True)
class Pipeline:
    """Three threads, one direction: receive, project, write; and two that read rows.

    One reads rows to be copied, the other rows to be compared.

    `start` is where the stream begins: the checkpoint. `persist` calls a function again while it
    fails in a way that passes by itself. `settle` raises where something in what was decoded must
    not be applied. `source_stopping` tells that the write database is being
    shut down: it waits for what it sends to be read, which a full queue would keep it from.
    """

    start: Lsn
    stream: Stream
    reader: Reader
    exchange: Exchange
    copying: Copying
    copier: Copier
    verifying: Verifying
    verifier: Verifier
    writer: Writer
    metrics: Metrics
    projectors: Sequence[Projector]
    batch_changes: int
    batch_bytes: int
    persist: Callable[[Callable[[], None]], None]
    settle: Callable[[], None]
    stop: threading.Event
    source_stopping: threading.Event

    seen_decoding: int = field(default=0, init=False)
    """How often somebody saw the write database at work on what it is going to send."""

    _errors: list[BaseException] = field(default_factory=list, init=False)
    _arrived: list[Transaction | Bulk] = field(default_factory=list, init=False)
    _arrived_bytes: int = field(default=0, init=False)
    _in_pieces: bool = field(default=False, init=False)
    _idle_lsn: Lsn = field(default=Lsn(0), init=False)
    _offered_lsn: Lsn = field(init=False)
    _idle_due: float = field(default=0.0, init=False)
    _awaited: bool = field(default=False, init=False)
    _given_up: bool = field(default=False, init=False)
    _writing: bool = field(default=False, init=False)
    _rounds: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # A keepalive may tell an older position than the checkpoint: it is no news.
        self._offered_lsn = self.start

    def run(self) -> None:
        """Stream until told to stop, then drain; raise what ended it otherwise."""
        others = [
            threading.Thread(target=self._guarded, args=(part, stage), name=stage)
            for stage, part in (
                ("project", self._project),
                ("write", self._write),
                ("copy", self._copy),
                ("verify", self._verify),
            )
        ]
        for thread in others:
            thread.start()
        self._guarded(self._receive, "receive")
        self.copier.stop()
        self.verifier.stop()
        if self._errors:
            self.stream.close()  # a server that shuts down waits for it
        for thread in others:
            self._wait_for(thread)
        self.stream.close()
        if self._errors:
            raise min(self._errors, key=_passes)  # what will not pass says more

    def _wait_for(self, thread: threading.Thread) -> None:
        """Wait for a thread's end; after a failure not for a write that does not get on.

        It may be waiting for a lock for hours, and would be undone with the session anyway.
        """
        steps, since = self.writer.steps, time.monotonic()
        while thread.is_alive():
            self._guarded(self.stream.feedback, "receive")
            thread.join(self._until_feedback())
            if steps != self.writer.steps:
                steps, since = self.writer.steps, time.monotonic()
            elif self._errors and time.monotonic() - since > _UNMOVED_SECONDS:
                self._given_up = True
                self.writer.interrupt()
                since = time.monotonic()

    def _until_feedback(self) -> float:
        """Say for how many seconds the stream thread may wait for something else."""
        return min(_OFFER_SECONDS, max(_LEAST_WAIT_SECONDS, self.stream.until_feedback()))

    def doing(self) -> Iterator[Doing]:
        """Say what is to be done, and how far it is; nothing where all is applied."""
        calls = {p.name: p.calls for p in self.projectors if isinstance(p, FunctionProjector)}
        applied = (
            (self.writer.steps, self._rounds, self.exchange.drawn),
            tuple(call.count for call in calls.values()),
        )
        if self._writing:
            yield Doing("writing to the read database", applied[0][:2])
        for name, call in calls.items():
            if call.running:
                yield Doing(f"projector {name}", call.count)
        if self.exchange.queued_bytes:
            yield Doing("applying what was received", applied)
        elif self.metrics.lag.bytes():
            sent = (self.stream.received, self.seen_decoding)
            yield Doing("waiting for the write database to send", (applied, sent))

    def _guarded(self, part: Callable[[], None], stage: str) -> None:
        """Run a thread's part; let its failure end the others."""
        try:
            part()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  raised again by run()
            self._errors.append(error)
            self.metrics.failures.failed(error, stage=stage)
            self.exchange.fail()
            self.stream.wake()

    def hurry(self) -> None:
        """Store an idle position at once, for which somebody waits. From any thread."""
        self._awaited = True
        self.stream.wake()

    # The stream thread.

    def _receive(self) -> None:
        try:
            while not self.stop.is_set() and not self._errors:
                self._receive_some()
        finally:
            self.exchange.finish()

    def _receive_some(self) -> None:
        frames, keepalive = self.stream.read(seconds=self._until_idle_position())
        for item in self.reader.read(frames):
            self._pass_on(item)
        if keepalive is not None:
            self._keep_alive(keepalive)
        self._offer_arrived()
        self._offer_idle_position()
        self.stream.feedback()
        self.stream.gather(len(frames))

    def _pass_on(self, item: Transaction | Bulk) -> None:
        """Collect what was read; a transaction without changes is no more than a position."""
        is_empty = isinstance(item, Transaction) and not item.changes
        if item.end_lsn is not None and is_empty and not self._in_pieces:
            self._idle_lsn = item.end_lsn
            return
        self._in_pieces = item.end_lsn is None
        self._arrived.append(item)
        self._arrived_bytes += item.size
        if self._arrived_bytes >= min(_AT_ONCE_BYTES, self.exchange.limit_bytes // _GROUPS_QUEUED):
            self._offer_arrived()

    def _offer_arrived(self) -> None:
        """Queue what one read brought, together."""
        if self._arrived:
            self.settle()
            arrived, self._arrived, self._arrived_bytes = self._arrived, [], 0
            self.metrics.received(arrived)
            self._offer(*arrived)

    def _keep_alive(self, keepalive: Keepalive) -> None:
        if self.reader.between_transactions:
            self._idle_lsn = keepalive.wal_end
        if keepalive.reply_requested:
            self._idle_due = 0.0
            self.stream.reply()

    def _until_idle_position(self) -> float:
        """Say for how many seconds no position need be stored."""
        if self._idle_lsn <= self._offered_lsn:
            return math.inf
        return max(0.0, self._idle_due - time.monotonic())

    def _offer_idle_position(self) -> None:
        """Let writes to other tables move the checkpoint too, once a second."""
        if self.reader.emitted or self._awaited:
            self.reader.emitted = self._awaited = False
            self._idle_due = 0.0  # somebody waits for this position
        if not self._until_idle_position() and self.reader.between_transactions:
            self._offer(self._idle_lsn)
            self._idle_due = time.monotonic() + _IDLE_SECONDS

    def _offer(self, *items: Transaction | Bulk | Lsn) -> None:
        """Queue items, sending feedback while there is no room."""
        while not self.exchange.offer(*items, seconds=self._until_feedback()):
            self.stream.feedback()
            if self.stop.is_set():
                raise Stopped
            if self.source_stopping.is_set():
                raise SourceUnavailable("write database: it is shutting down")
        last = items[-1]
        end_lsn = last if isinstance(last, Lsn) else last.end_lsn
        self._offered_lsn = max(self._offered_lsn, end_lsn or self._offered_lsn)

    # The projection thread.

    def _project(self) -> None:
        try:
            self._project_all()
        except Stopped:
            self.exchange.fail()  # in the midst of a batch, which must not be committed
            raise

    def _project_all(self) -> None:
        batch = self._begun()
        while True:
            holding = self._has_rows_ready(batch) or batch.can_commit
            item = self.exchange.next(holding=holding)
            if item is None and not holding:
                break
            if item is not None:
                self._add(item, batch)
            full = self._is_full(batch) or self._makes_way(batch)
            if full or (item is None and batch.can_commit):
                batch = self._handed_over(batch)
            if full or item is None:  # it is the turn of what was there before
                for part in self.copying.placed(batch):
                    batch = self._handed_over(part)
                for part in self.verifying.placed(batch):
                    batch = self._handed_over(part)
        self.exchange.end()

    def _has_rows_ready(self, batch: Batch) -> bool:
        """Tell whether rows from before can be placed after a batch; both look at where it ends."""
        return any([self.copying.ready(batch), self.verifying.ready(batch)])

    def _makes_way(self, batch: Batch) -> bool:
        """Tell whether a batch is large enough for rows that wait for their place behind it."""
        return batch.size >= _MAKES_WAY_BYTES and self._has_rows_ready(batch)

    def _add(self, item: Item, batch: Batch) -> None:
        match item:
            case Transaction():
                self.copying.note(item, batch)
                batch.add(item, self.copying.serving)
            case Bulk():
                self.copying.note(item, batch)
                batch.add_bulk(item, self.copying.serving)
            case Chunk():
                self.copying.arrived(item)
            case Probe():
                self.verifying.arrived(item)
            case _:
                batch.reach(item)

    def _handed_over(self, batch: Batch) -> Batch:
        """Give the writer a batch; begin the next."""
        batch.effect.seal()
        batch.walks = self.verifying.walks
        self.exchange.hand_over(batch)
        return self._begun(continues=not batch.complete)

    def _begun(self, *, continues: bool = False) -> Batch:
        return Batch(continues=continues, held=self.writer.held, laps=Laps(time.perf_counter))

    def _is_full(self, batch: Batch) -> bool:
        return batch.changes >= self.batch_changes or batch.size >= self.batch_bytes

    # The threads that read rows to be copied, and to be compared.

    def _copy(self) -> None:
        self.copier.run(self._offer_read)

    def _verify(self) -> None:
        self.verifier.run(self._offer_read)

    def _offer_read(self, rows: Chunk | Probe) -> None:
        while not self.exchange.offer(rows, seconds=_OFFER_SECONDS):
            if self.stop.is_set():
                raise Stopped

    # The writer thread.

    def _write(self) -> None:
        while not self.exchange.ended:
            self._writing = False
            batch = self.exchange.take(seconds=self._writer_pause())
            self._writing = True
            if batch is not None:
                began = time.perf_counter()
                self.persist(partial(self._apply, batch))
                seconds = time.perf_counter() - began
                for check in batch.checks:
                    check.committed()
                checkpoint = self.writer.checkpoint
                self.metrics.applied(batch, checkpoint=checkpoint, seconds=seconds)
            if self.writer.held:
                self.persist(partial(self.writer.attend, self.verifying.walks))
            self._tell_quarantine()
            self._acknowledge()
            self._rounds += 1
        self.writer.flush()
        self._acknowledge()

    def _tell_quarantine(self) -> None:
        self.metrics.quarantine(self.writer.held)
        self.metrics.failures.set_aside(self.writer.set_aside)

    def _apply(self, batch: Batch) -> None:
        """Write a batch; one that was given up is not tried again."""
        if self._given_up:
            raise Stopped
        self.writer.apply(batch)

    def _writer_pause(self) -> float | None:
        """Say for how long nothing but a batch is to be done."""
        if self.writer.has_undurable_commits:
            return _FLUSH_SECONDS
        return _LOOK_SECONDS if self.writer.held else None

    def _acknowledge(self) -> None:
        """Let the source forget what is checkpointed and on the read database's disk."""
        durable = self.writer.durable()
        if durable is not None:
            self.stream.acknowledge(durable)


def _passes(error: BaseException) -> bool:
    return isinstance(error, CdcError) and error.transient

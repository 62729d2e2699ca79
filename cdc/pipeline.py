"""The flow, on one page.

socket --> frame --> message --> Transaction --> Batch --> rows + checkpoint --> acknowledgement
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cdc.assemble import Transaction
from cdc.beside.copier import Copier
from cdc.beside.copying import Copying
from cdc.beside.verifier import Verifier
from cdc.beside.verifying import Verifying
from cdc.chunk import Chunk
from cdc.errors import SourceUnavailable
from cdc.exchange import Exchange, Item, Stopped
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.projection.batch import Batch
from cdc.projection.check import Probe
from cdc.reader import Reader
from cdc.rows import Bulk
from cdc.sink.writer import Writer
from cdc.source.frame import Keepalive
from cdc.source.stream import Stream

_IDLE_SECONDS: Final = 1.0
_AT_ONCE_BYTES: Final = 256 * 1024
_OFFER_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 1.0
_MAKES_WAY_BYTES: Final = 1024**2
_SOME_FRAMES: Final = range(64, 1500)
_GATHER_SECONDS: Final = 0.002


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
    batch_changes: int
    batch_bytes: int
    persist: Callable[[Callable[[], None]], None]
    settle: Callable[[], None]
    stop: threading.Event
    source_stopping: threading.Event

    _errors: list[BaseException] = field(default_factory=list, init=False)
    _arrived: list[Transaction | Bulk] = field(default_factory=list, init=False)
    _arrived_bytes: int = field(default=0, init=False)
    _in_pieces: bool = field(default=False, init=False)
    _idle_lsn: Lsn = field(default=Lsn(0), init=False)
    _offered_lsn: Lsn = field(init=False)
    _idle_due: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        # A keepalive may tell an older position than the checkpoint: it is no news.
        self._offered_lsn = self.start

    def run(self) -> None:
        """Stream until told to stop, then drain; raise what ended it otherwise."""
        others = [
            threading.Thread(target=self._guarded, args=(part,), name=part.__name__.strip("_"))
            for part in (self._project, self._write, self._copy, self._verify)
        ]
        for thread in others:
            thread.start()
        self._guarded(self._receive)
        self.copier.stop()
        self.verifier.stop()
        if self._errors:
            self.stream.close()  # a server that shuts down waits for it
        for thread in others:
            while thread.is_alive():
                self._guarded(self.stream.feedback)
                thread.join(_OFFER_SECONDS)
        self.stream.close()
        if self._errors:
            raise self._errors[0]

    def _guarded(self, part: Callable[[], None]) -> None:
        """Run a thread's part; let its failure end the others."""
        try:
            part()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  raised again by run()
            self._errors.append(error)
            self.exchange.fail()
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
        if len(frames) in _SOME_FRAMES:  # more is on its way: fewer and larger reads are cheaper
            time.sleep(_GATHER_SECONDS)

    def _pass_on(self, item: Transaction | Bulk) -> None:
        """Collect what was read; a transaction without changes is no more than a position."""
        is_empty = isinstance(item, Transaction) and not item.changes
        if item.end_lsn is not None and is_empty and not self._in_pieces:
            self._idle_lsn = item.end_lsn
            return
        self._in_pieces = item.end_lsn is None
        self._arrived.append(item)
        self._arrived_bytes += item.size
        if self._arrived_bytes >= _AT_ONCE_BYTES:
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
        if self.reader.emitted:
            self.reader.emitted = False
            self._idle_due = 0.0  # somebody waits for this position
        if not self._until_idle_position() and self.reader.between_transactions:
            self._offer(self._idle_lsn)
            self._idle_due = time.monotonic() + _IDLE_SECONDS

    def _offer(self, *items: Transaction | Bulk | Lsn) -> None:
        """Queue items, sending feedback while there is no room."""
        while not self.exchange.offer(*items, seconds=_OFFER_SECONDS):
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
        batch = Batch(held=self.writer.held)
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
        return Batch(continues=not batch.complete, held=self.writer.held)

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
            batch = self.exchange.take(seconds=self._writer_pause())
            if batch is not None:
                self.persist(partial(self.writer.apply, batch))
                for check in batch.checks:
                    check.committed()
                self.metrics.applied(batch, checkpoint=self.writer.checkpoint)
            if self.writer.held:
                self.persist(partial(self.writer.attend, self.verifying.walks))
            self.metrics.quarantine(self.writer.held)
            self._acknowledge()
        self.writer.flush()
        self._acknowledge()

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

"""The flow, on one page.

socket --> frame --> message --> Transaction --> Batch --> rows + checkpoint --> acknowledgement
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from cdc.assemble import Assembler, Transaction
from cdc.errors import SourceUnavailable
from cdc.exchange import Exchange, Item, Stopped
from cdc.lsn import Lsn
from cdc.message import Emitted, Message
from cdc.observe.metrics import Metrics
from cdc.projection.batch import Batch
from cdc.projection.registry import Registry
from cdc.sink.writer import Writer
from cdc.source.stream import Data, Keepalive, Stream

_IDLE_SECONDS: Final = 1.0
_AT_ONCE_BYTES: Final = 256 * 1024
_OFFER_SECONDS: Final = 1.0
_OVERHEAD_BYTES: Final = 256  # what a change takes in memory beyond its bytes on the wire
_FLUSH_SECONDS: Final = 0.2


class Decoder(Protocol):
    """What a plugin's decoder does."""

    def decode(self, payload: bytes | memoryview) -> Sequence[Message]:
        """Decode one frame's payload; raise ProtocolError."""


@dataclass(kw_only=True)
class Pipeline:
    """Three threads, one direction: receive, project, write.

    `start` is where the stream begins: the checkpoint. `persist` calls a function again while it
    fails in a way that passes by itself. `settle` raises where something in what was decoded must
    not be applied. `source_stopping` tells that the write database is being
    shut down: it waits for what it sends to be read, which a full queue would keep it from.
    """

    start: Lsn
    stream: Stream
    decoder: Decoder
    assembler: Assembler
    exchange: Exchange
    registry: Registry
    writer: Writer
    metrics: Metrics
    batch_changes: int
    batch_bytes: int
    persist: Callable[[Callable[[], None]], None]
    settle: Callable[[], None]
    stop: threading.Event
    source_stopping: threading.Event

    _errors: list[BaseException] = field(default_factory=list, init=False)
    _arrived: list[Transaction] = field(default_factory=list, init=False)
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
            for part in (self._project, self._write)
        ]
        for thread in others:
            thread.start()
        self._guarded(self._receive)
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
        for frame in self.stream.frames(seconds=self._until_idle_position()):
            if isinstance(frame, Data):
                self._take(frame)
            else:
                self._keep_alive(frame)
        self._offer_arrived()
        self._offer_idle_position()
        self.stream.feedback()

    def _take(self, frame: Data) -> None:
        payload = frame.payload
        size = len(payload) + _OVERHEAD_BYTES
        for message in self.decoder.decode(payload):
            transaction = self.assembler.feed(message, size)
            if transaction is not None:
                self._pass_on(transaction)
            elif isinstance(message, Emitted):
                self._idle_due = 0.0  # somebody waits for this position

    def _pass_on(self, transaction: Transaction) -> None:
        """Collect a transaction; one without changes is no more than a position."""
        if transaction.end_lsn is not None and not transaction.changes and not self._in_pieces:
            self._idle_lsn = transaction.end_lsn
            return
        self._in_pieces = not transaction.ends
        self._arrived.append(transaction)
        self._arrived_bytes += transaction.size
        if self._arrived_bytes >= _AT_ONCE_BYTES:
            self._offer_arrived()

    def _offer_arrived(self) -> None:
        """Queue what one read brought, together."""
        if self._arrived:
            self.settle()
            arrived, self._arrived, self._arrived_bytes = self._arrived, [], 0
            self.metrics.received(arrived)
            self._offer(*arrived)

    def _keep_alive(self, frame: Keepalive) -> None:
        if self.assembler.between_transactions:
            self._idle_lsn = frame.wal_end
        if frame.reply_requested:
            self._idle_due = 0.0
            self.stream.reply()

    def _until_idle_position(self) -> float:
        """Say for how many seconds no position need be stored."""
        if self._idle_lsn <= self._offered_lsn:
            return math.inf
        return max(0.0, self._idle_due - time.monotonic())

    def _offer_idle_position(self) -> None:
        """Let writes to other tables move the checkpoint too, once a second."""
        if not self._until_idle_position() and self.assembler.between_transactions:
            self._offer(self._idle_lsn)
            self._idle_due = time.monotonic() + _IDLE_SECONDS

    def _offer(self, *items: Item) -> None:
        """Queue items, sending feedback while there is no room."""
        while not self.exchange.offer(*items, seconds=_OFFER_SECONDS):
            self.stream.feedback()
            if self.stop.is_set():
                raise Stopped
            if self.source_stopping.is_set():
                raise SourceUnavailable("write database: it is shutting down")
        last = items[-1]
        end_lsn = last.end_lsn if isinstance(last, Transaction) else last
        self._offered_lsn = max(self._offered_lsn, end_lsn or self._offered_lsn)

    # The projection thread.

    def _project(self) -> None:
        batch = Batch()
        while (item := self.exchange.next(holding=batch.can_commit)) or batch.can_commit:
            if isinstance(item, Transaction):
                batch.add(item, self.registry)
            elif item is not None:
                batch.reach(item)
            if item is None or self._is_full(batch):
                self.exchange.hand_over(batch)
                batch = Batch()
        self.exchange.end()

    def _is_full(self, batch: Batch) -> bool:
        return batch.changes >= self.batch_changes or batch.size >= self.batch_bytes

    # The writer thread.

    def _write(self) -> None:
        while not self.exchange.ended:
            waits = self.writer.has_undurable_commits
            batch = self.exchange.take(seconds=_FLUSH_SECONDS if waits else None)
            if batch is not None:
                self.persist(partial(self.writer.apply, batch, self.registry))
                self.metrics.applied(batch, checkpoint=self.writer.checkpoint)
            self._acknowledge()
        self.writer.flush()
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Let the source forget what is checkpointed and on the read database's disk."""
        durable = self.writer.durable()
        if durable is not None:
            self.stream.acknowledge(durable)

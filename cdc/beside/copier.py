"""The thread that reads chunks of the tables to be copied, one after the other."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from cdc.beside.copying import Copying
from cdc.beside.feed import Feed
from cdc.chunk import Chunk
from cdc.copy_state import Copy, Unit
from cdc.errors import CdcError
from cdc.exchange import Stopped
from cdc.observe.metrics import Metrics
from cdc.observe.progress import seconds
from cdc.projection.registry import Registry
from cdc.schema import Schema
from cdc.sink.asked import Asked
from cdc.source.chunks import ChunkReader, ChunkSize, Page
from cdc.source.connection import Connection
from cdc.source.relations import Relations
from cdc.source.slot import mark_now
from cdc.window import Opened

log = logging.getLogger(__name__)

_AHEAD: Final = 2  # chunks that are read while others wait for their place
_LOOK_SECONDS: Final = 1.0
_AGAIN_AT_ONCE: Final = 1000
_SMALLER: Final = 16
_SMALL_BYTES: Final = 256 * 1024


@dataclass(kw_only=True, eq=False)
class Copier:
    """Reads what is to be copied, chunk after chunk, until nothing is left; then waits to be asked.

    `asked` looks up what somebody asks for.
    """

    registry: Registry
    schema: Schema
    relations: Relations
    open_source: Callable[[], Connection]
    asked: Asked[Copy]
    copying: Copying
    metrics: Metrics
    chunk_bytes: int
    rows_per_second: int

    _feed: Feed[Chunk] = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _reader: ChunkReader | None = field(default=None, init=False)
    _look_at: float = field(default=0.0, init=False)

    def run(self, offer: Callable[[Chunk], None]) -> None:
        """Copy what is due, until stopped; `offer` hands a chunk on."""
        self._feed = self._feed_to(offer)
        try:
            while not self._stop.is_set():
                self._look()
                unit = self._next()
                if unit is None:
                    self._stop.wait(_LOOK_SECONDS)
                else:
                    self._copy(unit)
        except CdcError:
            if not self._stop.is_set():  # else it was cancelled
                raise
        finally:
            self.asked.close()

    def _feed_to(self, offer: Callable[[Chunk], None]) -> Feed[Chunk]:
        copying = self.copying
        return Feed(copying, copying.window, offer, self._stop, self.rows_per_second)

    def stop(self) -> None:
        """Stop soon, and cancel what the write database is asked for; never raise."""
        self._stop.set()
        reader = self._reader
        if reader is not None:
            reader.cancel()

    def _look(self) -> None:
        """See, once a second, what somebody asks for."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        mine = self.copying.copies
        for unit, copy in self.asked.look().items():
            if unit in mine and copy.asked > mine[unit].asked:
                self.copying.ask(copy)
                self.metrics.copies({unit: copy})

    def _next(self) -> Unit | None:
        """Choose what to copy: those that are read more often first, parents before children."""
        copies = self.copying.copies
        due = [u for u in self.registry.units() if u in copies and copies[u].due]
        return max(due, key=lambda unit: copies[unit].passes, default=None)

    def _copy(self, unit: Unit) -> None:
        """Copy a unit from where it is, until its table ends, or a chunk came to nothing."""
        table, copy = self.schema[unit.source], self.copying.copies[unit]
        if copy.reached is None:
            log.info("copying", extra=_named(unit))
        with closing(
            ChunkReader(self.open_source, table, self.relations.known(unit.source))
        ) as reader:
            self._reader = reader
            if self.registry.appends(unit):
                self._copy_whole(reader, copy)
            elif self._copy_by_key(reader, copy):
                self._copy_again(reader, unit)
            self._feed.wait(outstanding=0)
        self._reader = None
        now = self.copying.copies[unit]
        if now.state == "done":
            log.info("copied", extra={**_named(unit), "rows": now.copied, "seconds": seconds(now)})

    def _copy_by_key(self, reader: ChunkReader, copy: Copy) -> bool:
        """Read chunk after chunk, some ahead of those that wait for their place.

        Up to the row that is the last one now: what is added faster than it is read would be read
        for ever. Tell whether all have found their place, and no other pass follows.
        """
        abandoned, chunk, bound = self.copying.abandoned, None, None
        after, ends = copy.reached, False
        size = ChunkSize(self.chunk_bytes)
        expected = reader.estimate() if copy.expected is None else None
        while not ends and self._goes_on(copy) and self.copying.abandoned == abandoned:
            self._feed.wait(outstanding=_AHEAD)
            began = time.monotonic()
            opened = self._feed.open(reader, copy.unit.source)
            partitions = reader.partitions()
            is_first = chunk is None
            bound = reader.last_key() if is_first else bound
            page = reader.read(
                after=after, rows=self._rows(size), most_bytes=size.most_bytes, bound=bound
            )
            chunk = self._chunk(copy, reader, opened, page)
            chunk.after, chunk.bound, chunk.first = after, bound, is_first
            chunk.expected, chunk.ordered = expected, reader.ordered
            chunk.partitions = partitions
            self._feed.offer(chunk)
            after, ends = page.last or after, page.ends
            seconds = time.monotonic() - began
            size.learn(page, seconds=seconds)
            self._feed.slow_down(page.count, seconds)
        self._feed.wait(outstanding=0)
        in_last_pass = chunk is not None and chunk.in_last_pass
        return ends and in_last_pass and self.copying.abandoned == abandoned

    def _rows(self, size: ChunkSize) -> int:
        """Choose how many rows to read; fewer while changes are streamed, which wait for them."""
        if not self.copying.streaming:
            return size.rows
        fewer_bytes = max(self.chunk_bytes // _SMALLER, min(self.chunk_bytes, _SMALL_BYTES))
        return max(1, size.rows * fewer_bytes // self.chunk_bytes)

    def _copy_again(self, reader: ChunkReader, unit: Unit) -> None:
        """Read rows once more of which an update did not send all."""
        copy = self.copying.copies[unit]
        if not copy.due or not copy.again:
            return
        keys = copy.again[:_AGAIN_AT_ONCE]
        opened = self._feed.open(reader, unit.source)
        chunk = self._chunk(copy, reader, opened, reader.read_keys(keys))
        chunk.keys, chunk.ends = keys, True
        self._feed.offer(chunk)

    def _chunk(self, copy: Copy, reader: ChunkReader, opened: Opened, page: Page) -> Chunk:
        return Chunk(
            copy.unit,
            copy.asked,
            reader.relation,
            opened,
            watermark=reader.mark(),
            text=page.text,
            count=page.count,
            last=page.last,
            ends=page.ends,
        )

    def _copy_whole(self, reader: ChunkReader, copy: Copy) -> None:
        """Have all rows read as of one moment, when it is their turn."""
        opened = self._feed.open(reader, copy.unit.source)
        with closing(self.open_source()) as other:
            watermark = mark_now(other)
        pieces = self._pieces(reader)
        self._feed.offer(
            Chunk(
                copy.unit,
                copy.asked,
                reader.relation,
                opened,
                watermark,
                ends=True,
                expected=reader.estimate(),
                pieces=pieces,
            )
        )

    def _pieces(self, reader: ChunkReader) -> Iterator[tuple[bytes, int]]:
        """Read on in the thread that writes the rows."""
        try:
            yield from reader.read_all(self.chunk_bytes)
        except CdcError:
            if self._stop.is_set():  # it was cancelled
                raise Stopped from None
            raise

    def _goes_on(self, copy: Copy) -> bool:
        """Tell whether nobody has asked for another one meanwhile."""
        self._look()
        return self.copying.copies[copy.unit].asked == copy.asked


def _named(unit: Unit) -> dict[str, str]:
    return {"table": str(unit.source), "projector": unit.projector}

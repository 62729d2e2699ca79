"""Where the three threads of the pipeline meet: bounded, and never on a timer.

stream thread --transactions--> projection thread --batch--> writer thread
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from cdc.assemble import Transaction
from cdc.chunk import Chunk
from cdc.lsn import Lsn
from cdc.projection.batch import Batch
from cdc.projection.check import Probe
from cdc.rows import Bulk

Item = Transaction | Bulk | Lsn | Chunk | Probe
"""A transaction, or many; a position before which nothing is pending; or rows to be placed,
or compared."""


_DRAWN_BYTES: Final = 256 * 1024


def _size(item: Item) -> int:
    return 0 if isinstance(item, Lsn) else item.size


class Stopped(Exception):
    """The pipeline is ending; the thread that sees this leaves."""


class Exchange:
    """A queue bounded in bytes, and a place for one batch."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._drawn: deque[Item] = deque()  # the projection thread's alone
        self._bytes = 0
        self._batch: Batch | None = None
        self._writer_waits = False
        self._finished = False
        self._ended = False
        self._failed = False
        self.drawn = 0
        """How many items have been taken to be projected."""

    @property
    def queued_bytes(self) -> int:
        """What waits to be projected, in bytes."""
        return self._bytes

    def offer(self, *items: Item, seconds: float) -> bool:
        """Queue items; tell False where there was no room for that long."""
        size = sum(map(_size, items))
        with self._changed:
            if not self._until(lambda: self._has_room(size), seconds):
                return False
            self._items.extend(items)
            self._bytes += size
            self._changed.notify_all()
            return True

    def _has_room(self, size: int) -> bool:
        return not self._items or self._bytes + size <= self.limit_bytes

    def finish(self) -> None:
        """Say that nothing more will be offered."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def fail(self) -> None:
        """End every wait with Stopped."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def next(self, *, holding: bool) -> Item | None:
        """Give the next item; None where the batch held should go to the writer, or at the end.

        All that has arrived goes into one batch; the batch goes as soon as the writer is free.
        """
        if not self._drawn:
            with self._changed:
                self._until(
                    lambda: self._items or self._finished or (holding and self._writer_waits)
                )
                self._draw()
        return self._drawn.popleft() if self._drawn else None

    def _draw(self) -> None:
        """Take some items at once: small transactions would spend their time on the lock."""
        drawn = 0
        while self._items and drawn < _DRAWN_BYTES:
            item = self._items.popleft()
            drawn += _size(item)
            self._drawn.append(item)
            self.drawn += 1
        if self._drawn:
            self._bytes -= drawn
            self._changed.notify_all()

    def hand_over(self, batch: Batch) -> None:
        """Give the writer a batch, as soon as it has none waiting."""
        with self._changed:
            self._until(lambda: self._batch is None)
            self._batch = batch
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no more batches will be handed over."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Tell whether the last batch has been taken."""
        return self._ended and self._batch is None

    def take(self, *, seconds: float | None) -> Batch | None:
        """Wait for a batch; None at the end, or where none came for that long."""
        with self._changed:
            self._writer_waits = True
            self._changed.notify_all()
            self._until(lambda: self._batch is not None or self._ended, seconds)
            self._writer_waits = False
            batch, self._batch = self._batch, None
            self._changed.notify_all()
            return batch

    def _until(self, ready: Callable[[], object], seconds: float | None = None) -> bool:
        """Wait, holding the lock, until something is so; raise Stopped if the pipeline failed."""
        met = self._changed.wait_for(lambda: self._failed or ready(), seconds)
        if self._failed:
            raise Stopped
        return bool(met)

"""How rows that were read reach the stream: a snapshot for them, a turn, and a pace."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from cdc.exchange import Stopped
from cdc.names import TableName
from cdc.snapshot import Snapshot
from cdc.window import Opened, Window

_VISIBLE_SECONDS: Final = 0.05
_WAIT_SECONDS: Final = 0.5

T_contra = TypeVar("T_contra", contravariant=True)


class Outstanding(Protocol):
    """Counts what is under way to its place in the stream."""

    def expect(self) -> None:
        """Note that something is under way."""

    def wait(self, outstanding: int, *, seconds: float) -> bool:
        """Wait until no more than so many are under way; tell False where they are."""


class Reader(Protocol):
    """Reads a table in a snapshot."""

    def begin(self) -> Snapshot:
        """Begin a transaction; give its snapshot."""

    def rollback(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Feed(Generic[T_contra]):
    """Where rows go that were read. Used by one thread; `stop` ends its waits with Stopped."""

    outstanding: Outstanding
    window: Window
    offer_to: Callable[[T_contra], None]
    stop: threading.Event
    rows_per_second: int

    def open(self, reader: Reader, source: TableName) -> Opened:
        """Begin to read in a snapshot that sees all of the table that was streamed already."""
        while not self.stop.is_set():
            opened = self.window.open(source, reader.begin())
            if opened is not None:
                return opened
            reader.rollback()
            self.stop.wait(_VISIBLE_SECONDS)  # a commit that waits for a synchronous standby
        raise Stopped

    def offer(self, rows: T_contra) -> None:
        """Hand on what was read."""
        self.outstanding.expect()
        self.offer_to(rows)

    def wait(self, *, outstanding: int) -> None:
        """Wait until no more than so many are under way."""
        while not self.outstanding.wait(outstanding, seconds=_WAIT_SECONDS):
            if self.stop.is_set():
                raise Stopped

    def slow_down(self, rows: int, seconds: float) -> None:
        """Keep to the rows a second that are allowed; 0: as many as can be."""
        if self.rows_per_second:
            self.stop.wait(max(0.0, rows / self.rows_per_second - seconds))

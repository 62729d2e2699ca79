"""Stand by for the read database's lock and the slot, and end who has one and does nothing with it.

A process that is paused, or that hangs, keeps its connections and with them the lock. The write
database's server notices first: its walsender ends a client that says nothing for
`wal_sender_timeout`. Whose slot nobody reads, and whose session in the read database waits for its
client, does no work that could be lost: what it may still believe is held off by the checkpoint's
compare-and-set.

The other way round, a daemon that streams but is cut off from the read database has let go of the
lock, and cannot take it again. Who can takes the slot from it; but only from one that was seen to
hold the lock, for another one may write to another read database, by mistake or not.
"""

import logging
import time
from collections.abc import Callable
from contextlib import closing

import sqlalchemy as sa

from cdc.errors import ReadLocked, SourceError
from cdc.sink.writer import Writer
from cdc.source.connection import Connection
from cdc.source.slot import end_reader, read_slot

log = logging.getLogger(__name__)


class Standby:
    """Opens the writer once nobody else holds the slot's lock."""

    def __init__(self, connect: Callable[[], Connection], slot: str, *, seconds: float) -> None:
        """Take what opens the write database, and how long a holder of the lock may be silent."""
        self._connect = connect
        self._slot = slot
        self._seconds = seconds
        self._unread_since: float | None = None
        self._seen_locked = False
        self._unlocked_since: float | None = None

    def open(self, writer: Writer) -> sa.Connection:
        """Open the writer; raise ReadLocked while another daemon holds the lock."""
        try:
            connection = writer.open()
        except ReadLocked:
            self._seen_locked, self._unlocked_since = True, None
            if self._unread_for_long():
                writer.end_silent_holder(seconds=self._seconds)
            raise
        self._unread_since = None
        return connection

    def streams(self) -> None:
        """Note that the slot is ours: there is nothing to stand by for."""
        self._seen_locked, self._unlocked_since = False, None

    def slot_taken(self) -> None:
        """Note that the lock was free and the slot is read; end a daemon that goes on so."""
        if not self._seen_locked:
            return
        now = time.monotonic()
        if self._unlocked_since is None:
            self._unlocked_since = now
        if now - self._unlocked_since >= self._seconds:
            self._end_reader()

    def _end_reader(self) -> None:
        try:
            with closing(self._connect()) as source:
                ended = end_reader(source, self._slot)
        except SourceError:  # the next attempt says so
            return
        if ended is not None:
            log.warning(
                "ended another daemon's stream: it has left the read database's lock alone",
                extra={"slot": self._slot, "pid": ended},
            )

    def _unread_for_long(self) -> bool:
        """Tell whether nobody has streamed from the slot, look after look."""
        now = time.monotonic()
        if not self._is_unread():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        return self._unread_since is not None and now - self._unread_since >= self._seconds

    def _is_unread(self) -> bool:
        """Tell whether the slot is there and nobody streams; not where that cannot be seen."""
        try:
            with closing(self._connect()) as source:
                state = read_slot(source, self._slot)
        except SourceError:  # who holds the lock may know better
            return False
        return state is not None and not state.active and not state.lost

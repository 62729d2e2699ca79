"""Send heartbeats through the write database's WAL."""

import logging
import time

from cdc.errors import SourceNotReady
from cdc.observe.heartbeats import Heartbeats
from cdc.source import slot
from cdc.source.connection import Connection

log = logging.getLogger(__name__)


class Beat:
    """Sends a heartbeat when one is due, unless the last is still under way."""

    def __init__(self, heartbeats: Heartbeats, *, every_seconds: int) -> None:
        """Take where they are noted, and how often they are sent; 0: never."""
        self._heartbeats = heartbeats
        heartbeats.every_seconds = every_seconds
        self._every = every_seconds
        self._due = 0.0

    def send_due(self, source: Connection) -> None:
        """Send one if it is time; say once where the role may not. Raise a SourceError."""
        if not self._every or self._heartbeats.under_way or time.monotonic() < self._due:
            return
        at, clock = time.time(), time.monotonic()
        self._due = clock + self._every
        try:
            lsn = slot.heartbeat(source)
        except SourceNotReady as error:
            self._every = 0
            log.warning("no heartbeats", extra={"because": str(error), "hint": slot.MAY_EMIT})
        else:
            self._heartbeats.sent(lsn, at=at, clock=clock, now=time.monotonic())

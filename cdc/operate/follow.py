"""Watch copies being made, by a daemon that may be anywhere, or go away."""

import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Final, Protocol

import sqlalchemy as sa

from cdc.copy_state import Copy, Unit
from cdc.errors import CdcError, NothingToCopy, NotStreaming
from cdc.observe.progress import names
from cdc.settings import Settings
from cdc.sink import copies
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source import slot
from cdc.source.connection import Connection, connect

_LOOK_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 60.0
"""Longer than a daemon pauses between two attempts."""


class Display(Protocol):
    """Where progress is shown."""

    def show(self, copies: Collection[Copy]) -> None:
        """Show how far copies are."""

    def say(self, text: str) -> None:
        """Say something that is no progress."""


class Watch:
    """Looks at copies. Used by one thread at a time; connects when it looks."""

    def __init__(self, settings: Settings, units: Collection[Unit]) -> None:
        self._units = units
        self._dsn = settings.source.dsn.get_secret_value()
        self._slot = settings.source.slot
        self._engine = create_engine(settings.read.url.get_secret_value(), reading=True)
        self._read: sa.Connection | None = None
        self._source: Connection | None = None
        self._stored: dict[Unit, Copy] = {}

    @property
    def copies(self) -> list[Copy]:
        """How far they were at the last look."""
        return [self._stored[unit] for unit in self._units if unit in self._stored]

    @property
    def done(self) -> bool:
        """Tell whether nothing of them was left at the last look."""
        return bool(self._stored) and not any(copy.due for copy in self.copies)

    @property
    def others(self) -> list[Unit]:
        """What else of the slot was being copied at the last look."""
        return [u for u, copy in self._stored.items() if copy.due and u not in self._units]

    def look(self) -> None:
        """Look how far they are; raise NothingToCopy where they were dropped, or a ReadError."""
        with translated(), self.reading().begin():
            self._stored = copies.load(self.reading(), self._slot) or {}
        for unit in self._units:
            if unit not in self._stored:
                raise NothingToCopy(
                    f"the copy of {unit.source} for {unit.projector} is no longer there: the "
                    "pipeline was dropped, or its configuration changed"
                )

    def reading(self) -> sa.Connection:
        """Give the connection to the read database, which is made when first needed."""
        self._read = self._read or connect_read(self._engine)
        return self._read

    def someone_streams(self) -> bool:
        """Tell whether a daemon streams from the slot; raise a SourceError."""
        self._source = self._source or connect(self._dsn)
        state = slot.read_slot(self._source, self._slot)
        return state is not None and state.active

    def close(self) -> None:
        """Disconnect; never raise."""
        read, self._read = self._read, None
        source, self._source = self._source, None
        if source is not None:
            source.close()
        if read is not None:
            with suppress(sa.exc.SQLAlchemyError):
                read.close()


def follow(watch: Watch, display: Display, *, patience: float) -> None:
    """Show progress until the copies are done, wherever the daemon is that makes them.

    Raise NotStreaming where none has streamed for so many seconds. What passes is waited for.
    """
    attendance = Attendance(watch, display, patience)
    while True:
        trouble = _show(watch, display)
        if watch.done:
            return
        attendance.check(trouble)
        time.sleep(_LOOK_SECONDS)


def follow_here(watch: Watch, display: Display, ended: threading.Event) -> None:
    """Show progress until nothing is left to copy, or `ended` is set.

    What others ask for meanwhile is waited for too: they rely on the daemon run for this.
    """
    told = False
    while not ended.is_set():
        trouble = _show(watch, display)  # the daemon says it
        if watch.done and not trouble:
            if not watch.others:
                return
            if not told:
                told = True
                display.say(f"what is copied besides: {', '.join(names(watch.others).values())}")
        ended.wait(_LOOK_SECONDS)


def _show(watch: Watch, display: Display) -> CdcError | None:
    """Look once; give what kept it from being seen and will pass."""
    try:
        watch.look()
    except CdcError as error:
        if not error.transient:
            raise
        watch.close()
        return error
    display.show(watch.copies)
    return None


class Attendance:
    """Whether a daemon is there: it may restart, or another one take over."""

    def __init__(self, watch: Watch, display: Display, patience: float) -> None:
        self._watch = watch
        self._display = display
        self._patience = patience
        self._last_seen = time.monotonic()
        self._said: str | None = None

    def check(self, trouble: CdcError | None) -> None:
        """Say, once, what is waited for; raise NotStreaming where that is in vain.

        `trouble` is what keeps the read database from being looked at.
        """
        try:
            streams = trouble is not None or self._watch.someone_streams()
        except CdcError as error:
            if not error.transient:
                raise
            self._watch.close()
            trouble, streams = error, True  # as far as anybody can tell
        self._say(str(trouble) if trouble else None if streams else "no daemon streams")
        if streams:
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen > self._patience:
            raise NotStreaming(
                f"no daemon has streamed for {self._patience:.0f} s: the copy waits for one",
                hint="`cdc run` goes on with it; so does this command, given again",
            )

    def _say(self, what: str | None) -> None:
        if what not in {None, self._said}:
            self._display.say(f"waiting: {what} at the moment")
        self._said = what

"""Ask for copies, and watch them being made: by the daemon, for it alone writes."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Protocol

import sqlalchemy as sa

from cdc.copy_state import Copy, Purpose, Unit
from cdc.errors import CdcError, NothingToCopy, NotStreaming, SettingError
from cdc.names import TableName
from cdc.operate import setup
from cdc.projection.mirror import Mirror
from cdc.projection.registry import Registry
from cdc.settings import Settings
from cdc.sink import copies
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source import slot
from cdc.source.connection import Connection, connect

_LOOK_SECONDS: Final = 0.5
_NAMED: Final = 5  # names in a hint
PATIENCE_SECONDS: Final = 60.0  # longer than a daemon pauses between two attempts


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody names: tables (or patterns), projectors, those of both, or everything."""

    tables: tuple[TableName, ...] = ()
    projectors: tuple[str, ...] = ()
    everything: bool = False


def wanted(tables: Iterable[str], projectors: Iterable[str], *, everything: bool) -> Wanted:
    """Read what was named; raise SettingError where that is nothing, or a contradiction."""
    try:
        named = Wanted(tuple(map(TableName.parse, tables)), tuple(projectors), everything)
    except ValueError as error:
        raise SettingError(str(error), hint="give schema.table; a pattern such as shop.*") from None
    if everything and (named.tables or named.projectors):
        raise SettingError("--all copies everything: give no tables and projectors beside it")
    if not (named.tables or named.projectors or everything):
        raise SettingError(
            "there is nothing named to copy", hint="name tables, or --projector NAME, or --all"
        )
    return named


def choose(units: Collection[Unit], named: Wanted) -> list[Unit]:
    """Choose the units meant; raise SettingError for a name that none has."""
    known = sorted({unit.projector for unit in units})
    for name in named.projectors:
        if name not in known:
            raise _unknown("projector", name, known)
    served = [unit for unit in units if unit.projector in (named.projectors or known)]
    for table in named.tables:
        if not any(unit.source.matches(table) for unit in served):
            raise _unknown("table", str(table), sorted({str(unit.source) for unit in served}))
    return [
        unit
        for unit in served
        if not named.tables or any(unit.source.matches(table) for table in named.tables)
    ]


def _unknown(kind: str, name: str, known: list[str]) -> SettingError:
    near = _nearest(name, known)
    listed = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
    return SettingError(
        f"no {kind} {name} is copied here",
        hint=f"did you mean {near[0]}?" if near else f"there are: {listed}",
    )


def _nearest(name: str, known: list[str]) -> list[str]:
    """Give the name most like it, if any is; all tables of a schema begin alike."""
    near = get_close_matches(_last(name), {_last(other) for other in known})
    return get_close_matches(name, [o for o in known if _last(o) in near], n=1, cutoff=0)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for just now, and what was being copied already."""

    anew: list[Unit]
    under_way: list[Unit]

    @property
    def units(self) -> list[Unit]:
        """All that is copied now."""
        return [*self.under_way, *self.anew]


def ask(
    settings: Settings, named: Wanted, *, restart: bool, confirm: Callable[[str], None]
) -> Asked:
    """Ask the daemon, in the read database, for copies; those under way go on.

    `restart` begins those anew, too. `confirm` is told what a copy does to read rows that cannot
    be written over, and raises where that is not wanted. Raise SettingError for an unknown name,
    NothingToCopy before the first start.
    """
    with closing(connect(settings.source.dsn.get_secret_value())) as source:
        registry = setup.plan(settings, source).registry
    chosen = choose(registry.units(), named)
    stored = _stored(settings, chosen)
    anew = [unit for unit in chosen if _purpose(stored[unit], restart=restart)]
    if appended := [unit for unit in anew if _appends(registry, unit)]:
        confirm(_emptied(registry, appended))
    return _ask(settings, registry, chosen, restart=restart)


def _stored(settings: Settings, units: Iterable[Unit]) -> dict[Unit, Copy]:
    """Look at the copies there are; raise NothingToCopy where a unit has none."""
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)
    with closing(connect_read(engine)) as read, translated(), read.begin():
        stored = copies.load(read, settings.source.slot)
    if not stored:
        raise NothingToCopy(
            f"slot {settings.source.slot} is not set up in this read database",
            hint="`cdc run` sets it up, copies and streams; `cdc setup` sets it up alone",
        )
    for unit in units:
        if unit not in stored:
            raise NothingToCopy(
                f"{unit.source} for {unit.projector} is new in the configuration",
                hint="start the daemon again: it copies what is new",
            )
    return stored


def _ask(settings: Settings, registry: Registry, units: list[Unit], *, restart: bool) -> Asked:
    """Ask for all in one transaction."""
    name = settings.source.slot
    asked = Asked([], [])
    engine = create_engine(settings.read.url.get_secret_value())
    with closing(connect_read(engine)) as read, translated(), read.begin():
        stored = copies.load(read, name) or {}
        for unit in units:
            purpose = _purpose(stored[unit], restart=restart)
            if purpose is None:
                asked.under_way.append(unit)
                continue
            passes = 1 + registry.shared(unit)
            copies.ask(read, name, unit, purpose=purpose, passes=passes)
            asked.anew.append(unit)
    return asked


def _purpose(copy: Copy, *, restart: bool) -> Purpose | None:
    """Give what to ask for; None where a copy under way is to go on.

    A first copy of which nothing was written cannot begin any more anew than it will.
    """
    if copy.due and (not restart or not copy.begun):
        return None
    return "resync" if copy.due and copy.purpose == "resync" else "again"


def _appends(registry: Registry, unit: Unit) -> bool:
    projector = registry.projector(unit.projector)
    return isinstance(projector, Mirror) and projector.settings.insert_only


def _emptied(registry: Registry, units: list[Unit]) -> str:
    tables = [table.name for unit in units for table in registry.projector(unit.projector).into]
    return (
        f"{', '.join(str(unit.source) for unit in units)}: mirrored with insert_only, whose rows "
        f"have no key to be written over by. All rows of {', '.join(tables)} in the read database "
        "are deleted and those of the source appended, in one transaction; rows the source no "
        "longer has are gone after it"
    )


# Watching.


class Display(Protocol):
    """Where progress is shown."""

    def show(self, copies: Collection[Copy]) -> None:
        """Show how far copies are."""

    def say(self, text: str) -> None:
        """Say something that is no progress."""


class Watch:
    """Looks at copies that were asked for. Used by one thread at a time; connects when it looks."""

    def __init__(self, settings: Settings, units: Collection[Unit]) -> None:
        self._units = units
        self._dsn = settings.source.dsn.get_secret_value()
        self._slot = settings.source.slot
        self._engine = create_engine(settings.read.url.get_secret_value(), reading=True)
        self._read: sa.Connection | None = None
        self._source: Connection | None = None
        self.copies: list[Copy] = []

    @property
    def done(self) -> bool:
        """Tell whether nothing was left at the last look."""
        return bool(self.copies) and not any(copy.due for copy in self.copies)

    def look(self) -> list[Copy]:
        """Look how far they are; raise NothingToCopy where they were dropped, or a ReadError."""
        self._read = self._read or connect_read(self._engine)
        with translated(), self._read.begin():
            stored = copies.load(self._read, self._slot) or {}
        self.copies = [self._found(unit, stored) for unit in self._units]
        return self.copies

    def _found(self, unit: Unit, stored: Mapping[Unit, Copy]) -> Copy:
        if unit not in stored:
            raise NothingToCopy(
                f"the copy of {unit.source} for {unit.projector} is no longer there: the pipeline "
                "was dropped, or its configuration changed"
            )
        return stored[unit]

    def someone_streams(self) -> bool:
        """Tell whether a daemon streams from the slot; raise a SourceError."""
        self._source = self._source or connect(self._dsn)
        state = slot.read_slot(self._source, self._slot)
        return state is not None and state.active

    def close(self) -> None:
        """Disconnect; never raise."""
        for connection in (self._read, self._source):
            if connection is not None:
                _close(connection)
        self._read = self._source = None


def _close(connection: sa.Connection | Connection) -> None:
    with suppress(sa.exc.SQLAlchemyError):
        connection.close()


def follow(
    watch: Watch, display: Display, *, ended: threading.Event, patience: float | None = None
) -> bool:
    """Show progress until the copies are done, or `ended` is set; tell whether they are done.

    With `patience`, raise NotStreaming where no daemon has streamed for so many seconds. What
    passes by itself is waited for.
    """
    attendance = Attendance(watch, display, patience)
    trouble = None
    while not ended.is_set():
        try:
            display.show(watch.look())
            if watch.done:
                return True
            attendance.check()
            trouble = None
        except CdcError as error:
            if not error.transient:
                raise
            watch.close()
            attendance.unknown()
            if patience is not None and str(error) != trouble:
                trouble = str(error)
                display.say(f"waiting: {error}")
        ended.wait(_LOOK_SECONDS)
    return False


class Attendance:
    """Whether somebody copies: a daemon may restart, or another one take over."""

    def __init__(self, watch: Watch, display: Display, patience: float | None) -> None:
        self._watch = watch
        self._display = display
        self._patience = patience
        self._last_seen = time.monotonic()
        self._said = False

    def unknown(self) -> None:
        """Note that nobody can tell."""
        self._last_seen = time.monotonic()

    def check(self) -> None:
        """Look for a daemon; say so where there is none, and raise NotStreaming in the end."""
        if self._patience is None:
            return
        if self._watch.someone_streams():
            self._last_seen, self._said = time.monotonic(), False
            return
        if time.monotonic() - self._last_seen > self._patience:
            raise NotStreaming(
                f"no daemon has streamed for {self._patience:.0f} s: the copy waits for one",
                hint="`cdc run` goes on with it. So does this command, given again",
            )
        if not self._said:
            self._said = True
            self._display.say("waiting: no daemon streams at the moment")

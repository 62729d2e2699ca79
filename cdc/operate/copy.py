"""Ask the daemon for copies, through the read database: it alone writes rows."""

from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from cdc.copy_state import Copy, Purpose, Unit
from cdc.errors import NothingToCopy, SettingError
from cdc.names import TableName
from cdc.operate import setup
from cdc.projection.registry import Registry
from cdc.settings import Settings
from cdc.sink import copies
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source.connection import connect

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
    if appended := [unit for unit in anew if registry.appends(unit)]:
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
                hint="start the daemon again: it takes up what is new",
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


def _emptied(registry: Registry, units: list[Unit]) -> str:
    tables = [table.name for unit in units for table in registry.projector(unit.projector).into]
    return (
        f"{', '.join(str(unit.source) for unit in units)}: mirrored with insert_only, whose rows "
        f"have no key to be written over by. All rows of {', '.join(tables)} in the read database "
        "are deleted and those of the source appended, in one transaction; rows the source no "
        "longer has are gone after it"
    )

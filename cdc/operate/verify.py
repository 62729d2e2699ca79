"""Ask for the read tables to be compared, and say what was found: the daemon compares."""

from collections.abc import Collection
from contextlib import closing

from cdc.copy_state import Unit
from cdc.errors import NothingToCopy, SettingError
from cdc.operate import setup
from cdc.projection.mirror import Mirror
from cdc.projection.registry import Registry
from cdc.settings import Settings
from cdc.sink import verifications
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source.connection import connect
from cdc.verify_state import WHOLE, Verification

NOT_COMPARED = "not compared: insert_only, its rows have no key"


def ask(
    settings: Settings, projectors: Collection[str], *, sample: float = WHOLE, repair: bool = False
) -> list[Unit]:
    """Ask the daemon, in the read database, for what projectors write to be compared; all: none.

    What is being compared in the same way goes on. Give what is compared. Raise SettingError for an
    unknown projector or a sample that is none, NothingToCopy before the first start.
    """
    if not 0 < sample <= WHOLE:
        raise SettingError(
            f"--sample {sample:g} is no share", hint="give a percentage: above 0, at most 100"
        )
    with closing(connect(settings.source.dsn.get_secret_value())) as source:
        registry = setup.plan(settings, source).registry
    units = _chosen(registry, projectors)
    name = settings.source.slot
    engine = create_engine(settings.read.url.get_secret_value())
    with closing(connect_read(engine)) as read, translated(), read.begin():
        if not verifications.exist(read):
            raise NothingToCopy(
                f"slot {name} is not set up in this read database",
                hint="`cdc run` sets it up, copies and streams; `cdc setup` sets it up alone",
            )
        stored = verifications.load(read, name)
        for unit in units:
            wanted = _wanted(registry, unit, sample=sample, repair=repair)
            if not _is_under_way(stored.get(unit), wanted):
                verifications.ask(read, name, wanted)
    return units


def _chosen(registry: Registry, projectors: Collection[str]) -> list[Unit]:
    known = sorted({projector.name for projector in registry.projectors})
    for name in projectors:
        if name not in known:
            raise SettingError(
                f"there is no projector {name}", hint=f"there are: {', '.join(known)}"
            )
    return [u for u in registry.units() if not projectors or u.projector in projectors]


def _wanted(registry: Registry, unit: Unit, *, sample: float, repair: bool) -> Verification:
    projector = registry.projector(unit.projector)
    if isinstance(projector, Mirror) and projector.settings.insert_only:
        return Verification(unit, phase="done", sample=sample, repair=repair, note=NOT_COMPARED)
    return Verification(unit, sample=sample, repair=repair)


def _is_under_way(stored: Verification | None, wanted: Verification) -> bool:
    if stored is None or not stored.due:
        return False
    return (stored.sample, stored.repair) == (wanted.sample, wanted.repair)

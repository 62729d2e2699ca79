"""Which copies there are to be, by what is configured and what is stored."""

import logging

import sqlalchemy as sa
from msgspec.structs import replace

from cdc.copy_state import Copy, Unit
from cdc.projection.registry import Registry
from cdc.sink import copies

log = logging.getLogger(__name__)


def settle(
    connection: sa.Connection, slot: str, registry: Registry, *, enabled: bool, first: bool
) -> dict[Unit, Copy]:
    """Fit what is stored of copies to the projectors there are now, and give it.

    Units that nobody wants any more are forgotten; new ones wait to be copied, or are skipped where
    copying is not enabled. `first`: nothing has been streamed yet, and what was stored is of
    another life of the slot, unless a resync has asked for it. Otherwise a slot of which no copies
    are stored has been streaming since before there were any: its units have their rows, and are
    skipped.

    Call it in the transaction that stores the first checkpoint: a checkpoint without copies is
    taken for such a slot.
    """
    wanted = registry.units()
    resync = first and _is_resync(connection, slot)
    if first:
        copies.forget(connection, slot)
    stored = copies.load(connection, slot) or {}
    _forget(connection, slot, [copy for unit, copy in stored.items() if unit not in wanted])
    before_copies = not first and not stored
    new = [unit for unit in wanted if unit not in stored]
    copying = enabled and not before_copies
    for unit in new:
        if resync:
            copy = Copy(unit, purpose="resync")
        elif not copying:
            copy = Copy(unit, state="skipped")
        elif _is_filled(connection, registry, unit):
            copy = _over_rows(registry, unit, first=first)
        else:
            copy = Copy(unit)
        copies.add(connection, slot, [replace(copy, passes=1 + registry.shared(unit))])
    if before_copies:
        log.info(
            "rows from before are not copied, for streaming began long ago: `cdc copy --all` does",
            extra={"slot": slot},
        )
    return copies.load(connection, slot) or {}


def _is_resync(connection: sa.Connection, slot: str) -> bool:
    """Tell whether a resync has asked for copies that are not begun: all are, in one commit."""
    stored = (copies.load(connection, slot) or {}).values()
    return any(copy.purpose == "resync" and copy.state == "waiting" for copy in stored)


def _forget(connection: sa.Connection, slot: str, gone: list[Copy]) -> None:
    copies.forget(connection, slot, [copy.unit for copy in gone])
    for copy in gone:
        if copy.due:
            log.warning(
                "a copy that was not done is forgotten: nothing is configured for it any more",
                extra={"table": str(copy.unit.source), "projector": copy.unit.projector},
            )


def _over_rows(registry: Registry, unit: Unit, *, first: bool) -> Copy:
    """Give the copy of a unit whose read table has rows already, and say what it means.

    Rows without a key would be doubled, or what the source has deleted lost with them. The others
    get the stream's changes from the beginning where something was streamed before: it may be a
    table that was renamed, with deletes pending.
    """
    named = {"table": str(unit.source), "projector": unit.projector}
    if registry.appends(unit):
        log.warning(
            "rows from before are not copied, for the read table has rows already, which have no "
            "key: `cdc copy` replaces them",
            extra=named,
        )
        return Copy(unit, state="skipped")
    log.warning(
        "a read table that is about to be copied has rows already: those whose source rows are "
        "gone may stay; `cdc verify` lists them",
        extra=named,
    )
    return Copy(unit, purpose="first" if first else "resync")


def _is_filled(connection: sa.Connection, registry: Registry, unit: Unit) -> bool:
    return any(_has_rows(connection, table) for table in registry.projector(unit.projector).into)


def _has_rows(connection: sa.Connection, table: sa.Table) -> bool:
    if not sa.inspect(connection).has_table(table.name, table.schema):
        return False
    query = sa.select(sa.literal(1)).select_from(table).limit(1)
    return connection.execute(query).first() is not None

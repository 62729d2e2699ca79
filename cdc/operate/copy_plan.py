"""Which copies there are to be, by what is configured and what is stored."""

import logging

import sqlalchemy as sa

from cdc.copy_state import Copy, State, Unit
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
    copies.forget(connection, slot, [unit for unit in stored if unit not in wanted])
    before_copies = not first and not stored
    state: State = "waiting" if resync or (enabled and not before_copies) else "skipped"
    added = [
        Copy(
            unit,
            purpose="resync" if resync else "first",
            state=state,
            passes=1 + registry.shared(unit),
        )
        for unit in wanted
        if unit not in stored
    ]
    copies.add(connection, slot, added)
    if state == "waiting" and not resync:
        _tell_filled(connection, registry, {copy.unit.projector for copy in added})
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


def _tell_filled(connection: sa.Connection, registry: Registry, projectors: set[str]) -> None:
    """Say where a first copy may leave rows that the source has not any more."""
    tables = {table for name in projectors for table in registry.projector(name).into}
    inspector = sa.inspect(connection)
    for table in sorted(tables, key=lambda table: table.fullname):
        if not inspector.has_table(table.name, table.schema):
            continue
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            log.warning(
                "a read table that is about to be copied has rows already: those whose source rows "
                "are gone may stay; `cdc verify` lists them",
                extra={"table": table.fullname},
            )

"""The read database: its server, the role's rights, the lock, the read tables."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import sqlalchemy as sa

from cdc.finding import Finding
from cdc.operate import schema_change, setup
from cdc.operate.check.examination import Examination, of_error
from cdc.projection.mirror import Mirror
from cdc.schema import SourceTable
from cdc.settings import Settings
from cdc.sink import privileges, server_settings, source_columns, tables
from cdc.sink.dialects import sink_of
from cdc.sink.engine import translated
from cdc.source.slot import SlotState

T = TypeVar("T")


def examine(
    found: Examination,
    settings: Settings,
    read: sa.Connection,
    *,
    plan: setup.Plan | None,
    state: SlotState | None,
) -> None:
    """Look at all of it; without a plan, at the daemon's own tables alone."""

    def attempt(step: Callable[[], T]) -> T | None:
        def in_a_transaction() -> T:
            with translated(), read.begin() as looked:
                done = step()
                looked.rollback()  # temporary tables are made: nothing may stay, or be waited for
                return done

        if read.closed or read.invalidated:
            return None
        return found.attempt(in_a_transaction, read, why="it is written to")

    wanted = [*setup.BOOKKEEPING, *(plan.registry.read_tables if plan else ())]
    attempt(lambda: found.add(server_settings.lacks(read)))
    if state is None or not state.active:
        found.attempt(lambda: found.add(_lock(settings, read)), read, why="it is written to")
    attempt(lambda: tables.require_definable(read, wanted))
    absent = attempt(lambda: tables.missing(read, wanted))
    if absent is None:
        return
    present = [table for table in wanted if table not in absent]
    lacks = attempt(lambda: privileges.lacks(read, absent, present)) or []
    found.add(lacks)
    for mirror, source in plan.mirrored if plan else ():
        fits = attempt(partial(_fits, settings, read, (mirror, source)))
        if not fits:  # told already, or the daemon adds the columns
            present = [table for table in present if table is not mirror.table]
    if privileges.may_stage(lacks):
        attempt(lambda: found.add(_misfits(read, present)))


def _lock(settings: Settings, read: sa.Connection) -> list[Finding]:
    """Find who holds the lock while nobody streams from the slot."""
    with translated():
        held = sink_of(read).holding(settings.source.slot)
    if held is None:
        return []
    what = f"{held.who} holds the lock of slot {settings.source.slot}, and nobody streams from it"
    why = "a daemon that starts stands by for it: it may be one that is paused, or that hangs"
    finding = Finding("read_lock", what, why, held.ended_by, blocks=False)
    is_sql = read.dialect.name != "sqlite"
    return [replace(finding, where="read", sql=(held.ended_by,)) if is_sql else finding]


def _fits(settings: Settings, read: sa.Connection, mirrored: tuple[Mirror, SourceTable]) -> bool:
    """Tell whether a read table is as its source is by now; raise SchemaChanged."""
    known = source_columns.load(read, settings.source.slot)
    follow = settings.projection.follow_schema
    return not schema_change.fit(read, [mirrored], known, follow=follow)


def _misfits(read: sa.Connection, present: Sequence[sa.Table]) -> list[Finding]:
    return [
        replace(of_error(misfit, why="rows would not fit"), name="read_table")
        for misfit in tables.misfits(read, present)
    ]

"""What streaming takes: a walsender, the plugin, a free slot, a position that fits."""

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from cdc.errors import CdcError, SourceError
from cdc.finding import Finding
from cdc.operate import budget, setup
from cdc.operate.check.examination import Examination, bounded, of_error, replication
from cdc.settings import Settings
from cdc.source import server_settings, slot
from cdc.source.connection import Connection, translated

_ATTEMPT_MILLISECONDS: Final = 2000
_WHY: Final = "streaming needs it"
# SQLSTATEs, as our errors end with them.
_FULL: Final = "(53400)"
_FORBIDDEN: Final = "(42501)"
_UNDECODABLE: Final = {"wal_level", "output_plugin_libraries", "replication_slots"}


def examine(
    found: Examination,
    settings: Settings,
    source: Connection,
    *,
    server: server_settings.Settings,
    read: sa.Connection | None,
) -> slot.SlotState | None:
    """Look at the server, try what streaming takes; give the slot as it is now."""
    plugin, name = settings.source.plugin, settings.source.slot
    found.attempt(
        lambda: found.add(server_settings.lacks(source, server, plugin)), source, why=_WHY
    )
    if found.attempt(lambda: _is_standby(source), source, why=_WHY):
        found.add([_STANDBY])
        return None
    state = found.attempt(lambda: slot.read_slot(source, name), source, why=_WHY)
    if state is None:
        found.attempt(lambda: found.add(server_settings.no_slot(source, server)), source, why=_WHY)
    found.add(_threats(state, settings, int(server["max_wal_size"])))
    if source.closed:
        return state
    try:
        with replication(settings) as walsender:
            _try(found, settings, (source, walsender), state=state, read=read)
    except SourceError as error:
        lacks = [*server_settings.may_not_replicate(source)]
        # While the daemon streams, it is the one that has a walsender.
        if state is None or not state.active:
            lacks += server_settings.no_walsender(source, server)
        found.add(lacks or [of_error(error, why=_WHY)])
    return state


_STANDBY: Final = Finding(
    "write_standby",
    "the write database is a standby",
    "changes are streamed from the primary; a standby is waited for until it is promoted",
    "let source.dsn name the primary, or several hosts and target_session_attrs=read-write",
)


def _is_standby(source: Connection) -> bool:
    with translated():
        row = source.execute("select pg_is_in_recovery()").fetchone()
    return bool(row and row[0])


def _try(
    found: Examination,
    settings: Settings,
    connections: tuple[Connection, Connection],
    *,
    state: slot.SlotState | None,
    read: sa.Connection | None,
) -> None:
    source, walsender = connections
    if read is not None:
        found.attempt(
            lambda: setup.examine(settings, source=source, replication=walsender, read=read),
            *(source, walsender, read),
            why="starting here would lose changes",
        )
    if not _UNDECODABLE & {finding.name for finding in found.all}:
        plugin = settings.source.plugin
        try:
            with bounded(walsender):
                slot.try_plugin(walsender, plugin, milliseconds=_ATTEMPT_MILLISECONDS)
        except SourceError as error:
            # Where the slot is there, a second one need not be to be had.
            if state is None or not str(error).endswith(_FULL):
                found.add([_of_plugin(error, source, plugin)])


def _of_plugin(error: CdcError, source: Connection, plugin: str) -> Finding:
    if str(error).endswith(_FORBIDDEN):
        return server_settings.not_allowed(source, plugin)
    remedy = error.hint or "see the message"
    return Finding("plugin", str(error), "the slot decodes with it", remedy, where="write")


def _threats(
    state: slot.SlotState | None, settings: Settings, max_wal_size: int
) -> Iterator[Finding]:
    threat = budget.threat(state.wal_status) if state else None
    if state is None or threat is None:
        return
    what = f"slot {settings.source.slot} is {state.wal_status}: {threat}"
    why = "a slot that is lost takes a copy of everything"
    if state.wal_status == "unreserved":
        limit = server_settings.roomy(max_wal_size)
        yield Finding.by_sql("slot_budget", what, why, *limit, where="write", blocks=False)
    else:
        mend = "see that the daemon runs, and what it waits for (`cdc status`)"
        yield Finding("slot_behind", what, why, mend, blocks=False)

"""The replication slot and its server: what they are, how they come and go."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from cdc.errors import SourceNotReady, SourceUnavailable
from cdc.lsn import Lsn
from cdc.snapshot import Snapshot
from cdc.source.connection import Connection, translated

_SLOT: Final = """
select plugin, database, active, active_pid, wal_status,
       confirmed_flush_lsn - '0/0'::pg_lsn as confirmed_flush,
       restart_lsn - '0/0'::pg_lsn as restart, safe_wal_size,
       (to_jsonb(s) ->> 'failover')::bool as failover
from pg_replication_slots s where slot_name = %s
"""

_FAILOVER_SINCE: Final = 17_00_00
_PEEK: Final = sql.SQL(
    "select from pg_logical_slot_peek_changes('cdc_check', null, 1, 'format-version', '2', {})"
)


@dataclass(frozen=True, slots=True)
class SlotState:
    """A row of pg_replication_slots; positions in bytes."""

    plugin: str | None
    database: str | None
    active: bool
    active_pid: int | None
    wal_status: str | None
    confirmed_flush: int | None
    restart: int | None
    safe_wal_size: int | None
    failover: bool | None = None  # None: before PostgreSQL 17

    @property
    def lost(self) -> bool:
        """Tell whether the server has removed WAL that the slot needs."""
        return self.wal_status == "lost" or self.restart is None


@dataclass(frozen=True, slots=True)
class System:
    """Which server, on which timeline, and how far its WAL goes."""

    identifier: str
    timeline: int
    wal_lsn: Lsn
    database: str


def read_slot(connection: Connection, slot: str) -> SlotState | None:
    """Look the slot up; None where there is none. Raise a SourceError."""
    with translated(), connection.cursor(row_factory=class_row(SlotState)) as cursor:
        return cursor.execute(_SLOT, [slot]).fetchone()


def identify(replication: Connection) -> System:
    """Ask a walsender what it is; raise a SourceError."""
    with translated():
        row = replication.execute("IDENTIFY_SYSTEM").fetchone()
    assert row is not None  # noqa: S101  IDENTIFY_SYSTEM always answers with one row
    return System(row[0], int(row[1]), Lsn.parse(row[2]), row[3])


def require_primary(connection: Connection) -> None:
    """Raise SourceUnavailable where the server is a standby: it may be about to be promoted."""
    with translated():
        row = connection.execute("select pg_is_in_recovery()").fetchone()
    if row is not None and row[0]:
        raise SourceUnavailable("write database: it is a standby, which has not been promoted")


def end_of_timeline(replication: Connection, system: System, timeline: int) -> Lsn | None:
    """Say where the server left an earlier timeline; None where it was never on it.

    Raise a SourceError.
    """
    with translated():
        query = sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(system.timeline))
        row = replication.execute(query).fetchone()
    assert row is not None  # noqa: S101  it answers with one row, or an error
    content = row[1] if isinstance(row[1], str) else bytes(row[1]).decode()
    return _ends(content).get(timeline)


def _ends(history: str) -> dict[int, Lsn]:
    """Read a timeline's history file: timeline, where it was left, and why, in each line."""
    lines = (line.split("\t") for line in history.splitlines() if line[:1].isdigit())
    return {int(parts[0]): Lsn.parse(parts[1]) for parts in lines}


def require_failover(connection: Connection) -> None:
    """Raise SourceNotReady where the server's slots cannot be carried along to standbys."""
    version = connection.info.server_version
    if version < _FAILOVER_SINCE:
        raise SourceNotReady(
            f"source.failover is set, and the write database is PostgreSQL {version // 10_000}",
            hint="failover slots come with PostgreSQL 17: upgrade, or set source.failover = false; "
            "then `cdc resync` is what is left after a failover",
        )


def carry_along(replication: Connection, slot: str) -> None:
    """Have a slot that nobody reads carried along to the standbys; raise a SourceError."""
    statement = sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)")
    with translated():
        replication.execute(statement.format(sql.Identifier(slot)))


def try_plugin(replication: Connection, plugin: str, *, milliseconds: int) -> None:
    """Try to decode with the plugin, by a slot that goes with the connection.

    Raise a SourceError where the plugin or a slot is not to be had. Transactions that are
    writing are waited for that long, and no longer: by then the plugin has been loaded.
    """
    statement = sql.SQL("CREATE_REPLICATION_SLOT cdc_check TEMPORARY LOGICAL {} NOEXPORT_SNAPSHOT")
    with translated():
        replication.execute(f"set lock_timeout = {milliseconds}")
        try:
            replication.execute(statement.format(sql.Identifier(plugin)))
        except psycopg.errors.LockNotAvailable:
            return


def knows_options(replication: Connection, options: Mapping[str, str]) -> bool:
    """Tell whether the plugin that `try_plugin` has tried knows these options.

    Raise a SourceError.
    """
    pairs = sql.SQL(", ").join(map(sql.Literal, chain.from_iterable(options.items())))
    with translated():
        try:
            replication.execute(_PEEK.format(pairs))
        except psycopg.errors.InvalidParameterValue:
            return False
        except psycopg.errors.UndefinedObject:  # no slot: transactions that write were waited for
            return False
    return True


def drop_slot(connection: Connection, slot: str) -> None:
    """Drop the slot; raise SlotActive while somebody streams from it."""
    with translated():
        connection.execute("select pg_drop_replication_slot(%s)", [slot])


def current_lsn(connection: Connection) -> Lsn:
    """Give the position of the end of the WAL; raise a SourceError."""
    with translated():
        row = connection.execute("select pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
    return Lsn(row[0] if row else 0)


def current_snapshot(connection: Connection) -> Snapshot:
    """Give the snapshot of now: what is read later sees at least as much. Raise a SourceError."""
    with translated():
        row = connection.execute("select pg_current_snapshot()::text").fetchone()
    assert row is not None  # noqa: S101  a select without from gives one row
    return Snapshot.parse(row[0])


def mark_now(connection: Connection) -> Lsn:
    """Write a message into the WAL and give its position.

    A checkpoint at or past it has every transaction that committed before.
    """
    with translated():
        row = connection.execute(
            "select pg_logical_emit_message(true, 'cdc', 'mark') - '0/0'::pg_lsn"
        ).fetchone()
    return Lsn(row[0] if row else 0)

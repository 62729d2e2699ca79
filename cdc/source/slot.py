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

# A walsender that waits says for what; rights on pg_stat_replication are not needed for this.
_SAMPLE: Final = """
select (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint as wal,
       s.wal_status, s.safe_wal_size,
       (pg_current_wal_lsn() - s.restart_lsn)::bigint as retained,
       (s.confirmed_flush_lsn - '0/0'::pg_lsn)::bigint as confirmed,
       coalesce(s.active, false) as active,
       coalesce(a.state = 'active' and coalesce(a.wait_event_type = 'IO', true), false) as decoding
from (select) one
left join pg_replication_slots s on s.slot_name = %s
left join pg_stat_activity a on a.pid = s.active_pid
"""

# Transactional: it is flushed at once, and both plugins deliver it with its commit. It waits for no
# standby, as a commit of the application's may for ever.
_HEARTBEAT: Final = """
select pg_logical_emit_message(true, 'cdc', 'heartbeat') - '0/0'::pg_lsn,
       set_config('synchronous_commit', 'local', true)
"""
MAY_EMIT: Final = "grant execute on function pg_logical_emit_message(boolean, text, text) to ..."

_END_READER: Final = """
select a.pid, pg_terminate_backend(a.pid)
from pg_replication_slots s join pg_stat_activity a on a.pid = s.active_pid
where s.slot_name = %s and pg_has_role(a.usesysid, 'usage')
  and a.application_name = current_setting('application_name')
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
        raise SourceUnavailable(
            "write database: it is a standby, which has not been promoted",
            hint="promote it, or let source.dsn name the primary",
        )


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


@dataclass(frozen=True, slots=True)
class Sample:
    """How the write database stands: the end of its WAL, and what it says of the slot.

    `decoding` tells that it is at work on what it is going to send.
    """

    wal: int
    wal_status: str | None
    safe_wal_size: int | None
    retained: int | None
    decoding: bool
    active: bool = False
    confirmed: int | None = None


def sample(connection: Connection, slot: str) -> Sample:
    """Look at WAL and slot; raise a SourceError."""
    with translated(), connection.cursor(row_factory=class_row(Sample)) as cursor:
        found = cursor.execute(_SAMPLE, [slot]).fetchone()
    assert found is not None  # noqa: S101  one row, joined from the left
    return found


def system_identifier(connection: Connection) -> str | None:
    """Give what tells one cluster from another; None where it is not to be told to us."""
    try:
        with translated():
            row = connection.execute("select system_identifier from pg_control_system()").fetchone()
    except SourceNotReady:
        return None
    return str(row[0]) if row else None


def end_reader(connection: Connection, slot: str) -> int | None:
    """End the session that streams from the slot, if it is a daemon like us; give its process.

    That is one of a role and an application name that are ours, too. Raise a SourceError.
    """
    with translated():
        row = connection.execute(_END_READER, [slot]).fetchone()
    return row[0] if row else None


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


def heartbeat(connection: Connection) -> Lsn:
    """Write a heartbeat into the WAL; a checkpoint past the position given covers it.

    Raise SourceNotReady where the role may not, or another SourceError.
    """
    with translated():
        row = connection.execute(_HEARTBEAT).fetchone()
    return Lsn(row[0] if row else 0)


def mark_now(connection: Connection) -> Lsn:
    """Write a message into the WAL and give its position.

    A checkpoint at or past it has every transaction that committed before.
    """
    with translated():
        row = connection.execute(
            "select pg_logical_emit_message(true, 'cdc', 'mark') - '0/0'::pg_lsn"
        ).fetchone()
    return Lsn(row[0] if row else 0)

"""Create the replication slot, and tell which transactions keep it waiting."""

import logging
import select
import time
from contextlib import suppress
from typing import Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import class_row

from cdc.errors import SlotBlocked
from cdc.lsn import Lsn
from cdc.source.connection import Connection, translated

log = logging.getLogger(__name__)

_CREATE: Final = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL {} NOEXPORT_SNAPSHOT")
_LOOK_SECONDS: Final = 2.0
_SAY_SECONDS: Final = 10.0
_CANCEL_SECONDS: Final = 5
_NAMED: Final = 5  # transactions in a message

# Any role may see all of pg_locks, and xact_start of its own sessions alone. Subtransactions have
# ids of their own; a prepared transaction has no process.
_WRITING: Final = """
with ids as materialized (
    select pid, virtualtransaction, transactionid, mode, granted
    from pg_locks where locktype = 'transactionid'
), writing as (
    select pid, virtualtransaction, array_agg(transactionid) as ids
    from ids where granted and mode = 'ExclusiveLock' and pid is distinct from pg_backend_pid()
    group by pid, virtualtransaction
)
select w.virtualtransaction as identity, w.pid, p.gid,
       extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 as age,
       exists (
           select from ids i where i.pid = %s and not i.granted and i.transactionid = any(w.ids)
       ) as awaited
from writing w
left join pg_stat_activity a on a.pid = w.pid
left join pg_prepared_xacts p on w.pid is null and p.transaction = any(w.ids)
order by age desc nulls last, w.pid
"""


class Writing(NamedTuple):
    """A transaction that writes: of a session, or a prepared one, which has a name instead.

    `age` is in seconds; None where the role may not see it. `awaited`: the slot waits for it now.
    """

    identity: str
    pid: int | None
    gid: str | None
    age: float | None
    awaited: bool

    def __str__(self) -> str:
        whose = f'prepared transaction "{self.gid}"' if self.pid is None else f"process {self.pid}"
        return whose if self.age is None else f"{whose} ({self.age:.0f} s)"

    @property
    def ending(self) -> str:
        """The statement that ends it."""
        if self.pid is None:
            return f"rollback prepared '{self.gid}'"
        return f"select pg_terminate_backend({self.pid})"


def create_slot(
    replication: Connection, slot: str, plugin: str, *, source: Connection, seconds: float
) -> Lsn:
    """Create the slot and give its consistent point: where streaming begins.

    It waits for every transaction that is writing, and says which, as seen by `source`. Raise
    SlotBlocked, with no slot left behind, where they take longer than so many seconds; 0 waits for
    ever. Raise a SourceError; where the replication connection is closed then, the slot may be
    there all the same, or may still come to be.
    """
    statement = _CREATE.format(sql.Identifier(slot), sql.Identifier(plugin))
    wait = _Wait(source, replication.info.backend_pid, slot=slot, limit=seconds)
    with translated():
        _let_the_server_notice(replication, seconds)
        wait.begin()
        replication.pgconn.send_query(statement.as_bytes(replication))
        lsn = _consistent_point(_result(replication, wait), wait)
        replication.execute("reset client_connection_check_interval")
        replication.execute("set lock_timeout = 0")
    return lsn


def _let_the_server_notice(replication: Connection, seconds: float) -> None:
    """Have the server give up by itself where we are gone: killed, or cut off.

    Replication commands do not start the timer that checks the connection. It is started by
    statements, here the last one, and goes on in the command that comes after (postgres.c,
    start_xact_command and ProcessInterrupts). lock_timeout is of each transaction waited for.
    """
    with suppress(psycopg.errors.InvalidParameterValue):  # not every platform can
        replication.execute("set client_connection_check_interval = '2s'")
    lock_timeout = int((seconds + _CANCEL_SECONDS) * 1000) if seconds else 0
    replication.execute(f"set lock_timeout = {lock_timeout}")


def _result(replication: Connection, wait: "_Wait") -> PGresult | None:
    """Wait for the answer; whatever ends that ends the creation, unless it is done by then."""
    try:
        while not _answered(replication.pgconn, seconds=wait.pause()):
            wait.look()
    except Exception:
        result = _cancelled(replication)
        if result is None or result.status != ExecStatus.TUPLES_OK:
            raise
        return result
    except BaseException:
        _cancelled(replication)
        raise
    return _take(replication.pgconn)


def _answered(pgconn: PGconn, *, seconds: float) -> bool:
    """Wait for the answer, at most so long; tell whether it is there."""
    deadline = time.monotonic() + seconds
    pgconn.flush()
    while pgconn.is_busy():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        readable, _, _ = select.select([pgconn.socket], [], [], left)
        if readable:
            pgconn.consume_input()
    return True


def _take(pgconn: PGconn) -> PGresult | None:
    """Take the answer, and the end that follows it."""
    result = pgconn.get_result()
    while result is not None and pgconn.get_result() is not None:
        pass
    return result


def _cancelled(replication: Connection) -> PGresult | None:
    """Cancel the creation and give its answer; where none comes, close and give None."""
    with suppress(psycopg.Error):
        replication.cancel_safe(timeout=_CANCEL_SECONDS)
        if _answered(replication.pgconn, seconds=_CANCEL_SECONDS):
            return _take(replication.pgconn)
    replication.close()
    return None


def _consistent_point(result: PGresult | None, wait: "_Wait") -> Lsn:
    if result is None:
        raise psycopg.OperationalError("the server did not answer")
    if result.status != ExecStatus.TUPLES_OK:
        error = psycopg.errors.error_from_result(result)
        if isinstance(error, psycopg.errors.LockNotAvailable):  # we were held up
            wait.look()
        raise error
    return Lsn.parse((result.get_value(0, 1) or b"").decode())


class _Wait:
    """How long a slot's creation has been waiting, and for whom."""

    def __init__(self, source: Connection, walsender: int, *, slot: str, limit: float) -> None:
        self._source = source
        self._walsender = walsender
        self._slot = slot
        self._limit = limit
        self._before: set[str] = set()
        self._blocking: list[Writing] = []
        self._began = self._said = time.monotonic()

    def begin(self) -> None:
        """Note who is writing before the creation begins."""
        self._before = {writing.identity for writing in self._writing()}
        self._began = time.monotonic()

    def _writing(self) -> list[Writing]:
        with self._source.cursor(row_factory=class_row(Writing)) as cursor:
            return cursor.execute(_WRITING, [self._walsender]).fetchall()

    def pause(self) -> float:
        """Give how long to wait before looking again."""
        left = self._limit - self._waited if self._limit else _LOOK_SECONDS
        return max(0.0, min(_LOOK_SECONDS, left))

    @property
    def _waited(self) -> float:
        return time.monotonic() - self._began

    def look(self) -> None:
        """See who is waited for, and say so; raise SlotBlocked once that takes too long."""
        told = {writing.identity for writing in self._blocking}
        self._blocking = [w for w in self._writing() if w.awaited or w.identity in self._before]
        changed = told != {writing.identity for writing in self._blocking}
        if changed or time.monotonic() - self._said >= _SAY_SECONDS:
            self._say()
        if self._limit and self._waited >= self._limit:
            raise self._blocked()

    def _say(self) -> None:
        self._said = time.monotonic()
        pids = [str(writing.pid) for writing in self._blocking if writing.pid is not None]
        prepared = [writing.gid for writing in self._blocking if writing.gid is not None]
        oldest = self._oldest()
        fields = {
            "slot": self._slot,
            "pids": ",".join(pids),
            **({"prepared": ",".join(prepared)} if prepared else {}),
            "oldest_seconds": "unknown" if oldest is None else round(oldest),
            "waited_seconds": round(self._waited),
            "limit_seconds": self._limit or "none",
        }
        log.warning("creating the slot waits for transactions that write", extra=fields)

    def _oldest(self) -> float | None:
        return max((w.age for w in self._blocking if w.age is not None), default=None)

    def _blocked(self) -> SlotBlocked:
        named = self._blocking[:_NAMED]
        more = len(self._blocking) - len(named)
        whom = ", ".join(map(str, named)) or "transactions that it does not name"
        others = f" and {more} more" if more else ""
        endings = "; ".join(writing.ending for writing in named)
        how = f"end them on the write database ({endings}), or wait" if endings else "wait"
        unseen = any(writing.age is None for writing in named)
        ages = "; grant pg_read_all_stats to the role, to see how old they are" if unseen else ""
        return SlotBlocked(
            f"slot {self._slot} was not created: for {self._waited:.0f} s the write database has "
            f"waited for transactions that write: {whom}{others}",
            hint=f"{how} until they have ended, and start again: nothing was left behind. "
            f"source.slot_wait_seconds is how long they are waited for; 0 is for ever{ages}",
        )

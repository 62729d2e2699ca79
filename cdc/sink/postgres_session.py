"""Sessions of a Postgres read database, and what its errors mean."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

from cdc.errors import CdcError, ReadError, ReadRefused, ReadUnavailable
from cdc.lookout import POSTGRES_AT_WORK, POSTGRES_END, Line, Server, keepalives, line_of
from cdc.sink.refused import UNREACHABLE, RowsRefused
from cdc.sqlstate import blames_rows, one_line, passes_by_itself, refusal_hint

# Joins are always from a batch to its rows by key: a planner that has no statistics on the
# staging table must not choose to scan the target instead (docs/architecture.md, Planner).
SESSION: Final = {
    "application_name": "cdc",
    "array_nulls": "on",
    "datestyle": "ISO",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "intervalstyle": "postgres",
    "jit": "off",
    "lc_monetary": "C",  # as on the source: money is read as it was printed
    "lock_timeout": "0",
    "row_security": "off",  # rows that a policy hides would be passed over in silence
    "statement_timeout": "0",
    "timezone": "UTC",
    "xmloption": "content",
}
_HAS_TRANSACTION_TIMEOUT: Final = 170_000
_CONNECT_SECONDS: Final = 10
_CANCEL_SECONDS: Final = 2


def create_engine(url: sa.URL, *, silence_seconds: int) -> sa.Engine:
    """Make the engine; connections are ours alone, never pooled."""
    parsed = url.set(drivername="postgresql+psycopg")
    session = SESSION | _server_keepalives(silence_seconds)
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    given = str(parsed.query.get("options", ""))
    parsed = parsed.update_query_dict({"options": f"{given} {options}".strip()})
    engine = sa.create_engine(
        parsed,
        poolclass=sa.pool.NullPool,
        pool_reset_on_return=None,  # closing rolls back, and a dead connection cannot
        hide_parameters=True,
        connect_args={
            "connect_timeout": max(2, min(_CONNECT_SECONDS, silence_seconds)),
            "client_encoding": "UTF8",
            **keepalives(silence_seconds),
        },
    )
    sa.event.listen(engine, "connect", _connected)
    return engine


def _connected(driver: psycopg.Connection[Any], _record: object) -> None:
    """Lift the one timeout that older servers refuse to be told of as they are connected to."""
    if driver.info.server_version >= _HAS_TRANSACTION_TIMEOUT:
        driver.execute("set transaction_timeout = 0")
        driver.commit()


def _server_keepalives(seconds: int) -> dict[str, str]:
    """Have the server notice, too: the lock goes with the connection."""
    limits = keepalives(seconds)
    return {name if name[:4] == "tcp_" else f"tcp_{name}": str(limits[name]) for name in limits}


def line(driver: psycopg.Connection[Any], server: Server) -> Line | None:
    """Give what is watched of a connection; None where it is not TCP."""
    wire = line_of(driver.pgconn.socket)
    if wire is None:
        return None
    return Line(
        server,
        driver.info.backend_pid,
        wire,
        waits=lambda: driver.pgconn.transaction_status == TransactionStatus.ACTIVE,
        ended=lambda: driver.closed,
    )


def driver_connection(connection: sa.Connection) -> psycopg.Connection[Any]:
    """Give the psycopg connection underneath."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101  the engine's driver is psycopg
    return driver


def canceller(connection: sa.Connection) -> Callable[[], None]:
    """Give the function that ends what the connection waits for; it never raises."""
    driver = driver_connection(connection)

    def cancel() -> None:
        with suppress(Exception):
            driver.cancel_safe(timeout=_CANCEL_SECONDS)

    return cancel


def read_error(error: psycopg.Error) -> CdcError:
    """Say what an error of the read database means, without values of rows."""
    state = error.sqlstate
    if state is None and isinstance(error, psycopg.DataError | psycopg.ProgrammingError):
        return RowsRefused(f"{type(error).__name__}: a value that Postgres cannot be sent")
    if state is None:
        message = f"read database: {one_line(error)}"
        hint = refusal_hint(error, "read.url")
        kind = ReadRefused if hint else ReadUnavailable
        return kind(message, hint=hint or UNREACHABLE)
    if state[:2] == "28":
        return ReadRefused(f"read database: {one_line(error)}", hint="correct read.url")
    if passes_by_itself(state):
        return ReadUnavailable(f"read database: {one_line(error)} ({state})")
    if blames_rows(state):
        return RowsRefused(f"{_blamed(error)} ({state})")
    return ReadError(f"read database: {one_line(error)} ({state})", hint=_HINTS.get(state))


_HINTS: Final = {
    "42501": "grant the role in read.url what the message names; for row-level security, bypassrls",
    "42P01": "the read table was dropped while we ran: `cdc setup` makes it again, empty",
}


def _blamed(error: psycopg.Error) -> str:
    """Name what was violated: the message itself may hold values of the row."""
    diag = error.diag
    parts = [
        type(error).__name__,
        f"constraint {diag.constraint_name}" if diag.constraint_name else "",
        f"table {diag.table_name}" if diag.table_name else "",
        f"column {diag.column_name}" if diag.column_name else "",
    ]
    return ", ".join(part for part in parts if part)


def at_work(connection: sa.Connection, sessions: Sequence[int]) -> Collection[int]:
    """Ask which sessions the server is at work for, and does not wait for us."""
    return set(connection.exec_driver_sql(POSTGRES_AT_WORK, (list(sessions),)).scalars())


def end(connection: sa.Connection, sessions: Sequence[int]) -> None:
    """End sessions that wait for us."""
    connection.exec_driver_sql(POSTGRES_END, (list(sessions),))


def number_of(driver: psycopg.Connection[Any]) -> int:
    """Give the file descriptor of its socket."""
    return driver.pgconn.socket

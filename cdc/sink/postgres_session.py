"""Sessions of a Postgres read database, and what its errors mean."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from cdc.errors import CdcError, ReadError, ReadRefused, ReadUnavailable
from cdc.sink.refused import RowsRefused
from cdc.sqlstate import blames_rows, one_line, passes_by_itself, refusal_hint

# Joins are always from a batch to its rows by key: a planner that has no statistics on the
# staging table must not choose to scan the target instead (docs/architecture.md, Planner).
_SESSION: Final = {
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
    "statement_timeout": "0",
    # The lock goes with the connection: a host that vanished must not keep it for hours.
    "tcp_keepalives_count": "3",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_user_timeout": "30000",
    "timezone": "UTC",
    "xmloption": "content",
}
_KEEPALIVES: Final = {
    "keepalives_count": 3,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "tcp_user_timeout": 30_000,
}
_CONNECT_SECONDS: Final = 10
_CANCEL_SECONDS: Final = 2


def create_engine(url: sa.URL) -> sa.Engine:
    """Make the engine; connections are ours alone, never pooled."""
    parsed = url.set(drivername="postgresql+psycopg")
    options = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    given = str(parsed.query.get("options", ""))
    parsed = parsed.update_query_dict({"options": f"{given} {options}".strip()})
    return sa.create_engine(
        parsed,
        poolclass=sa.pool.NullPool,
        pool_reset_on_return=None,  # closing rolls back, and a dead connection cannot
        hide_parameters=True,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "client_encoding": "UTF8",
            **_KEEPALIVES,
        },
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
        return ReadRefused(message, hint=hint) if hint else ReadUnavailable(message)
    if state[:2] == "28":
        return ReadRefused(f"read database: {one_line(error)}", hint="correct read.url")
    if passes_by_itself(state):
        return ReadUnavailable(f"read database: {one_line(error)} ({state})")
    if blames_rows(state):
        return RowsRefused(f"{_blamed(error)} ({state})")
    return ReadError(f"read database: {one_line(error)} ({state})", hint=_HINTS.get(state))


_HINTS: Final = {
    "42501": "grant the role in read.url what the message names",
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

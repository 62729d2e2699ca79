"""Connections to the read database, and what its errors mean."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
import sqlalchemy as sa

from cdc.errors import CdcError, ConfigurationError, ReadError
from cdc.sink import mysql_session, postgres_session, sqlite_session

_CANCELLERS: Final = {
    "postgresql": postgres_session.canceller,
    "mysql": mysql_session.canceller,
    "sqlite": sqlite_session.canceller,
}


def create_engine(url: str, *, reading: bool = False) -> sa.Engine:
    """Make the engine of the read database; connections are ours alone, never pooled.

    `reading` tells that it is only looked at: nothing is made by connecting. Raise
    ConfigurationError where the dialect's driver is not installed.
    """
    parsed = sa.make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return sqlite_session.create_engine(parsed, reading=reading)
    if backend == "postgresql":
        return postgres_session.create_engine(parsed)
    try:
        return mysql_session.create_engine(parsed)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"read.url needs the driver {error.name}, which is not installed",
            hint="pip install 'cdc-daemon[mysql]'",
        ) from None


def connect(engine: sa.Engine) -> sa.Connection:
    """Open a connection; raise a ReadError."""
    with translated():
        return engine.connect()


def canceller(connection: sa.Connection) -> Callable[[], None]:
    """Give the function that ends what the connection waits for; it never raises."""
    return _CANCELLERS[connection.dialect.name](connection)


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLAlchemy's and the drivers' errors into ours, by their codes."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _driver_error(error.orig) from None
    except psycopg.Error as error:
        raise postgres_session.read_error(error) from None


def _driver_error(error: BaseException | None) -> CdcError:
    if isinstance(error, psycopg.Error):
        return postgres_session.read_error(error)
    if isinstance(error, sqlite3.Error):
        return sqlite_session.read_error(error)
    if isinstance(error, Exception) and type(error).__module__.startswith("pymysql"):
        return mysql_session.read_error(error)
    return ReadError(f"read database: {type(error).__name__}")

"""Connections to the read database, and what its errors mean."""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Protocol

import psycopg
import sqlalchemy as sa

from cdc.errors import CdcError, ConfigurationError, ReadError, ReadRefused
from cdc.lookout import Line, Lookout, Server, cut_after
from cdc.sink import mysql_session, postgres_session, sqlite_session
from cdc.sink.refused import RowsRefused

_CANCELLERS: Final = {
    "postgresql": postgres_session.canceller,
    "mysql": mysql_session.canceller,
    "sqlite": sqlite_session.canceller,
}


class _Sessions(Protocol):
    """What a dialect knows of its sessions."""

    def line(self, driver: Any, server: Server, /) -> Line | None: ...

    def number_of(self, driver: Any, /) -> int: ...

    def at_work(self, connection: sa.Connection, sessions: Sequence[int], /) -> Collection[int]: ...

    def end(self, connection: sa.Connection, sessions: Sequence[int], /) -> None: ...


_SESSIONS: Final[dict[str, _Sessions]] = {
    "postgresql": postgres_session,
    "mysql": mysql_session,
}
_SILENCE_SECONDS: Final = 30


def create_engine(
    url: str, *, reading: bool = False, silence_seconds: int = _SILENCE_SECONDS
) -> sa.Engine:
    """Make the engine of the read database; connections are ours alone, never pooled.

    `reading` tells that it is only looked at: nothing is made by connecting. `silence_seconds` is
    how long a host that vanished may go unnoticed. Raise ConfigurationError where the dialect's
    driver is not installed, ReadRefused where a parameter in the URL is none.
    """
    parsed = sa.make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return sqlite_session.create_engine(parsed, reading=reading)
    if backend == "postgresql":
        return postgres_session.create_engine(parsed, silence_seconds=silence_seconds)
    try:
        return mysql_session.create_engine(parsed, silence_seconds=silence_seconds)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"read.url needs the driver {error.name}, which is not installed",
            hint="pip install 'cdc-daemon[mysql]'",
        ) from None
    except ValueError as error:
        raise _unusable(error) from None


def watched(url: str, lookout: Lookout, *, reading: bool = False, seconds: int) -> sa.Engine:
    """Make the engine; the lookout watches its connections, and asks by others."""
    engine = create_engine(url, reading=reading, silence_seconds=seconds)
    sessions = _SESSIONS.get(engine.dialect.name)
    if sessions is not None:
        asking = create_engine(url, reading=True, silence_seconds=seconds)
        server = _ReadServer(asking, sessions)

        def watch(driver: Any, _record: object) -> None:
            line = sessions.line(driver, server)
            if line is not None:
                lookout.watch(line, seconds=seconds)

        sa.event.listen(engine, "connect", watch, insert=True)
    return engine


class _ReadServer:
    """The read database's server, asked on a connection that lasts as long as the question."""

    name: Final = "read"

    def __init__(self, engine: sa.Engine, sessions: _Sessions) -> None:
        self._engine = engine
        self._sessions = sessions
        self._seconds = 0.0
        self._within = ExitStack()
        sa.event.listen(engine, "connect", self._bound, insert=True)

    def at_work(self, sessions: Sequence[int], *, seconds: float) -> Collection[int]:
        """Ask which sessions it is at work for; raise where it does not answer."""
        self._seconds = seconds
        with self._within, self._engine.connect() as connection:
            return self._sessions.at_work(connection, sessions)

    def end(self, sessions: Sequence[int], *, seconds: float) -> None:
        """End sessions that wait for us; raise where it does not answer."""
        self._seconds = seconds
        with self._within, self._engine.connect() as connection:
            self._sessions.end(connection, sessions)

    def _bound(self, driver: Any, _record: object) -> None:
        self._within.enter_context(cut_after(self._seconds, self._sessions.number_of(driver)))


def connect(engine: sa.Engine) -> sa.Connection:
    """Open a connection; raise a ReadError."""
    try:
        with translated():
            return engine.connect()
    except (RowsRefused, TypeError, ValueError, OSError) as error:  # before a server is asked
        raise _unusable(error) from None


def _unusable(error: Exception) -> ReadRefused:
    """Say that a parameter cannot be used; the driver's message may repeat what is secret."""
    told = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return ReadRefused(
        f"read database: a parameter in its URL cannot be used ({told})",
        hint="correct what follows the `?` in read.url: a name that the driver does not know, a "
        "number that is none, a file that is not there",
    )


def number_of(connection: sa.Connection) -> int | None:
    """Give the file descriptor of a connection's socket; None where there is no server."""
    sessions = _SESSIONS.get(connection.dialect.name)
    return sessions.number_of(connection.connection.driver_connection) if sessions else None


def canceller(connection: sa.Connection) -> Callable[[], None]:
    """Give the function that ends what the connection waits for; it never raises."""
    return _CANCELLERS[connection.dialect.name](connection)


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLAlchemy's and the drivers' errors into ours, by their codes."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        # SQLAlchemy's frames refer to the error, and by their callers to all that was written.
        raise _driver_error(error.with_traceback(None).orig) from None
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

"""Sessions of an SQLite read database, and what its errors mean."""

import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from cdc.errors import CdcError, ReadError, ReadRefused, ReadUnavailable
from cdc.sink.refused import RowsRefused
from cdc.sink.sqlite_ddl import ExactTables, ExactTypes

_BUSY_SECONDS: Final = 10.0

# Result codes by their first byte: https://www.sqlite.org/rescode.html
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_REFUSED: Final = {
    sqlite3.SQLITE_CANTOPEN: "make the folder that read.url names, writable for the daemon",
    sqlite3.SQLITE_PERM: "make the file that read.url names, and its folder, writable",
    sqlite3.SQLITE_READONLY: "make the file that read.url names, and its folder, writable",
    sqlite3.SQLITE_NOTADB: "read.url names a file that is no SQLite database",
}
_BLAMES_ROWS: Final = frozenset(
    {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}
)
NOT_UNIQUE: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    }
)


class LockingConnection(sqlite3.Connection):
    """A connection that can hold a lock file, which others see until it is closed.

    It is not SQLite's own lock: that one would keep readers out, or be let go at each commit.
    """

    _lock: int | None = None

    def lock(self, file: Path) -> bool:
        """Take the lock file for as long as this connection lives; tell whether it was free."""
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not file.exists() or not os.path.samestat(os.fstat(descriptor), file.stat()):
            os.close(descriptor)  # it was taken from a paused process meanwhile
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor
        return True

    def close(self) -> None:
        """Close, then let the lock go."""
        try:
            super().close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


def create_engine(url: sa.URL, *, reading: bool) -> sa.Engine:
    """Make the engine; connections are ours alone, never pooled.

    Where it is for reading alone, a file that does not exist is not made: it reads as empty.
    """
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        poolclass=sa.pool.NullPool,
        hide_parameters=True,
        connect_args={
            "factory": LockingConnection,
            "timeout": _BUSY_SECONDS,
            "check_same_thread": False,  # opened by one thread, then used by another
            "isolation_level": None,  # transactions begin where we say, not at the first write
        },
    )
    engine.dialect.type_compiler_instance = ExactTypes(engine.dialect)
    engine.dialect.ddl_compiler = ExactTables
    if reading:
        sa.event.listen(engine, "do_connect", _take_none_for_empty)
    sa.event.listen(engine, "connect", _read_only_session if reading else _session)
    sa.event.listen(engine, "begin", _begin_reading if reading else _begin_writing)
    return engine


def _take_none_for_empty(
    _dialect: object, _record: object, given: list[str], _named: object
) -> None:
    """Connect to a database in memory where the file does not exist."""
    if not Path(given[0]).exists():
        given[0] = ":memory:"


def _session(connection: sqlite3.Connection, _record: object) -> None:
    """Let readers read beside us, and bring each commit to the disk before it returns."""
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("pragma foreign_keys = on")


def _read_only_session(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("pragma foreign_keys = on")


def _begin_writing(connection: sa.Connection) -> None:
    connection.exec_driver_sql("begin immediate")


def _begin_reading(connection: sa.Connection) -> None:
    connection.exec_driver_sql("begin")


def database_file(connection: sa.Connection) -> Path:
    """Give the file of the database."""
    return Path(str(connection.engine.url.database))


def driver_connection(connection: sa.Connection) -> LockingConnection:
    """Give the sqlite3 connection underneath."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, LockingConnection)  # noqa: S101  the engine makes no other
    return driver


def canceller(connection: sa.Connection) -> Callable[[], None]:
    """Give the function that ends what the connection does; it never raises."""
    return driver_connection(connection).interrupt


def is_locked(file: Path) -> bool:
    """Tell whether somebody holds a lock file."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_paused(pid: str) -> bool:
    """Tell whether a process was stopped by a signal, as far as the system tells (Linux)."""
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in {"T", "t"}


def read_error(error: sqlite3.Error) -> CdcError:
    """Say what an error means; its message holds names, never values of rows."""
    code = error_code(error)
    text = " ".join(str(error).split())
    if code is None:
        return RowsRefused(f"{type(error).__name__}: a value that SQLite cannot be sent")
    kind = code & 0xFF
    if kind in _BLAMES_ROWS:
        return RowsRefused(f"{text} ({error.sqlite_errorname})")
    message = f"read database: {text} ({error.sqlite_errorname})"
    if kind in _PASSING:
        return ReadUnavailable(message)
    if kind in _REFUSED:
        return ReadRefused(message, hint=_REFUSED[kind])
    return ReadError(message)


def error_code(error: BaseException | None) -> int | None:
    """Give SQLite's extended result code; None where the error is the module's own."""
    return getattr(error, "sqlite_errorcode", None)

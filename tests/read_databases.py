"""A read database of each dialect, as the tests that are run through all of them see it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa

from tests.conftest import Database, until
from tests.mariadb import MariaDB


class ReadDatabase(Protocol):
    """A database of a test's own."""

    url: str

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement in a session of its own; give its rows."""

    def cut(self) -> None:
        """End all other sessions, as a failover would."""

    def lost(self) -> Exception:
        """Give the error that the driver raises when the connection is gone."""


class PostgresRead:
    def __init__(self, database: Database) -> None:
        self.url = database.url
        self._database = database

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._database.connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def cut(self) -> None:
        others = (
            "from pg_stat_activity where application_name = 'cdc' and datname = current_database()"
        )
        self.query(f"select pg_terminate_backend(pid) {others}")
        until(lambda: not self.query(f"select 1 {others}"))

    def lost(self) -> Exception:
        return psycopg.OperationalError("the connection was lost")


class MariaRead:
    def __init__(self, server: MariaDB) -> None:
        self._server = server
        self._name = server.create_database()
        self.url = server.url(self._name, "cdc")

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return self._server.query(statement, self._name)

    def cut(self) -> None:
        others = (
            "select id from information_schema.processlist "
            f"where db = '{self._name}' and id <> connection_id()"
        )
        for (number,) in self.query(others):
            self._server.query(f"kill {number}")
        until(lambda: not self.query(others))

    def lost(self) -> Exception:
        import pymysql

        return pymysql.err.OperationalError(2013, "Lost connection to MySQL server")


class SQLiteRead:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.url = f"sqlite:///{file}"

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.file, isolation_level=None)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def cut(self) -> None:
        """There is no server to lose; the process that writes is killed elsewhere."""

    def lost(self) -> Exception:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        error.sqlite_errorname = "SQLITE_IOERR"
        return error


@contextmanager
def losing(connection: sa.Connection, read: ReadDatabase, *, after: bool) -> Iterator[None]:
    """Lose the connection just before, or just after, its next commit."""
    dialect = connection.dialect
    commit = dialect.do_commit

    def commit_and_lose(driver: Any) -> None:
        if after:
            commit(driver)
        else:
            dialect.do_rollback(driver)
        read.cut()
        raise read.lost()

    dialect.do_commit = commit_and_lose  # type: ignore[method-assign]
    try:
        yield
    finally:
        del dialect.do_commit  # the class's own is there again

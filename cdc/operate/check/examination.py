"""What an examination has found by now, and how far it lets a database take its time."""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Final, TypeAlias, TypeVar

import sqlalchemy as sa

from cdc.errors import CdcError, ReadError, SourceError, SourceUnavailable
from cdc.finding import Finding, Where
from cdc.settings import Settings
from cdc.sink import engine as read_database
from cdc.source.connection import Connection, connect, connect_replication, translated

_SECONDS: Final = 30.0
_LOCK_SECONDS: Final = 3
# Somebody may have locked a table that is looked at, the checkpoint's included.
_PATIENCE: Final = {
    "postgresql": f"set lock_timeout = '{_LOCK_SECONDS}s'",
    "mysql": f"set lock_wait_timeout = {_LOCK_SECONDS}, innodb_lock_wait_timeout = {_LOCK_SECONDS}",
    "sqlite": f"pragma busy_timeout = {_LOCK_SECONDS * 1000}",
}

T = TypeVar("T")
Database: TypeAlias = Connection | sa.Connection


class Examination:
    """Collects findings, each once, in the order they were made."""

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}

    @property
    def all(self) -> list[Finding]:
        """The findings."""
        return list(self._found)

    def add(self, findings: Iterable[Finding]) -> None:
        """Take findings."""
        self._found |= dict.fromkeys(findings)

    def attempt(self, step: Callable[[], T], *on: Database, why: str) -> T | None:
        """Take a step; let its error be a finding, and give None then.

        The databases that it is taken on are given up where it takes half a minute.
        """
        try:
            with bounded(*on):
                return step()
        except CdcError as error:
            # Of a server that went away, every further step would say the same.
            gone = isinstance(error, SourceUnavailable)
            if not (gone and SourceUnavailable.__name__ in {found.name for found in self._found}):
                self.add([of_error(error, why=why)])
            return None

    @contextmanager
    def source(self, settings: Settings) -> Iterator[Connection | None]:
        """Connect to the write database; give None where that fails."""
        dsn = settings.source.dsn.get_secret_value()
        why = "changes are streamed from it; the rest of it was not looked at"
        source = self.attempt(lambda: connect(dsn), why=why)
        if source is None:
            yield None
            return
        with closing(source):
            self.attempt(lambda: _be_patient(source), source, why=why)
            yield source

    @contextmanager
    def read(self, settings: Settings) -> Iterator[sa.Connection | None]:
        """Connect to the read database; give None where that fails."""
        url = settings.read.url.get_secret_value()
        why = "changes are applied to it; the rest of it was not looked at"
        read = self.attempt(lambda: _connect_read(url), why=why)
        if read is None:
            yield None
            return
        with closing(read):
            yield read


def replication(settings: Settings) -> "closing[Connection]":
    """Connect to a walsender; raise a SourceError."""
    return closing(connect_replication(settings.source.dsn.get_secret_value()))


def _number_of(database: Database) -> int | None:
    """Give the file descriptor of a connection; None where there is none, or no longer."""
    if isinstance(database, sa.Connection):
        gone = database.closed or database.invalidated
        return None if gone else read_database.number_of(database)
    return None if database.closed else database.pgconn.socket


def of_error(error: CdcError, *, why: str, blocks: bool = True) -> Finding:
    """Make a finding of an error; its name is the error's."""
    where: Where = "configuration"
    if isinstance(error, SourceError | ReadError):
        where = "write" if isinstance(error, SourceError) else "read"
    hint = error.hint or error.usual_hint or "see the message"
    return Finding(type(error).__name__, str(error), why, hint, blocks, where, error.sql)


def _be_patient(source: Connection) -> None:
    with translated():
        source.execute(_PATIENCE["postgresql"].encode())


def _connect_read(url: str) -> sa.Connection:
    connection = read_database.connect(read_database.create_engine(url, reading=True))
    with read_database.translated(), connection.begin():
        connection.exec_driver_sql(_PATIENCE[connection.dialect.name])
    return connection


@contextmanager
def bounded(*on: Database) -> Iterator[None]:
    """Give databases up where what is within takes too long."""
    with ExitStack() as bounds:
        for database in on:
            bounds.enter_context(_bounded(_number_of(database)))
        yield


@contextmanager
def _bounded(number: int | None) -> Iterator[None]:
    """Shut a connection's socket where what is within takes longer: its wait ends by an error."""
    if number is None:
        yield
        return
    with socket.socket(fileno=os.dup(number)) as wire:
        timer = threading.Timer(_SECONDS, _shut, [wire])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _shut(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)

"""Connections to the write database whose silence is noticed."""

from collections.abc import Collection, Sequence
from contextlib import closing
from typing import Any, Final, LiteralString

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from cdc.lookout import (
    POSTGRES_AT_WORK,
    POSTGRES_END,
    Line,
    Lookout,
    cut_after,
    keepalives,
    line_of,
)
from cdc.source.connection import Connection, connect, connect_replication


class Opener:
    """Opens connections that the lookout watches. Made once; any thread may open."""

    name: Final = "source"

    def __init__(self, dsn: str, lookout: Lookout, *, seconds: int) -> None:
        """Take how long the write database may be silent where it is waited for."""
        given = conninfo_to_dict(dsn)
        limits = {"connect_timeout": max(2, min(10, seconds)), **keepalives(seconds)}
        self._dsn = make_conninfo("", **{**limits, **given})
        self._lookout = lookout
        self._seconds = seconds

    def connect(self) -> Connection:
        """Open an ordinary connection; raise a SourceError."""
        return self._watched(connect(self._dsn), streams=False)

    def connect_replication(self) -> Connection:
        """Open a connection to a walsender; raise a SourceError."""
        return self._watched(connect_replication(self._dsn), streams=True)

    def _watched(self, connection: Connection, *, streams: bool) -> Connection:
        pgconn = connection.pgconn
        wire = line_of(pgconn.socket)
        if wire is not None:
            line = Line(
                self,
                connection.info.backend_pid,
                wire,
                waits=lambda: pgconn.transaction_status == TransactionStatus.ACTIVE,
                ended=lambda: connection.closed,
                hears_only=streams,
            )
            self._lookout.watch(line, seconds=self._seconds)
        return connection

    def at_work(self, sessions: Sequence[int], *, seconds: float) -> Collection[int]:
        """Ask which sessions the server is at work for; raise where it does not answer."""
        return {pid for (pid,) in self._ask(POSTGRES_AT_WORK, sessions, seconds=seconds)}

    def end(self, sessions: Sequence[int], *, seconds: float) -> None:
        """End sessions that wait for us; raise where the server does not answer."""
        self._ask(POSTGRES_END, sessions, seconds=seconds)

    def _ask(self, query: LiteralString, sessions: Sequence[int], *, seconds: float) -> list[Any]:
        with closing(connect(self._dsn)) as other, cut_after(seconds, other.pgconn.socket):
            return other.execute(query, [list(sessions)]).fetchall()

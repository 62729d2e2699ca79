"""What carries the replication stream: CopyData in both directions, over a walsender's connection.

libpq hands out message by message, which costs more than all that is done with them in bulk. So
where the connection is not encrypted the socket is read here (`plain_wire.py`), once libpq has
connected.
"""

import select
from typing import Final, Protocol

import psycopg
from psycopg.pq import ExecStatus

from cdc.source.connection import Connection
from cdc.source.frame import IS_DATA, Arrived, Frame
from cdc.source.plain_wire import BYTES_AT_ONCE, PlainWire, Told

# libpq reads as much at once as its buffer holds, and the buffer grows with what must fit in it.
_BUFFER_BYTES: Final = 256 * 1024
# libpq tells of TLS itself: the server may see another side of a proxy.
_BY_GSSAPI: Final = """
select exists (select from pg_stat_gssapi where pid = pg_backend_pid() and encrypted)
"""


class Wire(Protocol):
    """Carries a stream. Its errors are psycopg's."""

    def start(self, statement: str) -> None:
        """Begin to stream; where the server refuses, another statement may be tried."""

    def read(self) -> Arrived:
        """Give what has arrived, without waiting."""

    def send(self, message: bytes, *, seconds: float) -> None:
        """Send CopyData; read meanwhile, for the server may be blocked sending to us.

        `seconds` is for how long to wait at once.
        """

    def finish(self, *, seconds: float) -> None:
        """Say that nothing more will be sent."""

    def ended(self) -> psycopg.Error | None:
        """Give the error with which the stream ended, if there was one."""


def wire_of(connection: Connection, told: Told, *, bytes_at_once: int = BYTES_AT_ONCE) -> Wire:
    """Take a walsender's connection over, to read about so many bytes at once."""
    row = connection.execute(_BY_GSSAPI).fetchone()
    if connection.pgconn.ssl_in_use or row is None or row[0]:
        return EncryptedWire(connection, told, bytes_at_once=bytes_at_once)
    return PlainWire(connection, told, bytes_at_once=bytes_at_once)


class EncryptedWire:
    """Has libpq read, which decrypts."""

    def __init__(
        self, connection: Connection, told: Told, *, bytes_at_once: int = BYTES_AT_ONCE
    ) -> None:
        self._bytes_at_once = bytes_at_once
        self._connection = connection
        self._pgconn = connection.pgconn
        self._is_done = False
        connection.execute(f"select repeat(' ', {_BUFFER_BYTES})".encode())
        connection.add_notice_handler(told)

    def start(self, statement: str) -> None:
        self._connection.execute(statement.encode())

    def read(self) -> Arrived:
        frames: list[Frame] = []
        other = None if self._is_done else self._take(frames)
        return Arrived(frames, other, self._is_done)

    def _take(self, frames: list[Frame]) -> Frame | None:
        """Take frames for as long as there are some at once; stop at another kind of frame."""
        get, take, size = self._pgconn.get_copy_data, frames.append, 0
        while size < self._bytes_at_once:
            count, frame = get(1)
            if count > 0:
                if frame[0] != IS_DATA:
                    return frame
                take(frame)
                size += count
            elif count < 0:
                self._is_done = True
                break
            elif not self._more():
                break
        return None

    def _more(self) -> bool:
        """Read what the socket holds; tell whether it held something."""
        readable, _, _ = select.select([self._pgconn.socket], [], [], 0)
        if readable:
            self._pgconn.consume_input()
        return bool(readable)

    def send(self, message: bytes, *, seconds: float) -> None:
        self._pgconn.put_copy_data(message)
        self._flush(seconds)

    def finish(self, *, seconds: float) -> None:
        self._pgconn.put_copy_end()
        self._flush(seconds)

    def _flush(self, seconds: float) -> None:
        while self._pgconn.flush():
            socket = self._pgconn.socket
            readable, _, _ = select.select([socket], [socket], [], seconds)
            if readable:
                self._pgconn.consume_input()

    def ended(self) -> psycopg.Error | None:
        result = self._pgconn.get_result()
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            return psycopg.errors.error_from_result(result)
        return None

"""The socket of a stream that is not encrypted, read by ourselves.

Postgres documentation, "Message Formats" and "COPY Operations".
"""

import os
import select
from collections.abc import Callable
from struct import Struct
from typing import Final

import numpy as np
import psycopg
from psycopg.errors import Diagnostic

from cdc.errors import ProtocolError
from cdc.source.connection import Connection
from cdc.source.frame import IS_DATA, Arrived, Frame, Numbers, Stretch

Told = Callable[[Diagnostic], None]
"""Hears of the server's notices."""

BYTES_AT_ONCE: Final = 1024**2
"""About how much is read before it is looked at."""

_COPY_DATA, _COPY_DONE, _QUERY = b"dcQ"
_COPY_BOTH, _READY, _ERROR, _NOTICE = b"WZEN"
_PASSED_OVER: Final = b"SCA"  # a parameter's status, the end of a command, a notification
_HEADER: Final = Struct(">BI")  # kind, length; the length includes itself
_TEXT_AND_STATE: Final = b"MC"
_DATA: Final = bytes([IS_DATA])
_FEW_BYTES: Final = 4096  # frames in so few are sooner found one by one
_MANY_BREAKS: Final = 16


class PlainWire:
    """Reads and writes the socket; libpq has sent the first statement and waits for its answer."""

    def __init__(self, connection: Connection, told: Told) -> None:
        self._pgconn = connection.pgconn
        self._told = told
        self._buffer = bytearray(2 * BYTES_AT_ONCE)
        self._have = 0  # bytes in the buffer
        self._message_bytes = 0  # of one that has not arrived whole
        self._asked = self._is_done = False
        self._error: psycopg.Error | None = None

    def start(self, statement: str) -> None:
        self._ask(statement.encode())
        at, answered = 0, False
        while not (answered or self._is_done):
            message = self._message(at)
            if message is None:
                self._drop(at)
                at = 0
                select.select([self._pgconn.socket], [], [])
                self._fill()
            else:
                kind, body, at = message
                answered = kind in {_COPY_BOTH, _READY}
                if not answered:
                    self._hear(kind, body)
        self._drop(at)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _ask(self, statement: bytes) -> None:
        if self._asked:
            self._push(_message(_QUERY, statement + b"\0"), seconds=1)
            return
        self._asked = True
        self._pgconn.send_query(statement)
        while self._pgconn.flush():
            select.select([], [self._pgconn.socket], [])

    def read(self) -> Arrived:
        self._fill()
        if self._have < self._message_bytes:
            return Arrived((), None, self._is_done)
        few = self._have <= _FEW_BYTES
        found: list[Stretch] = []
        frames: list[Frame] = []
        at, other, ended = 0, None, False
        while other is None and not ended:
            if not few:
                starts, ends = data_frames(self._buffer, at, self._have)
                at = int(ends[-1]) if len(ends) else at
                found.append(self._stretch(starts, ends))
            message = self._message(at)
            if message is None:
                break
            kind, body, at = message
            if kind != _COPY_DATA:
                ended = self._hear(kind, body)
            elif body[:1] != _DATA:
                other = memoryview(body)
            elif few:
                frames.append(memoryview(body))
            else:
                found.append(Stretch([memoryview(body)]))
        self._is_done |= ended
        self._drop(at)
        is_all = self._is_done and other is None  # else there may be more in the buffer
        return Arrived(frames if few else _joined(found), other, is_all)

    def _stretch(self, starts: Numbers, ends: Numbers) -> Stretch:
        """Copy frames out of the buffer, with what is between them."""
        if not len(ends):
            return Stretch()
        begin, end = int(starts[0]), int(ends[-1])
        return Stretch.at(bytes(self._buffer[begin:end]), starts - begin, ends - begin)

    def _message(self, at: int) -> tuple[int, bytes, int] | None:
        """Give a message's kind, its body, and where it ends; None where it is not all there."""
        self._message_bytes = 0
        if self._have - at < _HEADER.size:
            return None
        kind, length = _HEADER.unpack_from(self._buffer, at)
        end = at + 1 + length
        if end > self._have:
            self._message_bytes = 1 + length
            return None
        return kind, bytes(self._buffer[at + _HEADER.size : end]), end

    def _hear(self, kind: int, body: bytes) -> bool:
        """Take a message that is no frame; tell whether the stream has ended with it."""
        if kind == _NOTICE:
            self._told(Diagnostic(_fields(body)))
        elif kind == _ERROR:
            self._error = _error(body)
        elif kind not in {_COPY_DONE, *_PASSED_OVER}:
            raise ProtocolError(f"the server sent a message of kind {chr(kind)!r} in a stream")
        return kind in {_ERROR, _COPY_DONE}

    def _fill(self) -> None:
        """Read what the socket holds, up to as much as is looked at, or a message needs."""
        enough = max(BYTES_AT_ONCE, self._message_bytes)
        self._make_room(enough)
        while self._have < enough and not self._is_done:
            if not self._read_some():
                break

    def _make_room(self, enough: int) -> None:
        size = max(2 * BYTES_AT_ONCE, enough)
        if len(self._buffer) < size:
            self._buffer.extend(bytes(size - len(self._buffer)))
        elif self._have <= size < len(self._buffer):
            del self._buffer[size:]

    def _read_some(self) -> bool:
        """Read once; tell whether there may be more. At the connection's end be done."""
        try:
            with memoryview(self._buffer) as view, view[self._have :] as room:
                size = len(room)
                count = os.readv(self._pgconn.socket, [room])
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(error.strerror or "it was lost")
            return False
        if not count:
            self._lost("the server closed it unexpectedly")
        self._have += count
        return count == size  # else it is empty now

    def _lost(self, how: str) -> None:
        self._is_done = True
        self._error = self._error or psycopg.OperationalError(f"the connection has ended: {how}")

    def _drop(self, count: int) -> None:
        """Forget the first bytes of the buffer."""
        if count:
            self._buffer[: self._have - count] = self._buffer[count : self._have]
            self._have -= count

    def send(self, message: bytes, *, seconds: float) -> None:
        self._push(_message(_COPY_DATA, message), seconds=seconds)

    def finish(self, *, seconds: float) -> None:
        self._push(_message(_COPY_DONE, b""), seconds=seconds)

    def _push(self, message: bytes, *, seconds: float) -> None:
        while message:
            try:
                message = message[os.write(self._pgconn.socket, message) :]
            except BlockingIOError:
                self._await_room(seconds)
            except OSError as error:
                how = error.strerror or "it was lost"
                raise psycopg.OperationalError(f"the connection has ended: {how}") from None

    def _await_room(self, seconds: float) -> None:
        """Wait until something may be sent; read meanwhile."""
        descriptor = self._pgconn.socket
        readable, _, _ = select.select([descriptor], [descriptor], [], seconds)
        if readable and not self._is_done:
            self._make_room(self._have + BYTES_AT_ONCE)
            self._read_some()

    def ended(self) -> psycopg.Error | None:
        return self._error


def _joined(found: list[Stretch]) -> Stretch:
    """Join stretches: there is one, but where other messages are between frames."""
    joined = found[0]
    for stretch in found[1:]:
        joined = joined + stretch
    return joined


def data_frames(data: bytearray, begin: int, end: int) -> tuple[Numbers, Numbers]:
    """Find where data frames begin and end that follow upon one another, from `begin` on.

    What follows the last one given is another message, or a frame of 16 MiB and more, or one that
    is not all there.
    """
    if end - begin <= _HEADER.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found, ends = _candidates(data, begin, end)
    chain = _chain(found, ends)
    return found[chain] + _HEADER.size + begin, ends[chain] + begin


def _candidates(data: bytearray, begin: int, end: int) -> tuple[Numbers, Numbers]:
    """Find what may be data frames of less than 16 MiB, and where each would end."""
    here = np.frombuffer(data, np.uint8, end - begin, begin)
    found = np.flatnonzero(here[: -_HEADER.size] == _COPY_DATA)
    found = found[here[found + 1] == 0]
    found = found[here[found + _HEADER.size] == IS_DATA]
    uint32 = np.ndarray((end - begin - 3,), ">u4", data, begin, (1,))
    ends = found + 1 + uint32[found + 1]
    whole = ends <= end - begin
    return found[whole], ends[whole]


def _chain(found: Numbers, ends: Numbers) -> Numbers:
    """Give the places of those that follow upon one another: the others are parts of frames."""
    if not len(found) or found[0] != 0:
        return np.empty(0, np.int64)
    breaks = np.flatnonzero(ends[:-1] != found[1:])
    if len(breaks) > _MANY_BREAKS:  # what no other one ends before is hardly one
        likely = np.flatnonzero(np.isin(found, ends) | (found == 0))
        if len(likely) < len(found):
            return likely[_chain(found[likely], ends[likely])]
    parts, first = [], 0
    for last in (*breaks.tolist(), len(found) - 1):
        if last < first:
            continue
        parts.append(np.arange(first, last + 1))
        first = int(np.searchsorted(found, ends[last]))
        if first == len(found) or found[first] != ends[last]:
            break
    return np.concatenate(parts)


def _message(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(kind, 4 + len(body)) + body


def _fields(body: bytes) -> dict[int, bytes | None]:
    """Read what an error or a notice says, by the field's code."""
    return {field[0]: field[1:] for field in body.split(b"\0") if field}


def _error(body: bytes) -> psycopg.Error:
    fields = _fields(body)
    text, state = ((fields.get(code) or b"").decode(errors="replace") for code in _TEXT_AND_STATE)
    try:
        kind = psycopg.errors.lookup(state)
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(text, info=fields)

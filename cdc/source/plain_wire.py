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
from cdc.source.frame import IS_DATA, Arrived, Frame, Stretch

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
_KEEPALIVE: Final = b"k"
_ASKS: Final = b"\1"


class PlainWire:
    """Reads and writes the socket; libpq has sent the first statement and waits for its answer."""

    def __init__(
        self, connection: Connection, told: Told, *, bytes_at_once: int = BYTES_AT_ONCE
    ) -> None:
        """Read about so many bytes at once: never twice as many, but for a larger message."""
        self._pgconn = connection.pgconn
        self._told = told
        self._bytes_at_once = bytes_at_once
        self._buffer = bytearray(2 * bytes_at_once)
        self._have = 0  # bytes in the buffer
        self._message_bytes = 0  # of one that has not arrived whole
        self._asked = self._streams = False
        self._has_ended = False  # by a message, after which nothing of the stream comes
        self._is_cut = False
        self._error: psycopg.Error | None = None

    def start(self, statement: str) -> None:
        self._ask(statement.encode())
        at, answered = 0, False
        while not (answered or self._is_cut):
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
                self._streams = kind == _COPY_BOTH
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
        if self._has_ended:
            return Arrived((), None, ended=True)
        self._fill()
        if self._have < self._message_bytes:
            return Arrived((), None, self._is_cut)
        take = self._take_few if self._have <= _FEW_BYTES else self._take_many
        frames, other, at = take()
        self._drop(at)
        if other is not None:  # there may be more in the buffer
            return Arrived(frames, memoryview(other), ended=False)
        return Arrived(frames, None, self._has_ended or self._is_cut)

    def _take_few(self) -> tuple[list[Frame], bytes | None, int]:
        """Give data frames, one of another kind that is to be heard, and where they end."""
        frames: list[Frame] = []
        at, other = 0, None
        while message := self._message(at):
            kind, body, at = message
            if kind != _COPY_DATA:
                if self._hear(kind, body):
                    break
            elif body[:1] == _DATA:
                frames.append(memoryview(body))
                other = other if _asks(other) else None  # what follows tells more
            elif body[:1] == _KEEPALIVE:
                other = _latest(other, body)
            else:
                return frames, body, at
        return frames, other, at

    def _take_many(self) -> tuple[Stretch, bytes | None, int]:
        """Give the same, found at once."""
        found = Found(self._buffer, self._have)
        at, runs = 0, [range(0)]
        while True:
            run = found.run(at)
            if run:
                runs.append(run)
                at = int(found.ends[run[-1]])
            message = self._message(at)
            if message is None:
                break
            kind, body, end = message
            if kind != _COPY_DATA:
                at = end
                if self._hear(kind, body):
                    break
            elif len(runs) > 1:
                if not run:  # too large to be found: for the next time
                    break
            elif body[:1] == _DATA:
                return Stretch([memoryview(body)]), None, end
            else:
                return Stretch(), body, end
        frames, others = found.frames(runs)
        last = None
        for body in others:
            last = _latest(last, body)
        is_last = bool(others) and runs[-1] and found.is_other(runs[-1][-1])
        return frames, last if is_last or _asks(last) else None, at

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
        is_end = kind in {_ERROR, _COPY_DONE}
        self._has_ended |= self._streams and is_end
        if kind == _NOTICE:
            self._told(Diagnostic(_fields(body)))
        elif kind == _ERROR:
            self._error = _error(body)
        elif kind not in {_COPY_DONE, *_PASSED_OVER}:
            raise ProtocolError(f"the server sent a message of kind {chr(kind)!r} in a stream")
        return is_end

    def _fill(self) -> None:
        """Read what the socket holds, up to as much as is looked at, or a message needs."""
        enough = max(self._bytes_at_once, self._message_bytes)
        self._make_room(enough)
        while self._have < enough and not self._is_cut:
            if not self._read_some():
                break

    def _make_room(self, enough: int) -> None:
        size = max(2 * self._bytes_at_once, enough)
        if len(self._buffer) < size:
            self._buffer.extend(bytes(size - len(self._buffer)))
        elif self._have <= size < len(self._buffer):
            del self._buffer[size:]

    def _read_some(self) -> bool:
        """Read once; tell whether there may be more. Note where the connection was cut."""
        try:
            with memoryview(self._buffer) as view, view[self._have :] as room:
                size = len(room)
                count = os.readv(self._pgconn.socket, [room])
        except BlockingIOError:
            return False
        except OSError as error:
            self._is_cut = True
            self._error = self._error or _lost(error.strerror)
            return False
        if not count:
            self._is_cut = True
            self._error = self._error or _lost("the server closed it unexpectedly")
        self._have += count
        return count == size  # else it is empty now

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
                raise _lost(error.strerror) from None

    def _await_room(self, seconds: float) -> None:
        """Wait until something may be sent; read meanwhile."""
        descriptor = self._pgconn.socket
        readable, _, _ = select.select([descriptor], [descriptor], [], seconds)
        if readable and not self._is_cut:
            self._make_room(self._have + self._bytes_at_once)
            self._read_some()

    def ended(self) -> psycopg.Error | None:
        return self._error


def _asks(keepalive: bytes | None) -> bool:
    """Tell whether a frame that is no data frame asks for an answer, as its last byte tells."""
    return keepalive is not None and keepalive[-1:] == _ASKS


def _latest(before: bytes | None, keepalive: bytes) -> bytes:
    """Give the latest of two; it asks for an answer if the one before did."""
    return keepalive[:-1] + _ASKS if _asks(before) else keepalive


class Found:
    """What looks like frames of less than 16 MiB in some bytes, found at once.

    Some is part of what is in a frame: `run` tells those that are frames.
    """

    def __init__(self, data: bytearray, end: int) -> None:
        """Look at the bytes up to `end`."""
        here = np.frombuffer(data, np.uint8, end)
        places = np.flatnonzero(here[: -_HEADER.size] == _COPY_DATA)
        places = places[here[places + 1] == 0]
        kinds = here[places + _HEADER.size]
        places = places[(kinds == IS_DATA) | (kinds == ord(_KEEPALIVE))]
        uint32 = np.ndarray((end - 3,), ">u4", data, 0, (1,))
        ends = places + 1 + uint32[places + 1]
        whole = ends <= end
        self._data = data
        self.places, self.ends = places[whole], ends[whole]
        self._breaks = np.flatnonzero(self.ends[:-1] != self.places[1:])

    def run(self, at: int) -> range:
        """Give those that follow upon one another from a place on, where one begins there."""
        first = int(np.searchsorted(self.places, at))
        if first == len(self.places) or self.places[first] != at:
            return range(0)
        after = int(np.searchsorted(self._breaks, first))
        last = self._breaks[after] if after < len(self._breaks) else len(self.places) - 1
        return range(first, int(last) + 1)

    def is_other(self, index: int) -> bool:
        """Tell whether one is no data frame."""
        return self._data[int(self.places[index]) + _HEADER.size] != IS_DATA

    def frames(self, runs: list[range]) -> tuple[Stretch, list[bytes]]:
        """Give the data frames of some runs, copied, and the others."""
        index = np.concatenate([np.arange(run.start, run.stop) for run in runs])
        starts, ends = self.places[index] + _HEADER.size, self.ends[index]
        with memoryview(self._data) as view:
            is_data = np.frombuffer(view, np.uint8)[starts] == IS_DATA
            others = [
                bytes(view[start:end])
                for start, end in zip(
                    starts[~is_data].tolist(), ends[~is_data].tolist(), strict=True
                )
            ]
            starts, ends = starts[is_data], ends[is_data]
            begin, end = (int(starts[0]), int(ends[-1])) if len(starts) else (0, 0)
            return Stretch.at(bytes(view[begin:end]), starts - begin, ends - begin), others


def _lost(how: str | None) -> psycopg.Error:
    return psycopg.OperationalError(f"the connection has ended: {how or 'it was lost'}")


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

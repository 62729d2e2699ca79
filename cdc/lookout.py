"""Notice a server that has stopped answering, where the network does not tell.

TCP's keepalives notice a host that vanished, but not one that hangs behind a proxy or a kernel that
still answers for it. So where an answer has been waited for too long, the server is asked by
another connection what it is doing: what works, or waits for a lock, is left in peace for as long
as it takes; what waits for us, or does not answer either, is cut off, and whoever waits is told.
"""

import fcntl
import logging
import os
import socket
import struct
import termios
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

log = logging.getLogger(__name__)

POSTGRES_AT_WORK: Final = """
select pid from pg_stat_activity
where pid = any(%s) and coalesce(wait_event_type, '') not in ('Client', 'Activity')
"""
"""Gives the sessions that neither wait for their client nor, as a walsender, for news."""

POSTGRES_END: Final = """
select pg_terminate_backend(pid) from pg_stat_activity
where pid = any(%s) and application_name = 'cdc' and wait_event_type in ('Client', 'Activity')
"""
"""Ends sessions that nobody hears any more: they hold the slot, or the lock."""

_HURRY_SECONDS: Final = 3.0
_LONGEST_TICK_SECONDS: Final = 1.0
_TICKS: Final = 8
_STRIKES: Final = 2  # an answer may have been on its way when the server was asked
# linux/tcp.h, struct tcp_info: milliseconds since data was last sent, and last received.
_LAST_SENT: Final = 44
_LAST_RECEIVED: Final = 52


def keepalives(seconds: int) -> dict[str, int]:
    """Give libpq's settings that notice a host that vanished, idle or not, within so long."""
    return {
        "keepalives_count": 3,
        "keepalives_idle": max(1, seconds // 3),
        "keepalives_interval": max(1, seconds // 6),
        "tcp_user_timeout": seconds * 1000,
    }


class Server(Protocol):
    """A server that may be asked what it is doing."""

    @property
    def name(self) -> str: ...

    def at_work(self, sessions: Sequence[int], *, seconds: float) -> Collection[int]:
        """Give those sessions that it is at work for; raise where it does not answer in time."""

    def end(self, sessions: Sequence[int], *, seconds: float) -> None:
        """End sessions that wait for us: they hold what the next ones need; raise likewise."""


class Silence(NamedTuple):
    """For how many seconds nothing has been sent, and nothing received."""

    sent: float
    received: float


@dataclass(eq=False)
class Line:
    """A connection. `waits` tells whether an answer is outstanding, `ended` whether it was closed.

    Of a `hears_only` line only what is received counts: a stream is told things all the time.
    """

    server: Server
    session: int
    wire: socket.socket
    waits: Callable[[], bool]
    ended: Callable[[], bool]
    hears_only: bool = False
    strikes: int = field(default=0, init=False)
    patience: float = field(default=0.0, init=False)

    def silence(self) -> float:
        """Give for how many seconds an answer has been waited for; 0 where none is."""
        if not self.waits() or _unread(self.wire):
            return 0.0
        sent, received = silence(self.wire)
        return received if self.hears_only else min(sent, received)


def line_of(number: int) -> socket.socket | None:
    """Give a socket of our own for a connection's; None where it is not TCP, or closed."""
    try:
        wire = socket.socket(fileno=os.dup(number))
    except OSError:
        return None
    if wire.family in {socket.AF_INET, socket.AF_INET6}:
        return wire
    wire.close()
    return None


def _cut(wire: socket.socket) -> None:
    """End a connection for both sides; whoever waits is told at once."""
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)


def _unread(wire: socket.socket) -> int:
    """Tell how much has arrived that nobody has read: then it is we who are slow."""
    return int(struct.unpack("i", fcntl.ioctl(wire, termios.FIONREAD, b"\0" * 4))[0])


def silence(wire: socket.socket) -> Silence:
    """Ask the kernel for how long a connection has been silent."""
    told = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED + 4)
    sent, received = (struct.unpack_from("=I", told, at)[0] for at in (_LAST_SENT, _LAST_RECEIVED))
    return Silence(sent / 1000, received / 1000)


@contextmanager
def cut_after(seconds: float, number: int) -> Iterator[None]:
    """Cut a connection off where what is within takes longer."""
    wire = line_of(number)
    if wire is None:
        yield
        return
    timer = threading.Timer(seconds, _cut, [wire])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        wire.close()


class Lookout:
    """Watches connections, from a thread of its own, until told to end."""

    def __init__(self) -> None:
        self._lines: dict[Line, float] = {}
        self._lock = threading.Lock()
        self._hurry = False
        self._closed = False

    def watch(self, line: Line, *, seconds: float) -> None:
        """Watch a connection until it is closed: an answer may take so long unexamined."""
        with self._lock:
            if not self._closed:
                self._lines[line] = seconds
                return
        line.wire.close()

    def hurry(self) -> None:
        """Be less patient from now on: somebody waits for the end."""
        self._hurry = True

    def run(self, ended: threading.Event) -> None:
        """Look, again and again, until that; then let go of what is still watched."""
        while not ended.wait(self._tick()):
            self._look()
        with self._lock:
            self._closed = True
        for line in self._watched():
            self._forget(line)

    def _tick(self) -> float:
        shortest = min(self._watched().values(), default=_LONGEST_TICK_SECONDS * _TICKS)
        return min(_LONGEST_TICK_SECONDS, shortest / _TICKS)

    def _watched(self) -> dict[Line, float]:
        with self._lock:
            return dict(self._lines)

    def _look(self) -> None:
        silent: defaultdict[Server, list[Line]] = defaultdict(list)
        for line, seconds in self._watched().items():
            if line.ended():
                self._forget(line)
            elif self._is_silent(line, seconds):
                silent[line.server].append(line)
        for server, lines in silent.items():
            self._ask(server, lines)

    def _is_silent(self, line: Line, seconds: float) -> bool:
        limit = min(seconds, _HURRY_SECONDS) if self._hurry else seconds
        silence = line.silence()
        if silence < limit:
            line.strikes, line.patience = 0, 0.0
        return silence >= max(limit, line.patience)

    def _ask(self, server: Server, lines: list[Line]) -> None:
        limit = min(self._watched()[line] for line in lines)
        try:
            at_work = server.at_work([line.session for line in lines], seconds=limit)
        except Exception:  # noqa: BLE001  whatever it is, the server does not answer
            at_work = ()
        for line in lines:
            if line.session in at_work:
                line.strikes, line.patience = 0, line.silence() + limit
            else:
                line.strikes += 1
        lost = [line for line in lines if line.strikes >= _STRIKES and line.silence() > 0]
        if lost:
            self._give_up(server, lost, seconds=limit)

    def _give_up(self, server: Server, lines: list[Line], *, seconds: float) -> None:
        for line in lines:
            told = {"from": server.name, "seconds": round(line.silence())}
            log.warning("no answer: the connection is given up", extra=told)
            _cut(line.wire)
            self._forget(line)
        with suppress(Exception):  # it will find out for itself, later
            server.end([line.session for line in lines], seconds=seconds)

    def _forget(self, line: Line) -> None:
        with self._lock:
            self._lines.pop(line, None)
        line.wire.close()

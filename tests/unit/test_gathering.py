"""How long what arrives is left to gather: a real socket, and a clock that is ours."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cdc.source.gathering import Gathering

SECOND = 1.0
MIB = 1024**2


@dataclass
class Sender:
    """Sends so many bytes in each pause; its clock goes on by the pauses alone."""

    socket: socket.socket
    sizes: Iterator[int]
    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        self.socket.sendall(b"x" * next(self.sizes, 0))


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        theirs, _ = server.accept()
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
            yield ours, theirs


def paused(
    pair: tuple[socket.socket, socket.socket],
    frames: int,
    sizes: list[int] | None = None,
    *,
    within: float = SECOND,
) -> list[float]:
    """Give the pauses after so many frames within some time."""
    ours, theirs = pair
    sender = Sender(theirs, iter(sizes or []))
    gathering = Gathering(ours.fileno(), enough=MIB, clock=sender.clock, sleep=sender.sleep)
    sender.now += within
    gathering.wait(frames)
    return sender.pauses


def test_a_thousand_small_transactions_a_second_are_read_at_once(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    assert paused(tcp, 3000) == []
    assert paused(tcp, 12, within=0.001) == []  # some of them at the same time


def test_the_more_comes_the_longer_it_is_left(tcp: tuple[socket.socket, socket.socket]) -> None:
    assert len(paused(tcp, 15_000, [100] * 30)) == 3


def test_a_backlog_is_left_for_20_ms_at_the_most(tcp: tuple[socket.socket, socket.socket]) -> None:
    assert sum(paused(tcp, 10**6, [100] * 30)) == pytest.approx(0.02)


def test_it_is_read_as_soon_as_no_more_comes(tcp: tuple[socket.socket, socket.socket]) -> None:
    assert len(paused(tcp, 10**6, [100, 100])) == 2 + 5


def test_it_is_read_as_soon_as_it_is_enough(tcp: tuple[socket.socket, socket.socket]) -> None:
    pauses = paused(tcp, 10**6, [MIB // 4] * 30)

    assert 4 <= len(pauses) < 20


def test_a_unix_socket_is_hardly_left_for_it_is_soon_full() -> None:
    pair = socket.socketpair()
    try:
        assert sum(paused(pair, 10**6, [100] * 30)) < 0.001
    finally:
        for one in pair:
            one.close()

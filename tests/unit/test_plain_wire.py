"""What a socket holds is read as messages, whatever is in them and however it comes."""

import socket
import struct
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdc.source.frame import Stretch
from cdc.source.plain_wire import PlainWire

MANY = 100  # times: more than is read one by one


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", 4 + len(body)) + body


def keepalive(position: int, *, asks: bool) -> bytes:
    return b"k" + struct.pack(">qqb", position, 0, asks)


@dataclass
class Connection:
    """What a wire wants of one: its socket."""

    socket: int

    @property
    def pgconn(self) -> "Connection":
        return self

    def send_query(self, statement: bytes) -> None:
        """Let it be said that there is one."""

    def flush(self) -> int:
        return 0


# Bytes that look like the beginning of a frame, or like its length.
deceptive = st.lists(st.sampled_from([b"d", b"\0", b"w", b"\x05", b"d\0\0\0\x09w"])).map(b"".join)
frames = st.one_of(deceptive, st.binary(max_size=40)).map(lambda content: b"w" + content)
keepalives = st.builds(keepalive, st.integers(0, 2**40), asks=st.booleans())
messages = st.one_of(
    frames.map(lambda content: ("d", content)),
    keepalives.map(lambda content: ("d", content)),
    st.just(("N", b"SWARNING\0Mtext\0\0")),
    st.just(("S", b"name\0value\0")),
)


def streaming(ours: socket.socket, theirs: socket.socket) -> Any:
    """Give a wire whose statement has been answered."""
    wire: Any = PlainWire(Connection(ours.fileno()), lambda _: None)  # type: ignore[arg-type]
    theirs.sendall(message(b"W", b"\0\0\0"))
    wire.start("START_REPLICATION")
    return wire


def read_all(sent: bytes, pieces: list[int]) -> tuple[list[bytes], list[bytes]]:
    """Give the data frames and the others that a wire gives for what comes in pieces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        wire = streaming(ours, theirs)
        found: list[bytes] = []
        others: list[bytes] = []
        while sent:
            size = pieces.pop() if pieces else len(sent)
            theirs.sendall(sent[: min(size, 50_000)])
            sent = sent[min(size, 50_000) :]
            while True:
                arrived = wire.read()
                found += map(bytes, arrived.frames)
                others += [] if arrived.other is None else [bytes(arrived.other)]
                if not len(arrived.frames) and arrived.other is None:
                    break
        return found, others


@settings(deadline=None)
@given(st.lists(messages, min_size=1), st.lists(st.integers(1, 9000), max_size=20), st.booleans())
@example([("d", b"w" + b"d\0\0\0\x09w" * 3)], [], False)
@example([("d", b"wone"), ("d", keepalive(7, asks=True)), ("d", b"wtwo")], [], True)
@example([("d", b"wone"), ("d", keepalive(7, asks=False))], [], False)
def test_frames_come_in_order_and_what_asks_for_an_answer_is_told(
    sent: list[tuple[str, bytes]], pieces: list[int], small: bool
) -> None:
    sent = sent if small else sent * MANY
    whole = b"".join(message(kind.encode(), body) for kind, body in sent)
    data = [body for kind, body in sent if kind == "d" and body[:1] == b"w"]
    alive = [body for kind, body in sent if kind == "d" and body[:1] == b"k"]

    found, others = read_all(whole, pieces)

    assert found == data
    assert any(other[-1] for other in others) == any(body[-1] for body in alive)
    if [body for kind, body in sent if kind == "d"][-1:] == alive[-1:] != []:
        assert others[-1][:-1] == alive[-1][:-1]  # the last one tells how far the server is
    assert {other[:-1] for other in others} <= {body[:-1] for body in alive}


def test_a_keepalive_after_every_transaction_costs_no_more_than_its_bytes() -> None:
    sent = (message(b"d", b"w" * 40) * 3 + message(b"d", keepalive(1, asks=False))) * 5000

    found, others = read_all(sent, [])

    assert len(found) == 15_000
    assert len(others) < 100


@pytest.mark.parametrize("times", [1, MANY])
def test_a_frame_of_a_kind_that_nobody_knows_is_not_passed_by(times: int) -> None:
    before, unknown, after = b"w" * 60, b"x" * 60, b"w" * 61
    sent = [*[before] * times, unknown, *[after] * times]

    found, others = read_all(b"".join(message(b"d", body) for body in sent), [])

    assert others == [unknown]
    assert found == [*[before] * times, *[after] * times]


@pytest.mark.parametrize("times", [1, MANY])
def test_what_follows_an_error_is_not_looked_at(times: int) -> None:
    error = message(b"E", b"SERROR\0VERROR\0C42704\0Mgone\0\0")
    sent = message(b"d", b"w" * 60) * times + error + message(b"Z", b"I")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        wire = streaming(ours, theirs)
        theirs.sendall(sent)

        frames, other, ended = wire.read()

        assert (len(frames), other, ended) == (times, None, True)
        assert tuple(wire.read()) == ((), None, True)
        assert wire.ended().sqlstate == "42704"


def test_a_stretch_is_cut_and_joined_again() -> None:
    frames = [memoryview(text) for text in (b"one", b"", b"three")]
    for count in range(4):
        first, rest = Stretch(frames).cut(count)

        assert list(first) == frames[:count]
        assert list(rest) == frames[count:]
        assert list(first + rest) == frames

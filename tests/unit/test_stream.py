"""Frames of the replication stream, built by hand from Postgres's documentation."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import ProtocolError
from cdc.source.frame import HEADER_BYTES, Keepalive, Stretch, keepalive, position

DATA = b"w" + struct.pack(">qqq", 0x16B3748, 0x16B3750, 5)
KEEPALIVE = b"k" + struct.pack(">qqb", 0x16B3748, 5, 1)


def test_data_has_its_position_and_message() -> None:
    frame = memoryview(DATA + b"message")
    assert (position(frame), bytes(frame[HEADER_BYTES:])) == (0x16B3748, b"message")
    assert bytes(memoryview(DATA)[HEADER_BYTES:]) == b""


@pytest.mark.parametrize("reply", [True, False])
def test_a_keepalive_has_the_end_of_the_wal_and_may_ask_for_a_reply(reply: bool) -> None:
    frame = memoryview(KEEPALIVE[:-1] + bytes([reply]))
    assert keepalive(frame) == Keepalive(0x16B3748, reply)  # type: ignore[arg-type]


@pytest.mark.parametrize("frame", [b"k", b"x", KEEPALIVE[:-1], b"\0" * 30, DATA])
def test_what_is_no_keepalive_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        keepalive(memoryview(frame))


def test_data_that_is_cut_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        position(memoryview(DATA[:-9]))


@given(st.sampled_from([b"", b"w", b"k"]), st.binary(max_size=40))
def test_any_bytes_are_read_or_are_a_protocol_error(head: bytes, tail: bytes) -> None:
    for read in (keepalive, position):
        with suppress(ProtocolError):
            read(memoryview(head + tail))


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_a_stretch_gives_back_its_frames(frames: list[bytes]) -> None:
    stretch = Stretch([memoryview(frame) for frame in frames])
    assert [bytes(frame) for frame in stretch] == frames
    assert [bytes(frame) for frame in stretch] == frames

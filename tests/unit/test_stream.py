"""Frames of the replication stream, built by hand from Postgres's documentation."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import ProtocolError
from cdc.source.stream import Data, Keepalive, parse

DATA = b"w" + struct.pack(">qqq", 0x16B3748, 0x16B3750, 5)
KEEPALIVE = b"k" + struct.pack(">qqb", 0x16B3748, 5, 1)


def test_data_has_its_position_and_payload() -> None:
    frame = parse(DATA + b"payload")
    assert isinstance(frame, Data)
    assert (frame.lsn, bytes(frame.payload)) == (0x16B3748, b"payload")
    assert bytes(parse(DATA).payload) == b""  # type: ignore[union-attr]


@pytest.mark.parametrize("reply", [True, False])
def test_a_keepalive_has_the_end_of_the_wal_and_may_ask_for_a_reply(reply: bool) -> None:
    assert parse(KEEPALIVE[:-1] + bytes([reply])) == Keepalive(0x16B3748, reply)  # type: ignore[arg-type]


@pytest.mark.parametrize("frame", [b"", b"w", b"k", b"x", DATA[:-1], KEEPALIVE[:-1], b"\0" * 30])
def test_what_is_no_frame_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(frame)


@given(st.sampled_from([b"", b"w", b"k"]), st.binary(max_size=40))
def test_any_bytes_are_a_frame_or_a_protocol_error(head: bytes, tail: bytes) -> None:
    with suppress(ProtocolError):
        parse(memoryview(head + tail))

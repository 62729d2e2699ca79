"""Frames of the Postgres documentation, "Streaming Replication Protocol": CopyData, both ways."""

import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from msgspec import Struct

from cdc.errors import ProtocolError
from cdc.lsn import Lsn

Frame = memoryview
"""A frame from the server: a data frame, unless it is read as a Keepalive."""

_EPOCH_SECONDS: Final = 946_684_800  # 2000-01-01, Postgres's epoch, in Unix time
IS_DATA: Final = ord("w")
"""The first byte of a data frame."""

_DATA_HEADER: Final = struct.Struct(">cqqq")
_KEEPALIVE: Final = struct.Struct(">cqqb")
_STATUS: Final = struct.Struct(">cqqqqb")

HEADER_BYTES: Final = _DATA_HEADER.size
"""What comes before the plugin's message in a data frame."""


class Stretch:
    """Frames joined: a fraction of what they take in memory one by one."""

    __slots__ = ("data", "lengths")

    def __init__(self, frames: Sequence[Frame]) -> None:
        """Copy the frames."""
        self.data = b"".join(frames)
        self.lengths = array("I", map(len, frames))

    def __iter__(self) -> Iterator[Frame]:
        view = memoryview(self.data)
        ends = accumulate(self.lengths)
        return (view[end - length : end] for end, length in zip(ends, self.lengths, strict=True))


class Keepalive(Struct, frozen=True, gc=False):
    """The server has sent everything before `wal_end`."""

    wal_end: Lsn
    reply_requested: bool


def position(frame: Frame) -> Lsn:
    """Say where the change is that a data frame tells of; raise ProtocolError where it is cut."""
    try:
        return Lsn(_DATA_HEADER.unpack_from(frame)[1])
    except struct.error:
        raise ProtocolError("the server sent a data frame without its header") from None


def keepalive(frame: Frame) -> Keepalive:
    """Read a frame that is no data frame; raise ProtocolError where it is no keepalive."""
    try:
        kind, wal_end, _, reply = _KEEPALIVE.unpack_from(frame)
    except struct.error:
        kind = b""
    if kind != b"k":
        raise ProtocolError("the server sent a frame that is neither data nor keepalive")
    return Keepalive(Lsn(wal_end), bool(reply))


def status(*, written: Lsn, flushed: Lsn, ask: bool = False) -> bytes:
    """Build the standby status update that tells how far we are; `ask` for an answer."""
    now = int((time.time() - _EPOCH_SECONDS) * 1_000_000)
    return _STATUS.pack(b"r", written, flushed, flushed, now, ask)

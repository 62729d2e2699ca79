"""Frames of the Postgres documentation, "Streaming Replication Protocol": CopyData, both ways."""

import struct
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cdc.errors import ProtocolError
from cdc.lsn import Lsn

Numbers: TypeAlias = NDArray[np.int64]

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
    """Frames in some bytes; `starts` and `ends` tell where. Other bytes may be between them."""

    __slots__ = ("data", "ends", "starts")

    def __init__(self, frames: Sequence[Frame] = ()) -> None:
        """Join the frames: a fraction of what they take in memory one by one."""
        self.data = b"".join(frames)
        lengths = np.fromiter(map(len, frames), np.int64, len(frames))
        self.ends: Numbers = np.cumsum(lengths)
        self.starts: Numbers = self.ends - lengths

    @classmethod
    def at(cls, data: bytes, starts: Numbers, ends: Numbers) -> Self:
        """Take frames where they are."""
        stretch = cls.__new__(cls)
        stretch.data, stretch.starts, stretch.ends = data, starts, ends
        return stretch

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def size(self) -> int:
        """How many bytes the frames have."""
        return int((self.ends - self.starts).sum())

    def __iter__(self) -> Iterator[Frame]:
        view = memoryview(self.data)
        bounds = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        return (view[start:end] for start, end in bounds)

    def __getitem__(self, index: int) -> Frame:
        return memoryview(self.data)[self.starts[index] : self.ends[index]]

    def __add__(self, other: "Stretch") -> "Stretch":
        shift = len(self.data)
        return Stretch.at(
            self.data + other.data,
            np.concatenate((self.starts, other.starts + shift)),
            np.concatenate((self.ends, other.ends + shift)),
        )

    def cut(self, count: int) -> tuple["Stretch", "Stretch"]:
        """Give the first frames, where they are, and the others."""
        if count >= len(self):
            return self, Stretch()
        if not count:
            return Stretch(), self
        begin = int(self.starts[count])
        rest = Stretch.at(self.data[begin:], self.starts[count:] - begin, self.ends[count:] - begin)
        return Stretch.at(self.data, self.starts[:count], self.ends[:count]), rest


class Keepalive(Struct, frozen=True, gc=False):
    """The server has sent everything before `wal_end`."""

    wal_end: Lsn
    reply_requested: bool


class Arrived(NamedTuple):
    """Data frames; a frame of another kind, which came after them; whether the stream has ended.

    Many frames are a stretch.
    """

    frames: Sequence[Frame] | Stretch
    other: Frame | None
    ended: bool


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

"""Data frames are found in what a socket holds, whatever is in them."""

import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdc.source.frame import Stretch
from cdc.source.plain_wire import data_frames

DATA, KEEPALIVE = b"w", b"k"


def copy_data(content: bytes) -> bytes:
    return b"d" + struct.pack(">I", 4 + len(content)) + content


# Bytes that look like the beginning of a frame, or like its length.
deceptive = st.lists(st.sampled_from([b"d", b"\0", b"w", b"\x05", b"d\0\0\0\x09w"])).map(b"".join)
contents = st.one_of(deceptive, st.binary(max_size=40))
others = st.one_of(
    contents.map(lambda content: copy_data(KEEPALIVE + content)),
    st.sampled_from([b"c\0\0\0\x04", b"N\0\0\0\x06M\0", b"d\0\0\0\x04"]),
)


@settings(deadline=None)
@given(st.lists(contents, min_size=1), others, deceptive, st.integers(0, 9), st.integers(0, 99))
@example([b"d\0\0\0\x09w" * 3] * 40, b"c\0\0\0\x04", b"", 0, 0)
def test_frames_are_found_up_to_another_message_or_one_that_is_not_all_there(
    frames: list[bytes], other: bytes, after: bytes, before: int, missing: int
) -> None:
    content = [DATA + frame for frame in frames] * 20
    one = b"".join(map(copy_data, content))
    data = bytearray(b"x" * before + one + other + after)
    end = len(data) - min(missing, len(data) - before)
    whole, at = [], before
    for frame in content:
        at += 5 + len(frame)
        whole += [frame] if at <= end else []

    starts, ends = data_frames(data, before, end)

    assert [bytes(frame) for frame in Stretch.at(bytes(data), starts, ends)] == whole


def test_a_stretch_is_cut_and_joined_again() -> None:
    frames = [memoryview(text) for text in (b"one", b"", b"three")]
    for count in range(4):
        first, rest = Stretch(frames).cut(count)

        assert list(first) == frames[:count]
        assert list(rest) == frames[count:]
        assert list(first + rest) == frames

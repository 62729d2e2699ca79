"""Snapshots of the write database: which transactions a look at the catalog saw."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.snapshot import Snapshot, precedes

XIDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("text", "seen", "unseen"),
    [
        ("740:740:", [3, 739], [740, 741, 2**30]),
        ("740:745:740,743", [739, 741, 742, 744], [740, 743, 745]),
        # The epoch is in the snapshot and not in the stream.
        ("4294967300:4294967310:4294967305", [5, 13, 2**32 - 1], [9, 14]),
        ("8589934592:8589934592:", [2**32 - 1], [0, 1]),
    ],
)
def test_what_was_running_or_came_later_is_not_seen(
    text: str, seen: list[int], unseen: list[int]
) -> None:
    snapshot = Snapshot.parse(text)
    assert [xid for xid in seen if not snapshot.sees(xid)] == []
    assert [xid for xid in unseen if snapshot.sees(xid)] == []


@given(XIDS, st.integers(1, 2**31 - 1))
def test_xids_go_round(xid: int, distance: int) -> None:
    later = (xid + distance) % 2**32
    assert precedes(xid, later)
    assert not precedes(later, xid)
    assert not precedes(xid, xid)

"""The window: what a snapshot does not see of what was streamed."""

from datetime import UTC, datetime

import pytest

from cdc.assemble import Transaction
from cdc.change import Change, Column, Deleted, Inserted, Relation, Truncated, updated
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.snapshot import Snapshot
from cdc.values import UNCHANGED
from cdc.window import Window, bring_up_to_date

NAME = TableName("public", "t")
OTHER = TableName("public", "other")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def relation(name: TableName = NAME, columns: str = "id a b") -> Relation:
    return Relation(name, tuple(Column(c, 25, 25) for c in columns.split()), ("id",))


T = relation()


def inserted(*values) -> Change:
    return Inserted(T, values)


def update(*values, old: str | None = None) -> Change:
    return updated(T, values, old_key=None if old is None else (old,), old_values=None)


def deleted(key: str) -> Change:
    return Deleted(T, (key,))


def transaction(xid: int, *changes: Change, size: int = 100) -> Transaction:
    return Transaction(xid, Lsn(xid), Lsn(xid + 1), NOW, list(changes), size)


def up_to_date(rows: list[tuple], *changes: Change) -> list[tuple]:
    now = bring_up_to_date({(row[0],): row for row in rows}, changes, T)
    assert now is not None
    assert not set(now.untouched.values()) & set(now.changed)
    return sorted([*now.untouched.values(), *now.changed])


def test_a_row_nothing_happened_to_stays() -> None:
    now = bring_up_to_date({("1",): ("1", "x", "y")}, [update("2", "p", "q")], T)
    assert now is not None
    assert now.untouched == {("1",): ("1", "x", "y")}


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ([update("1", "new", "z")], [("1", "new", "z")]),
        ([update("1", "new", UNCHANGED)], [("1", "new", "big")]),
        ([update("1", "new", UNCHANGED), update("1", UNCHANGED, "z")], [("1", "new", "z")]),
        ([deleted("1")], []),
        ([deleted("1"), inserted("1", "c", "d")], [("1", "c", "d")]),
        ([update("5", "new", UNCHANGED, old="1")], [("5", "new", "big")]),
        (
            [update("5", "n", UNCHANGED, old="1"), update("1", "m", UNCHANGED, old="5")],
            [("1", "m", "big")],
        ),
        ([update("5", "n", UNCHANGED, old="1"), deleted("5")], []),
        (
            [update("5", "n", UNCHANGED, old="1"), inserted("1", "c", "d")],
            [("1", "c", "d"), ("5", "n", "big")],
        ),
        ([Truncated(T)], []),
        ([Truncated(T), inserted("7", "c", "d")], [("7", "c", "d")]),
    ],
)
def test_what_happened_to_a_row_is_in_it(changes: list[Change], rows: list[tuple]) -> None:
    assert up_to_date([("1", "a", "big")], *changes) == rows


def test_a_row_that_is_not_of_the_chunk_and_was_not_sent_whole_is_left_to_the_stream() -> None:
    assert up_to_date([], update("9", "n", UNCHANGED), update("5", "n", UNCHANGED, old="4")) == []


def test_a_row_that_moved_here_from_elsewhere_replaces_the_one_that_was_here() -> None:
    changes = [deleted("1"), update("1", "n", UNCHANGED, old="99")]
    assert up_to_date([("1", "a", "big")], *changes) == []


def test_a_row_that_came_into_being_meanwhile_is_among_the_changed_ones() -> None:
    assert up_to_date([], inserted("9", "c", "d"), update("9", "e", UNCHANGED)) == [("9", "e", "d")]


def test_a_table_described_otherwise_cannot_be_brought_up_to_date() -> None:
    change = Inserted(relation(columns="id a b c"), ("1", "a", "b", "c"))
    assert bring_up_to_date({}, [change], T) is None


def test_a_snapshot_that_lacks_what_was_streamed_already_is_refused() -> None:
    window = Window()
    window.note(transaction(10, inserted("1", "a", "b")))
    assert window.open(NAME, Snapshot(11, frozenset({10}))) is None
    assert window.open(NAME, Snapshot(11)) is not None


def test_what_no_snapshot_has_seen_yet_is_remembered_however_long_ago_it_was_streamed() -> None:
    window = Window()
    for xid in range(10, 20):
        window.note(transaction(xid, inserted("1", "a", "b")))
    window.settle(Snapshot(20, frozenset({12})))
    assert window.open(NAME, Snapshot(30, frozenset({12}))) is None
    assert window.open(NAME, Snapshot(30)) is not None


def test_changes_that_the_snapshot_sees_are_not_kept() -> None:
    window = Window()
    opened = window.open(NAME, Snapshot(20, frozenset({15})))
    assert opened is not None
    for xid in (14, 15, 20, 21):
        window.note(transaction(xid, inserted(str(xid), "a", "b")))
    window.note(transaction(22, Inserted(relation(OTHER), ("22", "a", "b"))))
    assert [change.key["id"] for change in opened.changes()] == ["15", "20", "21"]


def test_what_came_after_it_was_closed_is_not_kept() -> None:
    window = Window()
    opened = window.open(NAME, Snapshot(20))
    assert opened is not None
    window.close(opened)
    window.note(transaction(21, inserted("1", "a", "b")))
    assert not list(opened.changes())


def test_more_than_can_be_kept_is_dropped_with_all_the_rest() -> None:
    window = Window(limit_bytes=150)
    opened = window.open(NAME, Snapshot(20))
    assert opened is not None
    window.note(transaction(21, inserted("1", "a", "b")))
    assert not opened.dropped
    window.note(transaction(22, inserted("2", "a", "b")))
    assert opened.dropped
    assert not list(opened.changes())


def test_a_row_that_changed_elsewhere_is_known_in_part() -> None:
    changes = [update("9", "n", UNCHANGED), update("5", "m", UNCHANGED, old="9")]
    now = bring_up_to_date({}, changes, T)
    assert now is not None
    assert (now.changed, now.partial) == ([], [("5", "m", UNCHANGED)])

"""Messages to transactions."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.assemble import Assembler, Transaction
from cdc.change import Column, Inserted, Relation
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.message import Begin, Commit, Emitted, Message
from cdc.names import TableName

NOW = datetime(2024, 1, 1, tzinfo=UTC)
RELATION = Relation(TableName("public", "t"), (Column("id", 23, 23),), ("id",))


def begin(lsn: int, xid: int = 1) -> Begin:
    return Begin(xid, Lsn(lsn), NOW)


def commit(lsn: int, end: int) -> Commit:
    return Commit(Lsn(lsn), Lsn(end))


def inserted(number: int) -> Inserted:
    return Inserted(RELATION, (str(number),))


def fed(assembler: Assembler, *messages: Message, size: int = 10) -> list[Transaction]:
    fed = (assembler.feed(message, size) for message in messages)
    return [whole for whole in fed if whole is not None]


def test_a_transaction_has_all_its_changes_in_order() -> None:
    changes = [inserted(number) for number in range(3)]
    (whole,) = fed(Assembler(Lsn(0), piece_bytes=1000), begin(10, 7), *changes, commit(10, 20))
    assert whole == Transaction(7, Lsn(10), Lsn(20), NOW, list(changes), 30)
    assert whole.ends


def test_a_transaction_without_changes_still_tells_its_end() -> None:
    (whole,) = fed(Assembler(Lsn(0), piece_bytes=1000), begin(10), commit(10, 20))
    assert (whole.changes, whole.end_lsn) == ([], 20)


@pytest.mark.parametrize(
    ("checkpoint", "kept"),
    [(0, [10, 20, 30]), (11, [20, 30]), (20, [20, 30]), (21, [30]), (40, [])],
)
def test_what_the_checkpoint_covers_is_dropped_whole(checkpoint: int, kept: list[int]) -> None:
    assembler = Assembler(Lsn(checkpoint), piece_bytes=1)
    messages = [
        message
        for start in (10, 20, 30)
        for message in (begin(start), inserted(start), commit(start, start + 10))
    ]
    whole = [piece.commit_lsn for piece in fed(assembler, *messages) if piece.ends]
    assert whole == kept
    assert assembler.between_transactions


def test_a_transaction_sent_twice_is_taken_once() -> None:
    assembler = Assembler(Lsn(0), piece_bytes=1000)
    once = (begin(10), inserted(1), commit(10, 20))
    assert len(fed(assembler, *once, *once)) == 1


@given(
    sizes=st.lists(st.integers(1, 50), max_size=30),
    piece_bytes=st.integers(1, 100),
)
def test_pieces_are_bounded_and_make_up_the_whole(sizes: list[int], piece_bytes: int) -> None:
    assembler = Assembler(Lsn(0), piece_bytes=piece_bytes)
    pieces = [assembler.feed(begin(10), 5)]
    for number, size in enumerate(sizes):
        pieces.append(assembler.feed(inserted(number), size))
    assert not assembler.between_transactions
    pieces.append(assembler.feed(commit(10, 20), 5))
    pieces = [piece for piece in pieces if piece is not None]
    assert assembler.between_transactions
    assert [c.values[0] for p in pieces for c in p.changes] == [str(n) for n in range(len(sizes))]
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(piece.size for piece in pieces) == sum(sizes)
    assert all(piece.size < piece_bytes + 50 for piece in pieces)
    assert all(piece.size >= piece_bytes for piece in pieces[:-1])


def test_messages_that_were_emitted_change_nothing() -> None:
    assembler = Assembler(Lsn(0), piece_bytes=1000)
    emitted = Emitted("cdc", "mark")
    assert fed(assembler, emitted) == []
    (whole,) = fed(assembler, begin(10), emitted, inserted(1), emitted, commit(10, 20), emitted)
    assert len(whole.changes) == 1


@pytest.mark.parametrize(
    "messages",
    [
        (begin(10), begin(20)),
        (inserted(1),),
        (commit(10, 20),),
        (begin(10), commit(11, 20)),
        (begin(10), commit(10, 20), commit(10, 20)),
        (begin(10), commit(10, 20), inserted(1)),
    ],
)
def test_an_order_that_no_transaction_has_is_an_error(messages: tuple[Message, ...]) -> None:
    with pytest.raises(ProtocolError):
        fed(Assembler(Lsn(0), piece_bytes=1000), *messages)

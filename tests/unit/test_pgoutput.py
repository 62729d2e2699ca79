"""pgoutput's messages, built by hand from Postgres's documentation."""

import contextlib
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.change import Deleted, Inserted, Truncated, Updated
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.message import Begin, Commit, Emitted, Message
from cdc.names import TableName
from cdc.schema import SourceColumn, SourceTable
from cdc.source.pgoutput import PgOutput, options
from cdc.source.relations import Relations
from cdc.values import UNCHANGED

T = TableName("b", "t")
OID = 70_000
Cell = str | None | bytes
UNSENT = b"u"


def oid(name: str) -> int:
    return 23 if name == "id" else 25


def source(*columns: str, key: tuple[str, ...] = ("id",), generated: str = "") -> SourceTable:
    described = tuple(
        SourceColumn(name, oid(name), "", oid(name), "", name == generated) for name in columns
    )
    return SourceTable(T, described, key, "default")


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def relation(*columns: str, key: str = "id", identity: bytes = b"d", number: int = OID) -> bytes:
    described = b"".join(
        struct.pack("b", name in key.split(",")) + text(name) + struct.pack(">Ii", kind, -1)
        for name, kind in ((name, oid(name)) for name in columns)
    )
    head = b"R" + struct.pack(">I", number) + text("b") + text("t") + identity
    return head + struct.pack(">h", len(columns)) + described


def tuple_data(*cells: Cell) -> bytes:
    parts = [struct.pack(">h", len(cells))]
    for cell in cells:
        if cell is None:
            parts.append(b"n")
        elif isinstance(cell, bytes):
            parts.append(cell)
        else:
            parts.append(b"t" + struct.pack(">i", len(cell.encode())) + cell.encode())
    return b"".join(parts)


def change(kind: bytes, *parts: bytes, number: int = OID) -> bytes:
    return kind + struct.pack(">I", number) + b"".join(parts)


def insert(*cells: Cell) -> bytes:
    return change(b"I", b"N", tuple_data(*cells))


BEGIN = b"B" + struct.pack(">qqI", 0x156B240, 757_000_000_000_000, 3_000_000_000)
COMMIT = b"C" + struct.pack(">bqqq", 0, 0x156B240, 0x156B270, 0)


def decoded(table: SourceTable, *payloads: bytes) -> list[Message]:
    decoder = PgOutput(Relations({table.name: table}))
    return [message for payload in payloads for message in decoder.decode(memoryview(payload))]


def test_a_begin_and_a_commit_give_their_positions_and_time() -> None:
    time = datetime(2023, 12, 27, 13, 46, 40, tzinfo=UTC)
    assert decoded(source("id"), BEGIN, COMMIT) == [
        Begin(3_000_000_000, Lsn(0x156B240), time),
        Commit(Lsn(0x156B240), Lsn(0x156B270)),
    ]


def test_values_are_texts_nulls_or_not_sent() -> None:
    (inserted,) = decoded(source("id", "v"), relation("id", "v"), insert("1", "é😀\n"))
    assert isinstance(inserted, Inserted)
    assert inserted.values == ("1", "é😀\n")
    assert inserted.relation.key == ("id",)
    null, empty = decoded(source("id", "v"), relation("id", "v"), insert("1", None), insert("", ""))
    assert isinstance(null, Inserted)
    assert isinstance(empty, Inserted)
    assert (null.values, empty.values) == (("1", None), ("", ""))


def test_an_update_without_an_old_tuple_keeps_its_key() -> None:
    update = change(b"U", b"N", tuple_data("1", UNSENT))
    (updated,) = decoded(source("id", "v"), relation("id", "v"), update)
    assert isinstance(updated, Updated)
    assert updated == Updated(updated.relation, ("1", UNCHANGED), partial=True)


def test_a_changed_key_comes_with_the_old_one() -> None:
    update = change(b"U", b"K", tuple_data("1", None), b"N", tuple_data("2", UNSENT))
    (updated,) = decoded(source("id", "v"), relation("id", "v"), update)
    assert isinstance(updated, Updated)
    assert updated == Updated(updated.relation, ("2", UNCHANGED), ("1",), partial=True)


def test_full_identity_gives_the_old_row_and_fills_what_was_not_sent() -> None:
    update = change(b"U", b"O", tuple_data("1", "old"), b"N", tuple_data("1", UNSENT))
    (updated,) = decoded(source("id", "v"), relation("id", "v", identity=b"f"), update)
    assert isinstance(updated, Updated)
    assert updated == Updated(updated.relation, ("1", "old"), None, ("1", "old"))


def test_a_toasted_key_that_was_not_sent_is_taken_from_the_old_tuple() -> None:
    table = source("v", "id", key=("v",))
    update = change(b"U", b"K", tuple_data("long", None), b"N", tuple_data(UNSENT, "5"))
    (updated,) = decoded(table, relation("v", "id", key="v"), update)
    assert isinstance(updated, Updated)
    assert (updated.values, updated.old_key_values) == (("long", "5"), None)


def test_a_delete_has_its_key_and_with_full_identity_the_row() -> None:
    table = source("id", "k", "v", key=("k", "id"))
    by_key, full = decoded(
        table,
        relation("id", "k", "v", key="id,k"),
        change(b"D", b"K", tuple_data("1", "a", None)),
        change(b"D", b"O", tuple_data("1", "a", None)),
    )
    assert isinstance(by_key, Deleted)
    assert isinstance(full, Deleted)
    assert (by_key.key_values, by_key.old_values) == (("a", "1"), None)
    assert (full.key_values, full.old_values) == (("a", "1"), ("1", "a", None))


def test_a_truncate_names_every_table() -> None:
    truncate = b"T" + struct.pack(">ibII", 2, 3, OID, OID + 1)
    relations = relation("id"), relation("id", number=OID + 1)
    messages = decoded(source("id"), *relations, truncate)
    assert [type(message) for message in messages] == [Truncated, Truncated]


def test_generated_columns_are_dropped_also_where_a_server_sends_them() -> None:
    table = source("id", "g", "v", generated="g")
    sent, not_sent = (
        decoded(table, relation(*names), insert(*cells))
        for names, cells in ((("id", "g", "v"), ("1", "7", "a")), (("id", "v"), ("1", "a")))
    )
    assert isinstance(sent[0], Inserted)
    assert isinstance(not_sent[0], Inserted)
    assert sent[0].values == not_sent[0].values == ("1", "a")
    assert sent[0].relation.names == not_sent[0].relation.names == ("id", "v")


def test_a_relation_sent_again_describes_what_follows() -> None:
    before, after = decoded(
        source("id", "v"),
        relation("id", "v"),
        insert("1", "a"),
        relation("id", "w", "v"),
        insert("2", "b", "c"),
    )
    assert isinstance(before, Inserted)
    assert isinstance(after, Inserted)
    assert dict(before.row) == {"id": 1, "v": "a"}
    assert dict(after.row) == {"id": 2, "w": "b", "v": "c"}


def test_types_origins_and_messages_are_read() -> None:
    content = "low \N{SNOWMAN}".encode()
    emitted = b"M" + struct.pack(">bq", 1, 5) + text("wm") + struct.pack(">i", len(content))
    type_ = b"Y" + struct.pack(">I", 5) + text("b") + text("mood")
    origin = b"O" + struct.pack(">q", 1) + text("here")
    assert decoded(source("id"), type_, origin, emitted + content) == [
        Emitted("wm", "low \N{SNOWMAN}")
    ]


def test_a_message_of_bytes_is_no_error() -> None:
    emitted = b"M" + struct.pack(">bq", 1, 5) + text("x") + struct.pack(">i", 2) + b"\xff\x00"
    assert len(decoded(source("id"), emitted)) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"?",
        b"B",
        BEGIN[:-1],
        COMMIT[:-1],
        insert("1", "a")[:-1],
        insert("1"),
        insert("1", "a", "b"),
        change(b"I", b"N", b"\xff\xff"),
        change(b"I", b"N", struct.pack(">h", 2), b"t", struct.pack(">i", -7), b"n"),
        change(b"I", b"N", struct.pack(">h", 2), b"b", struct.pack(">i", 1), b"xn"),
        change(b"I", b"N", struct.pack(">h", 2), b"t", struct.pack(">i", 1), b"\xffn"),
        change(b"I", b"N", tuple_data("1", "a"), number=1),
        change(b"I", b"X", tuple_data("1", "a")),
        change(b"U", b"X", tuple_data("1", "a"), b"N", tuple_data("1", "a")),
        change(b"U", b"K", tuple_data("1", "a"), b"X", tuple_data("1", "a")),
        change(b"D", b"N", tuple_data("1", "a")),
        b"T" + struct.pack(">ib", 5, 0),
        b"T" + struct.pack(">ib", -5, 0),
        b"T" + struct.pack(">ibI", 1, 0, 9),
        b"R" + struct.pack(">I", 1) + b"no end",
        relation("id", "v", number=1)[:-3],
        b"M" + struct.pack(">bq", 1, 5) + text("x") + struct.pack(">i", 200),
        b"M" + struct.pack(">bq", 1, 5) + text("x") + struct.pack(">i", -200),
        b"S" + struct.pack(">Ib", 1, 1),
    ],
)
def test_what_is_none_of_its_messages_is_a_protocol_error(payload: bytes) -> None:
    decoder = PgOutput(Relations({T: source("id", "v")}))
    decoder.decode(relation("id", "v"))
    with pytest.raises(ProtocolError):
        decoder.decode(payload)


def test_a_relation_without_its_key_is_an_error_that_names_the_table() -> None:
    with pytest.raises(ProtocolError, match=r"b\.t"):
        decoded(source("id", "v"), relation("v", key=""))


MESSAGES = [
    BEGIN,
    COMMIT,
    relation("id", "v"),
    insert("1", "é"),
    insert("1", None),
    change(b"U", b"K", tuple_data("1", None), b"N", tuple_data("2", UNSENT)),
    change(b"U", b"O", tuple_data("1", "a"), b"N", tuple_data("2", UNSENT)),
    change(b"D", b"O", tuple_data("1", "a")),
    b"T" + struct.pack(">ibI", 1, 3, OID),
    b"M" + struct.pack(">bq", 1, 5) + text("wm") + struct.pack(">i", 1) + b"x",
]


@given(
    st.sampled_from(MESSAGES),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4),
    st.integers(0, 80),
    st.binary(max_size=4),
)
def test_a_mutated_message_is_read_whole_or_a_protocol_error(
    message: bytes, bytes_set: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    data = bytearray(message)
    for position, byte in bytes_set:
        data[position % len(data)] = byte
    payload = bytes(data[: cut or None]) + tail
    decoder = PgOutput(Relations({T: source("id", "v")}))
    decoder.decode(relation("id", "v"))
    try:
        for change_ in decoder.decode(payload):
            if isinstance(change_, Inserted | Updated):
                assert len(change_.values) == len(change_.relation.columns)
    except ProtocolError:
        pass


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_a_protocol_error(payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        PgOutput(Relations({})).decode(payload)


def test_no_name_breaks_out_of_the_publication_list() -> None:
    assert options(['a"b', "c,d"])["publication_names"] == '"a""b","c,d"'

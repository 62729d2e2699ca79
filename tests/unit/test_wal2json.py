"""wal2json's lines, as recorded from versions 2.5 and 2.6."""

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.change import Deleted, Inserted, Truncated, Updated
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.message import Begin, Commit, Emitted
from cdc.names import TableName
from cdc.schema import SourceColumn, SourceTable
from cdc.source.relations import Relations
from cdc.source.wal2json import Wal2Json, options
from cdc.values import UNCHANGED

TYPES = {"id": 23, "k2": 25, "v": 25, "big": 25, "big2": 25, "n": 1700, "f": 701, "b": 17, "g": 23}
T = TableName("b", "t")


def table(
    *columns: str,
    key: tuple[str, ...] = ("id",),
    generated: tuple[str, ...] = (),
    leaves: tuple[TableName, ...] = (),
) -> SourceTable:
    described = tuple(
        SourceColumn(name, TYPES[name], "", TYPES[name], "", name in generated) for name in columns
    )
    return SourceTable(T, described, key, "default", leaves=leaves)


def decoder(source: SourceTable) -> Wal2Json:
    return Wal2Json(Relations({source.name: source}))


def cells(values: dict[str, Any]) -> str:
    """Write columns; a value that is a string is a literal."""
    return ",".join(
        f'{{"name":"{name}","typeoid":{TYPES[name]},"value":{literal}}}'
        for name, literal in values.items()
    )


def line(action: str, table: str = "t", **parts: dict[str, str]) -> bytes:
    lists = "".join(f',"{part}":[{cells(values)}]' for part, values in parts.items())
    return f'{{"action":"{action}","schema":"b","table":"{table}"{lists}}}'.encode()


def decoded(source: SourceTable, *lines: bytes) -> list[Any]:
    decode = decoder(source).decode
    return [message for one in lines for message in decode(memoryview(one))]


def test_a_begin_and_a_commit_give_their_positions_and_time() -> None:
    recorded = [
        (
            b'{"action":"B","xid":736,"timestamp":"2026-11-23 21:24:31.539648+00","origin":0,'
            b'"lsn":"0/156B240","nextlsn":"0/156B270"}'
        ),
        (
            b'{"action":"C","xid":736,"timestamp":"2026-11-23 21:24:31.539648+00","origin":0,'
            b'"lsn":"0/156B240","nextlsn":"0/156B270"}'
        ),
    ]
    time = datetime(2026, 11, 23, 21, 24, 31, 539648, tzinfo=UTC)
    assert decoded(table("id"), *recorded) == [
        Begin(736, Lsn(0x156B240), time),
        Commit(Lsn(0x156B240), Lsn(0x156B270)),
    ]


@pytest.mark.parametrize(
    ("printed", "micros"), [("31+00", 0), ("31.5+00", 500000), ("31.00001+00", 10)]
)
def test_a_commit_time_may_have_any_number_of_digits(printed: str, micros: int) -> None:
    recorded = f'{{"action":"B","xid":1,"timestamp":"2026-11-23 21:24:{printed}","lsn":"0/1"}}'
    (begin,) = decoded(table("id"), recorded.encode())
    assert begin.commit_time == datetime(2026, 11, 23, 21, 24, 31, micros, tzinfo=UTC)


def test_an_insert_with_types_and_more_options_is_read_too() -> None:
    recorded = (
        b'{"action":"I","xid":736,"timestamp":"2026-11-23 21:24:31.539648+00","origin":0,'
        b'"lsn":"0/156B158","schema":"b","table":"t","columns":[{"name":"id","type":"integer",'
        b'"typeoid":23,"value":1,"optional":false,"position":1,"default":null}],'
        b'"pk":[{"name":"id","type":"integer","typeoid":23}]}'
    )
    (insert,) = decoded(table("id"), recorded)
    assert isinstance(insert, Inserted)
    assert insert.row["id"] == 1


@pytest.mark.parametrize(
    ("column", "literal", "text"),
    [
        ("id", "9223372036854775807", "9223372036854775807"),
        ("id", "null", None),
        ("id", "-5", "-5"),
        ("n", "1.5000", "1.5000"),
        ("n", "0.00000000000000000001", "0.00000000000000000001"),
        ("n", *("12345678901234567890.12345678901234567890",) * 2),
        ("n", "0.000", "0.000"),
        # 2.6 with numeric-data-types-as-string
        ("id", '"7"', "7"),
        ("n", '"Infinity"', "Infinity"),
        ("n", '"1.500"', "1.500"),
        ("f", '"-Infinity"', "-Infinity"),
        ("f", '"-0"', "-0"),
        ("n", "18446744073709551616", "18446744073709551616"),
        ("n", "9" * 5000, "9" * 5000),
        ("n", "-" + "9" * 5000, "-" + "9" * 5000),
        ("n", "1" * 5000 + ".5", "1" * 5000 + ".5"),
        ("n", '"NaN"', "NaN"),
        ("f", "-0", "-0"),
        ("f", "0", "0"),
        ("f", "1e+30", "1e+30"),
        ("f", "1e-300", "1e-300"),
        ("f", "null", None),
        ("b", '""', "\\x"),
        ("b", '"deadbeef"', "\\xdeadbeef"),
        ("b", "null", None),
        ("v", '""', ""),
        ("v", '"null"', "null"),
        ("v", "true", "t"),
        ("v", "false", "f"),
        ("v", '"a\\"b\\\\c\\n\\u0001\\u00e9\\ud83d\\ude00\x7f"', 'a"b\\c\n\x01é😀\x7f'),
        ("v", '"{1,NULL,3}"', "{1,NULL,3}"),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"f": "-0"}, {"n": "9" * 5000}, {"b": '"00"'}])
def test_a_value_is_the_text_the_server_would_print(
    column: str, literal: str, text: str | None, beside: dict[str, str]
) -> None:
    row = {**beside, column: literal}
    (insert,) = decoded(table(*row, key=()), line("I", columns=row))
    assert insert.values[list(row).index(column)] == text


def test_unchanged_toast_is_not_null() -> None:
    source = table("id", "big", "v", "big2")
    update = line("U", columns={"id": "1", "v": "2", "big2": "null"}, identity={"id": "1"})
    (updated,) = decoded(source, update)
    assert updated == Updated(updated.relation, ("1", UNCHANGED, "2", None), partial=True)
    assert updated.relation.names == ("id", "big", "v", "big2")


def test_a_changed_key_comes_with_the_old_one() -> None:
    source = table("id", "k2", "v", key=("id", "k2"))
    update = line(
        "U",
        columns={"id": "2", "k2": '"a"', "v": '"y"'},
        identity={"id": "1", "k2": '"a"'},
    )
    (updated,) = decoded(source, update)
    assert updated.old_key_values == ("1", "a")
    assert updated.old_values is None
    assert dict(updated.key) == {"id": 2, "k2": "a"}


def test_an_old_key_equal_to_the_new_one_is_no_change_of_key() -> None:
    update = line("U", columns={"id": "1", "v": "2"}, identity={"id": "1"})
    assert decoded(table("id", "v"), update)[0].old_key_values is None


def test_full_identity_gives_the_old_row_and_fills_what_was_not_sent() -> None:
    update = line(
        "U",
        columns={"id": "2", "v": '"new"'},
        identity={"id": "1", "v": '"old"', "big": '"toasted"'},
    )
    (updated,) = decoded(table("id", "v", "big"), update)
    assert updated.values == ("2", "new", "toasted")
    assert not updated.partial
    assert updated.old_key_values == ("1",)
    assert updated.old_values == ("1", "old", "toasted")


def test_a_toasted_key_that_was_not_sent_is_taken_from_the_identity() -> None:
    source = table("v", "k2", key=("v",))
    update = line("U", columns={"k2": '"new"'}, identity={"v": '"a long key"'})
    (updated,) = decoded(source, update)
    assert updated == Updated(updated.relation, ("a long key", "new"))


def test_a_delete_has_its_key_and_with_full_identity_the_row() -> None:
    source = table("id", "k2", "v", key=("k2", "id"))
    by_key, full = decoded(
        source,
        line("D", identity={"id": "1", "k2": '"a"'}),
        line("D", identity={"id": "1", "k2": '"a"', "v": "null"}),
    )
    assert by_key == Deleted(by_key.relation, ("a", "1"))
    assert full == Deleted(full.relation, ("a", "1"), ("1", "a", None))


def test_generated_columns_are_dropped_everywhere() -> None:
    source = table("id", "g", "v", generated=("g",))
    insert, update, delete = decoded(
        source,
        line("I", columns={"id": "1", "g": "7", "v": '"a"'}),
        line("U", columns={"id": "1", "g": "7", "v": '"b"'}, identity={"id": "1"}),
        line("D", identity={"id": "1", "g": "7", "v": '"b"'}),
    )
    assert insert.values == ("1", "a")
    assert update.values == ("1", "b")
    assert delete.old_values == ("1", "b")
    assert insert.relation is update.relation
    assert insert.relation.names == ("id", "v")


def test_partitions_are_told_under_their_roots_name_whatever_their_columns_order() -> None:
    leaves = (TableName("b", "t1"), TableName("b", "t2"))
    source = table("id", "v", leaves=leaves)
    first, second, moved = decoded(
        source,
        line("I", "t1", columns={"id": "1", "v": '"a"'}),
        line("I", "t2", columns={"v": '"b"', "id": "2"}),
        line("U", "t1", columns={"id": "1", "v": '"c"'}, identity={"id": "1"}),
    )
    assert {m.relation.name for m in (first, second, moved)} == {T}
    assert [dict(m.row) for m in (first, second, moved)] == [
        {"id": 1, "v": "a"},
        {"id": 2, "v": "b"},
        {"id": 1, "v": "c"},
    ]


def test_a_truncate_and_a_message() -> None:
    truncated, emitted, empty = decoded(
        table("id"),
        b'{"action":"T","lsn":"0/2489028","schema":"b","table":"t"}',
        b'{"action":"M","xid":null,"timestamp":null,"origin":null,"lsn":"0/24892B0",'
        b'"transactional":false,"prefix":"wm","content":"low \\"x\\""}',
        b'{"action":"M","transactional":true,"prefix":"cdc","content":""}',
    )
    assert isinstance(truncated, Truncated)
    assert truncated.relation.name == T
    assert (emitted, empty) == (Emitted("wm", 'low "x"'), Emitted("cdc", ""))


def test_columns_come_and_go_while_streaming() -> None:
    source = table("id", "v")
    added, update, dropped = decoded(
        source,
        line("I", columns={"id": "1", "v": '"a"', "n": "1.0"}),
        line("U", columns={"id": "1", "v": '"b"', "n": "2.0"}, identity={"id": "1"}),
        line("I", columns={"id": "2", "n": "3.0"}),
    )
    assert dict(added.row) == {"id": 1, "v": "a", "n": 1}
    assert dict(update.row) == {"id": 1, "v": "b", "n": 2}
    assert dict(dropped.row) == {"id": 2, "n": 3}


def test_a_column_that_changed_its_type_is_decoded_as_the_new_one() -> None:
    source = table("id", "v")
    as_number = line("U", columns={"id": "1", "v": "5"}, identity={"id": "1"}).replace(
        b'"v","typeoid":25', b'"v","typeoid":23'
    )
    (update,) = decoded(source, as_number)
    assert update.row["v"] == 5


@pytest.mark.parametrize("action", ["U", "D"])
def test_an_identity_without_the_key_is_an_error_that_names_the_table(action: str) -> None:
    parts = {"columns": {"id": "1", "v": '"secret"'}} if action == "U" else {}
    with pytest.raises(ProtocolError, match=r"b\.t") as caught:
        decoded(table("id", "v"), line(action, **parts, identity={"v": '"secret"'}))
    assert "secret" not in f"{caught.value}{caught.value.hint}"


def test_a_key_column_that_is_gone_is_an_error_that_names_it() -> None:
    with pytest.raises(ProtocolError, match='"id"'):
        decoded(table("id", "v"), line("I", columns={"k2": '"1"', "v": '"secret"'}))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"I"',
        b'{"schema":"b"}',
        b'{"action":"X"}',
        b'{"action":null}',
        b'{"action":"B"}',
        b'{"action":"B","xid":1,"timestamp":"yesterday","lsn":"0/1"}',
        b'{"action":"B","xid":1,"timestamp":"2024-01-01 00:00:00+00","lsn":"nowhere"}',
        b'{"action":"B","xid":"1","timestamp":"2024-01-01 00:00:00+00","lsn":"0/1"}',
        b'{"action":"C","lsn":"0/1"}',
        b'{"action":"I","schema":"b","table":"t","columns":[{"name":"id","type":"My S".x}]}',
        b'{"action":"I","schema":"b","table":"t","columns":[{"name":"id"}]}',
        b'{"action":"I","schema":"b","table":"t","columns":[{"name":"id","typeoid":23,"value":[1]}]}',
        b'{"action":"I","schema":"b","table":"t","columns":[{"name":"id","typeoid":23,"value":{}}]}',
        b'{"action":"I","schema":"b","table":"t","columns":{}}',
        b'{"action":"I","schema":"b","table":"t"}',
        b'{"action":"U","schema":"b","table":"t","columns":[{"name":"id","typeoid":23,"value":1}]}',
        b'{"action":"D","schema":"b","table":"t"}',
        b'{"action":"M","prefix":"cdc","content":"\xff"}',
        b'{"action":"I","schema":"b","table":"t","columns":[{"name":"id","typeoid":23,"value":'
        + b"9" * 5000
        + b'},{"name":"v","typeoid":25,"value":"\xff"}]}',
        b'{"action":"I","schema":"b","table":"t","columns":[{"name":"id","typeoid":23,"value":'
        + b"9" * 5000
        + b'},{"name":"v","typeoid":25,"value":[1]}]}',
    ],
)
def test_what_is_none_of_its_lines_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decoder(table("id", "v")).decode(memoryview(payload))


RECORDED = [
    b'{"action":"B","xid":7,"timestamp":"2026-11-23 21:24:31.539648+00","lsn":"0/1"}',
    b'{"action":"C","xid":7,"lsn":"0/1","nextlsn":"0/2"}',
    b'{"action":"M","prefix":"cdc","content":"x"}',
    line("I", columns={"id": "1", "n": "1.50", "f": "-0", "b": '"00ff"', "v": '"\\u00e9"'}),
    line("U", columns={"id": "1", "f": "0"}, identity={"id": "2"}),
    line("U", columns={"id": "1", "n": "9" * 4400, "b": '"00"'}, identity={"id": "2"}),
    line("D", identity={"id": "1"}),
    line("T"),
]
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 4600),
        st.sampled_from(["cut", "set", "insert", "drop"]),
        st.sampled_from([*b'"{}[],:\\0-9tfn', 0, 1, 128, 255, 237]),
    ),
    min_size=1,
    max_size=4,
)


def mutate(payload: bytes, mutations: list[tuple[int, str, int]]) -> bytes:
    data = bytearray(payload)
    for position, kind, byte in mutations:
        at = position % max(1, len(data))
        if kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + 1]
        elif kind == "insert":
            data.insert(at, byte)
        elif data:
            data[at] = byte
    return bytes(data)


@given(st.sampled_from(RECORDED), MUTATIONS)
def test_a_mutated_line_is_read_or_a_protocol_error(
    recorded: bytes, mutations: list[tuple[int, str, int]]
) -> None:
    try:
        for message in decoder(table("id", "n", "f", "b", "v")).decode(mutate(recorded, mutations)):
            if isinstance(message, Inserted | Updated):
                assert len(message.values) == len(message.relation.columns)
                assert all(v is None or v is UNCHANGED or type(v) is str for v in message.values)
    except ProtocolError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {"action": st.sampled_from("BCIUDTM")},
        optional={
            "xid": JSON,
            "timestamp": st.sampled_from(["2024-01-01 00:00:00+00", "", "x"]) | JSON,
            "lsn": st.sampled_from(["0/1", ""]) | JSON,
            "nextlsn": JSON,
            "schema": st.just("b") | JSON,
            "table": st.just("t") | JSON,
            **{
                part: st.lists(
                    st.fixed_dictionaries(
                        {"name": st.sampled_from(["id", "v"]), "typeoid": st.integers(-1, 30)},
                        optional={"value": JSON},
                    ),
                    max_size=3,
                )
                | JSON
                for part in ("columns", "identity")
            },
            "prefix": JSON,
            "content": JSON,
        },
    )
)
def test_a_line_of_any_types_is_read_or_a_protocol_error(document: dict[str, Any]) -> None:
    with contextlib.suppress(ProtocolError):
        decoder(table("id", "v")).decode(json.dumps(document).encode())


@pytest.mark.parametrize("name", [("public", "t"), ("Ünï", 'a"b.c,d*\\'), ("a b", "*")])
def test_no_name_breaks_out_of_the_table_list(name: tuple[str, str]) -> None:
    (listed,) = (options([TableName(*name)])["add-tables"],)
    schema, _, listed_table = listed.partition(".")
    assert schema == "".join("\\" + c for c in name[0])
    assert listed_table == "".join("\\" + c for c in name[1])

"""wal2json's lines of many tables that have little in common: read together as one by one."""

import json
import random
from collections import defaultdict
from typing import Final

from cdc import lines
from cdc.assemble import Assembler, Transaction
from cdc.change import Change, Deleted, Inserted, Updated
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.reader import Reader
from cdc.rows import Bulk, Rows
from cdc.schema import SourceColumn, SourceTable
from cdc.snapshot import Snapshot
from cdc.source import wal2json_rows
from cdc.source.apart import Left
from cdc.source.frame import HEADER_BYTES, Stretch
from cdc.source.relations import Relations
from cdc.source.wal2json import Wal2Json
from cdc.source.wal2json_lines import Described

TYPES: Final = {"n": 23, "schema": 25, "blob": 17, "flag": 16, "amount": 1700, 'a "b\\': 25}
TABLES: Final = 40
ROWS_EACH: Final = 9


def table(number: int) -> SourceTable:
    """Give a table of one to seven columns, in an order of its own; of some the key is two."""
    chance = random.Random(number)
    names = chance.sample(list(TYPES), number % len(TYPES))
    columns = ["id", *names]
    chance.shuffle(columns)
    key = ("id", names[0]) if number % 3 == 0 and names and names[0] != "amount" else ("id",)
    return SourceTable(
        TableName("many", f't{number} "ü"'),
        tuple(SourceColumn(c, oid(c), "", oid(c), "text", False) for c in columns),
        key,
        "default",
        oid=1000 + number,
    )


def oid(column: str) -> int:
    return 20 if column == "id" else TYPES[column]


SCHEMA: Final = {one.name: one for one in map(table, range(TABLES))}
BULK: Final = frozenset(list(SCHEMA)[::2])


def value(chance: random.Random, column: SourceColumn, *, may_be_null: bool) -> str:
    """Give a value as wal2json prints it."""
    if may_be_null and chance.random() < 0.3:
        return "null"
    match column.type_oid:
        case 16:
            return chance.choice(["true", "false"])
        case 17:
            return chance.choice(['""', '"00ff"'])
        case 25:
            texts = ["", "x", "a\tb\n", '"value":', "\\", "\x01", "null", '"schema":"many"', "é"]
            return json.dumps(chance.choice(texts), ensure_ascii=False)
        case _:
            return str(chance.randrange(10**6)) + (".50" if column.type_oid == 1700 else "")


def line(chance: random.Random, action: str, of: SourceTable) -> bytes:
    """Give the line of a change; its key stays."""
    values = {c.name: value(chance, c, may_be_null=c.name not in of.key) for c in of.columns}
    return written(action, of, values, {name: values[name] for name in of.key})


def written(
    action: str, of: SourceTable, values: dict[str, str], key: dict[str, str], end: str = ""
) -> bytes:
    def cells(row: dict[str, str]) -> str:
        return ",".join(
            f'{{"name":{json.dumps(name)},"typeoid":{oid(name)},"value":{value}}}'
            for name, value in row.items()
        )

    parts = [f'"schema":"many","table":{json.dumps(of.name.table, ensure_ascii=False)}']
    parts += [f'"columns":[{cells(values)}]'] if action in "IU" else []
    parts += [f'"identity":[{cells(key)}]'] if action in "UD" else []
    return f'{{"action":"{action}","xid":7,"lsn":"0/10",{",".join(parts)}}}{end}'.encode()


def frames(chance: random.Random, lsn: int) -> list[memoryview]:
    """Give the frames of one transaction: some rows of every table, in any order."""
    rows = [
        line(chance, action, of)
        for of in SCHEMA.values()
        for action in chance.choices("IUD", k=ROWS_EACH)
    ]
    chance.shuffle(rows)
    ends = (
        f'{{"action":"{action}","xid":7,"timestamp":"2026-01-01 00:00:00+00",'
        f'"lsn":"{Lsn(lsn)}","nextlsn":"{Lsn(lsn + 1)}"}}'.encode()
        for action in "BC"
    )
    header = b"w" + bytes(HEADER_BYTES - 1)
    return [memoryview(header + one) for one in (next(ends), *rows, *ends)]


def read(sent: list[memoryview], *, bulk_frames: int) -> Transaction | Bulk:
    """Read frames as the second transaction: with the first, the tables are described."""
    reader = Reader(
        Wal2Json(Relations(SCHEMA, Snapshot(0)), bulk=BULK),
        Assembler(Lsn(0), piece_bytes=2**20),
        piece_bytes=2**20,
        bulk_frames=bulk_frames,
    )
    list(reader.read(Stretch(frames(random.Random(0), lsn=1))))
    (item,) = reader.read(Stretch(sent))
    return item


def by_table(changes: list[Change]) -> dict[TableName, list[Change]]:
    found = defaultdict(list)
    for change in changes:
        found[change.relation.name].append(change)
    return found


def test_rows_of_many_tables_are_told_at_once_and_are_what_each_line_says() -> None:
    for seed in range(20):
        sent = frames(random.Random(seed), lsn=10)
        expected = read(sent, bulk_frames=10**9)
        bulk = read(sent, bulk_frames=2)
        assert isinstance(expected, Transaction)
        assert isinstance(bulk, Bulk)
        whole = by_table(expected.changes)
        (left,) = bulk.transactions
        assert left.changes == [c for c in expected.changes if c.relation.name not in BULK]
        assert {rows.relation.name for rows in bulk.rows} == BULK
        for rows in bulk.rows:
            changes, relation = whole[rows.relation.name], rows.relation
            assert rows.inserted == [isinstance(c, Inserted) for c in changes]
            assert rows.deleted == [isinstance(c, Deleted) for c in changes]
            keys = rows.keys(relation.key_positions)
            for key, change in zip(keys, changes, strict=True):
                expected_key = (
                    change.key_values
                    if isinstance(change, Deleted)
                    else relation.key_of(change.values)
                )
                assert (key if isinstance(key, tuple) else (key,)) == expected_key
            written = [n for n, c in enumerate(changes) if isinstance(c, Inserted | Updated)]
            every = range(len(relation.columns))
            texts = [lines.encode(changes[n].values) for n in written]
            assert rows.lines(written, every) == texts
            some = tuple(every)[::-1]
            texts = [lines.encode([changes[n].values[p] for p in some]) for n in written]
            assert rows.lines(written, some) == texts


ODD: Final = SCHEMA[TableName("many", 't14 "ü"')]
USUAL: Final = {"n": "5", "id": "4711", "amount": "1.50"}


def set_apart(stretch: Stretch, *, doubtful: bool = False) -> tuple[list[Rows], Left]:
    """Set rows of all tables apart; of the odd one nulls may be doubtful."""
    relations = Relations(SCHEMA, Snapshot(0))

    def describe(name: TableName) -> Described:
        return Described(relations.known(name), frozenset(), doubtful and name == ODD.name, True)

    return wal2json_rows.set_apart(stretch, describe)


def told(odd: bytes, *, doubtful: bool = False) -> frozenset[TableName]:
    """Read many lines, and an odd one of a table; give the tables whose rows are set apart."""
    begin, *rows, commit = frames(random.Random(1), lsn=10)
    one = memoryview(bytes(begin[:HEADER_BYTES]) + odd)
    found, left = set_apart(Stretch([begin, *rows, one, commit]), doubtful=doubtful)
    assert sum(len(rows.inserted) for rows in found) + len(left) == len(rows) + 3
    assert not found or (ODD.name in {one.relation.name for one in found}) != (one in left)
    return frozenset(rows.relation.name for rows in found)


def test_a_table_with_an_odd_line_is_left_and_no_other() -> None:
    without = frozenset(SCHEMA) - {ODD.name}
    usual = written("U", ODD, USUAL, {"id": "4711"})
    assert told(usual) == frozenset(SCHEMA)
    moved = written("U", ODD, USUAL, {"id": "4712"})
    assert told(moved) == without
    assert told(written("U", ODD, {"n": "5", "id": "4711"}, {"id": "4711"})) == without
    for nothing in (USUAL | {"id": "null"}, {"n": "5", "amount": "1.50"}):
        assert told(written("I", ODD, nothing, {})) == without
    no_number = written("I", ODD, USUAL | {"n": "null"}, {})
    assert told(no_number) == frozenset(SCHEMA)
    assert told(no_number, doubtful=True) == without


def test_a_table_with_lines_of_two_forms_under_one_head_is_left_and_no_other() -> None:
    """A column was renamed, or is missing from each: TOAST that did not change."""
    without = frozenset(SCHEMA) - {ODD.name}
    assert told(written("I", ODD, USUAL, {}).replace(b"amount", b"figure")) == without
    assert told(written("I", ODD, USUAL, {}, end="}")) == without
    assert told(written("I", ODD, USUAL, {}).replace(b"1700", b"1701")) == without
    no_values = written("I", ODD, {}, {})
    assert told(no_values) == without


def test_a_key_of_another_type_or_without_a_value_before_is_odd() -> None:
    without = frozenset(SCHEMA) - {ODD.name}
    assert told(written("D", ODD, {}, {"id": "4711"})) == frozenset(SCHEMA)
    assert told(written("D", ODD, {}, {"id": "4711"}).replace(b":20,", b":17,")) == without
    assert told(written("U", ODD, USUAL | {"id": '""'}, {"id": "null"})) == without


def test_where_a_value_is_none_all_are_read_one_by_one() -> None:
    assert told(written("I", ODD, USUAL | {"n": "treu"}, {})) == frozenset()
    deep = "[" * 5000 + "]" * 5000
    assert told(written("I", ODD, USUAL | {"n": deep}, {}).replace(b'"I"', b'"D"')) == frozenset()

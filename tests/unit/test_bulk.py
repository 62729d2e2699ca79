"""Rows set apart and written in bulk: in the end the mirror is as the source, whatever happened.

Histories of two tables are written as each plugin's frames, read in stretches of any length, and
applied as a writer does: `Mirror` is a read database of plain dictionaries.
"""

import json
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.assemble import Assembler, Transaction
from cdc.change import Inserted
from cdc.errors import ProjectionError, ProtocolError, SchemaChanged
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operation import Update
from cdc.projection.batch import Batch, Effects
from cdc.projection.mirror import mirrors
from cdc.projection.registry import Registry
from cdc.reader import Reader
from cdc.rows import Bulk
from cdc.schema import SourceColumn, SourceTable
from cdc.settings import MirrorSettings
from cdc.snapshot import Snapshot
from cdc.source import wal2json_rows
from cdc.source.cut_rows import Encoding, JsonText, PlainText
from cdc.source.frame import Stretch
from cdc.source.pgoutput import PgOutput
from cdc.source.relations import Relations
from cdc.source.wal2json import Wal2Json
from cdc.values import UNCHANGED, Text
from tests.unit.test_lines import parsed

TYPES = {"id": 23, "k": 25, "v": 25, "flag": 16, "data": 17, "n": 1700}
COLUMNS = tuple(TYPES)
KEYS = {"one": ("id",), 'Two "é': ("id", "k")}
NAMES = {table: TableName("b", table) for table in KEYS}
Row = dict[str, Text]
Tables = frozenset[TableName]
Key = tuple[Text, ...]
HEADER = b"w" + struct.pack(">qqq", 1, 1, 1)


def source_table(name: str) -> SourceTable:
    columns = tuple(SourceColumn(c, oid, "", oid, "text", False) for c, oid in TYPES.items())
    return SourceTable(NAMES[name], columns, KEYS[name][::-1], "default", oid=len(name))


SCHEMA = {NAMES[name]: source_table(name) for name in KEYS}


@pytest.fixture(scope="module", autouse=True, params=[False, True], ids=["alone", "together"])
def forms(request: pytest.FixtureRequest) -> Iterator[None]:
    """Read wal2json's lines of each form by themselves, and those of all forms together."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setattr(wal2json_rows, "_FIRST_TEMPLATES", 0)
            patch.setattr(wal2json_rows, "_LEAST_ALIKE", 10**9)
        yield


def key_of(table: str) -> tuple[str, ...]:
    """Give the key of a table, or of a partition of the first one."""
    return KEYS.get(table, KEYS["one"])


class Plugin(Protocol):
    def decoder(self, seen: Snapshot, bulk: Tables) -> Any: ...
    def describes(self, table: str) -> list[bytes]: ...
    def begin(self, lsn: int) -> bytes: ...
    def commit(self, lsn: int) -> bytes: ...
    def change(
        self, kind: str, table: str, row: Row, old: Row, *, whole: bool = False
    ) -> bytes: ...
    def truncate(self, table: str) -> bytes: ...
    def emitted(self) -> bytes: ...


class Pgoutput:
    def decoder(self, seen: Snapshot, bulk: Tables) -> PgOutput:
        return PgOutput(Relations(SCHEMA, seen), bulk=bulk)

    def describes(self, table: str) -> list[bytes]:
        columns = b"".join(
            struct.pack("b", c in key_of(table)) + c.encode() + b"\0" + struct.pack(">Ii", oid, -1)
            for c, oid in TYPES.items()
        )
        head = b"R" + struct.pack(">I", len(table)) + b"b\0" + table.encode() + b"\0d"
        return [head + struct.pack(">h", len(TYPES)) + columns]

    def begin(self, lsn: int) -> bytes:
        return b"B" + struct.pack(">qqi", lsn, 0, lsn)

    def commit(self, lsn: int) -> bytes:
        return b"C" + struct.pack(">bqqq", 0, lsn, lsn + 1, 0)

    def change(self, kind: str, table: str, row: Row, old: Row, *, whole: bool = False) -> bytes:
        head = kind.encode() + struct.pack(">I", len(table))
        key = {c: old.get(c) if c in key_of(table) else None for c in COLUMNS}
        before = b"O" + self._tuple(old) if whole else b"K" + self._tuple(key)
        if kind == "D":
            return head + before
        moved = old and any(old[c] != row[c] for c in key_of(table))
        return head + (before if moved or whole else b"") + b"N" + self._tuple(row)

    def _tuple(self, row: Row) -> bytes:
        return struct.pack(">h", len(row)) + b"".join(map(self._cell, row.values()))

    def _cell(self, value: Text) -> bytes:
        if value is None or value is UNCHANGED:
            return b"n" if value is None else b"u"
        text = str(value).encode()
        return b"t" + struct.pack(">i", len(text)) + text

    def emitted(self) -> bytes:
        return b"M\0" + struct.pack(">q", 1) + b"cdc\0" + struct.pack(">i", 1) + b"x"

    def truncate(self, table: str) -> bytes:
        return b"T" + struct.pack(">ibI", 1, 0, len(table))


class Wal2json:
    def decoder(self, seen: Snapshot, bulk: Tables) -> Wal2Json:
        return Wal2Json(Relations(SCHEMA, seen), bulk=bulk)

    def describes(self, table: str) -> list[bytes]:  # noqa: ARG002  every line describes itself
        return []

    def _line(self, action: str, rest: str, xid: int = 7) -> bytes:
        head = f'{{"action":"{action}","xid":{xid},"timestamp":"2026-01-01 00:00:00+00"'
        return f"{head}{rest}}}".encode()

    def begin(self, lsn: int) -> bytes:
        return self._line("B", f',"lsn":"{Lsn(lsn)}","nextlsn":"{Lsn(lsn + 1)}"', xid=lsn)

    def commit(self, lsn: int) -> bytes:
        return self._line("C", f',"lsn":"{Lsn(lsn)}","nextlsn":"{Lsn(lsn + 1)}"')

    def change(self, kind: str, table: str, row: Row, old: Row, *, whole: bool = False) -> bytes:
        key = {c: old[c] for c in COLUMNS if old and (whole or c in KEYS[table])}
        sent = {c: v for c, v in row.items() if v is not UNCHANGED}
        name = json.dumps(table, ensure_ascii=False)
        parts = [f',"lsn":"0/1","schema":"b","table":{name}']
        parts += [f',"columns":[{self._cells(sent)}]'] if kind in "IU" else []
        parts += [f',"identity":[{self._cells(key)}]'] if kind in "UD" else []
        return self._line(kind, "".join(parts))

    def _cells(self, row: Row) -> str:
        return ",".join(
            f'{{"name":"{c}","typeoid":{TYPES[c]},"value":{self._value(c, v)}}}'
            for c, v in row.items()
        )

    def _value(self, column: str, value: Text) -> str:
        if value is None:
            return "null"
        match column:
            case "id" | "n":
                return str(value)
            case "flag":
                return {"t": "true", "f": "false"}[str(value)]
            case "data":
                return json.dumps(str(value)[2:])
        return json.dumps(value, ensure_ascii=False)

    def emitted(self) -> bytes:
        return self._line("M", ',"transactional":false,"prefix":"cdc","content":"x"')

    def truncate(self, table: str) -> bytes:
        name = json.dumps(table, ensure_ascii=False)
        return self._line("T", f',"lsn":"0/1","schema":"b","table":{name}')


PLUGINS: dict[str, Plugin] = {"pgoutput": Pgoutput(), "wal2json": Wal2json()}
TEXTS = st.one_of(
    st.sampled_from(["", "a", "ab", "n", "tt", "é", "\U0001f600", '"value":', "\\."]),
    st.text(st.sampled_from("\\\t\n\r\x01\"'}],{:aé"), max_size=6),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=140),
)


@dataclass
class History:
    """What an application does to two tables, and the frames that tell of it."""

    plugin: Plugin
    random: random.Random
    texts: Sequence[str]
    tables: dict[str, dict[Key, Row]] = field(default_factory=lambda: {name: {} for name in KEYS})
    frames: list[bytes] = field(default_factory=list)
    used: int = 0

    def text(self) -> str:
        return self.random.choice(self.texts)

    def row(self) -> Row:
        self.used += 1
        any_of = self.random.choice
        return {
            "id": str(self.used),
            "k": self.text(),
            "v": any_of([None, self.text(), self.text()]),
            "flag": any_of([None, "t", "f"]),
            "data": any_of([None, "\\x", "\\xdeadbeef"]),
            "n": any_of([None, "1.50", "-1", "1e+30"]),
        }

    def key(self, table: str, row: Row) -> Key:
        return tuple(row[c] for c in KEYS[table])

    def transaction(self, kinds: Sequence[str]) -> None:
        lsn = len(self.frames) + 10
        self.frames.append(self.plugin.begin(lsn))
        for kind in kinds:
            self.change(kind, self.random.choice(list(KEYS)))
        self.frames.append(self.plugin.commit(lsn))

    def change(self, kind: str, table: str) -> None:
        rows = self.tables[table]
        if kind == "describe":
            self.frames += self.plugin.describes(table)
        elif kind == "truncate":
            rows.clear()
            self.frames.append(self.plugin.truncate(table))
        elif kind == "insert" or not rows:
            row = self.row()
            rows[self.key(table, row)] = row
            self.frames.append(self.plugin.change("I", table, row, {}))
        elif kind in ("delete", "delete whole"):
            old = rows.pop(self.random.choice(list(rows)))
            whole = kind == "delete whole"
            self.frames.append(self.plugin.change("D", table, {}, old, whole=whole))
        else:
            self.update(kind, table)

    def update(self, kind: str, table: str) -> None:
        rows = self.tables[table]
        old = rows.pop(self.random.choice(list(rows)))
        new = self.row() | ({} if kind == "move" else {c: old[c] for c in KEYS[table]})
        kept = ["v"] if kind in ("unchanged", "move") else []
        sent = new | dict.fromkeys(kept, UNCHANGED)
        row = new | {c: old[c] for c in kept}
        rows[self.key(table, row)] = row
        whole = kind == "update whole"
        self.frames.append(self.plugin.change("U", table, sent, old, whole=whole))


class Mirror:
    """A read database: applies what a batch comes to, in the documented order."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, Row]] = {name: {} for name in KEYS}

    def apply(self, batch: Batch) -> None:
        batch.effect.seal()
        for segment in batch.effect.segments:
            for table, effects in segment.items():
                self.apply_effects(self.tables[table.name], effects, KEYS[table.name])

    def apply_effects(self, rows: dict[Key, Row], effects: Effects, names: tuple[str, ...]) -> None:
        if effects.truncated:
            rows.clear()
        taken = {_key(old): rows.pop(_key(old), None) for old in effects.moves}
        for old, move in effects.moves.items():
            if (row := taken[_key(old)]) is not None:
                moved = row | dict(zip(move.shape.columns, move.values, strict=True))
                rows[tuple(moved[c] for c in names)] = moved
        for delete in effects.deletes.values():
            gone = dict(zip(delete.shape.columns, delete.values, strict=True))
            rows.pop(tuple(gone[c] for c in names), None)
        for write in effects.writes.values():
            values = dict(zip(write.shape.columns, write.values, strict=True))
            key = tuple(values[c] for c in names)
            if key in rows or not isinstance(write, Update):
                rows[key] = rows.get(key, {}) | values
        self.apply_lines(rows, effects, names)

    def apply_lines(self, rows: dict[Key, Row], effects: Effects, names: tuple[str, ...]) -> None:
        if effects.lines is None:
            return
        columns = effects.lines.plan.shape.columns
        for row in _rows(b"".join(effects.lines.fresh_texts), columns):
            key = tuple(row[c] for c in names)
            assert key not in rows, "a row that is written as new is there already"
            rows[key] = row
        for row in _rows(effects.lines.known_text, columns):
            key = tuple(row[c] for c in names)
            rows[key] = rows.get(key, {}) | row


def _key(key: Any) -> Key:
    return key if isinstance(key, tuple) else (key,)


def _rows(data: bytes, columns: tuple[str, ...]) -> Iterator[Row]:
    for values in parsed(data.decode()):
        yield dict(zip(columns, values, strict=True))


def registry(*exclude: str) -> Registry:
    wanted = [
        MirrorSettings(source=str(name), target=name.table, exclude=frozenset(exclude))
        for name in NAMES.values()
    ]
    return Registry(mirrors(wanted, SCHEMA, hash_key=b""))


def reader(
    plugin: Plugin,
    *,
    bulk_frames: int,
    piece_bytes: int,
    checkpoint: int = 0,
    seen: Snapshot = Snapshot(50, frozenset({20, 30, 40})),  # noqa: B008  it never changes
    bulk: Tables = frozenset(SCHEMA),
) -> Reader:
    return Reader(
        plugin.decoder(seen, bulk),
        Assembler(Lsn(checkpoint), piece_bytes=piece_bytes),
        piece_bytes=piece_bytes,
        bulk_frames=bulk_frames,
    )


KINDS = ("insert", "update", "delete", "unchanged", "move", "truncate", "describe")
KINDS += ("update whole", "delete whole")
WEIGHTS = st.lists(st.integers(0, 3), min_size=9, max_size=9).map(lambda w: [w[0] + 1, *w[1:]])
SOME_TABLES = st.sampled_from([(), *((name,) for name in SCHEMA), tuple(SCHEMA)]).map(frozenset)


@st.composite
def histories(draw: st.DrawFn, plugin: str) -> History:
    chance = random.Random(draw(st.integers(0, 2**32)))
    history = History(PLUGINS[plugin], chance, draw(st.lists(TEXTS, min_size=1, max_size=8)))
    history.frames += [frame for table in KEYS for frame in history.plugin.describes(table)]
    kinds, weights = KINDS, draw(WEIGHTS)
    for size in draw(st.lists(st.integers(0, 8), min_size=2, max_size=12)):
        history.transaction(chance.choices(kinds, weights, k=size))
    return history


def read_all(
    frames: list[bytes], reader: Reader, *, chance: random.Random, longest: int
) -> list[Transaction | Bulk]:
    items: list[Transaction | Bulk] = []
    waiting = [memoryview(HEADER + frame) for frame in frames]
    while waiting:
        count = chance.randint(1, longest)
        items += reader.read(Stretch(waiting[:count]))
        del waiting[:count]
    return items


@pytest.mark.parametrize("plugin", PLUGINS)
@given(data=st.data(), longest=st.integers(1, 60), piece_bytes=st.sampled_from([200, 2**20]))
@settings(max_examples=150)
def test_the_mirror_ends_as_the_source(
    plugin: str, data: st.DataObject, longest: int, piece_bytes: int
) -> None:
    history = data.draw(histories(plugin))
    excluded = data.draw(st.sampled_from([(), ("v",), ("flag", "n")]))
    projectors, mirror = registry(*excluded), Mirror()
    read = reader(history.plugin, bulk_frames=5, piece_bytes=piece_bytes)
    batch = Batch()
    for item in read_all(history.frames, read, chance=history.random, longest=longest):
        if isinstance(item, Bulk):
            batch.add_bulk(item, projectors)
        else:
            batch.add(item, projectors)
        if history.random.random() < 0.4:
            mirror.apply(batch)
            batch = Batch()
    mirror.apply(batch)
    expected = {
        table: {key: {c: row[c] for c in COLUMNS if c not in excluded} for key, row in rows.items()}
        for table, rows in history.tables.items()
    }
    assert mirror.tables == expected


def in_order(items: list[Transaction | Bulk]) -> list[Any]:
    """Give all changes and ends, whatever pieces they came in."""
    flat: list[Any] = []
    for item in items:
        for transaction in item.in_order() if isinstance(item, Bulk) else [item]:
            flat += transaction.changes
            flat += [transaction.end_lsn] if transaction.ends else []
    return flat


@pytest.mark.parametrize("plugin", PLUGINS)
@given(data=st.data(), longest=st.integers(1, 60), piece_bytes=st.sampled_from([200, 2**20]))
def test_what_was_read_in_bulk_can_be_read_in_order(
    plugin: str, data: st.DataObject, longest: int, piece_bytes: int
) -> None:
    history = data.draw(histories(plugin))
    checkpoint = history.random.randrange(len(history.frames) + 20)
    bulk = data.draw(SOME_TABLES)
    in_bulk, one_by_one = (
        reader(
            history.plugin,
            bulk_frames=count,
            piece_bytes=size,
            checkpoint=checkpoint,
            bulk=bulk,
        )
        for count, size in ((5, piece_bytes), (10**9, 2**20))
    )
    items = read_all(history.frames, in_bulk, chance=history.random, longest=longest)
    reference = read_all(history.frames, one_by_one, chance=history.random, longest=60)
    assert in_order(items) == in_order(reference)
    bulks = [item for item in items if isinstance(item, Bulk)]
    assert [in_order([bulk]) for bulk in bulks] == [in_order([bulk]) for bulk in bulks]
    for bulk in bulks:
        changes = sum(len(transaction.changes) for transaction in bulk.in_order())
        others = sum(len(transaction.changes) for transaction in bulk.transactions)
        assert sum(bulk.received().values()) + others == changes
    assert in_bulk.between_transactions


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_change_is_of_its_table_as_described_for_its_transaction(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog lacks a column: for some transactions it is gone, for the others it is new."""
    lacking = {name: replace(one, columns=one.columns[:-1]) for name, one in SCHEMA.items()}
    monkeypatch.setattr(f"{__name__}.SCHEMA", lacking)
    history = History(PLUGINS[plugin], random.Random(1), ["a"])
    history.transaction(["describe"] * 9)
    for size in (1, 3, 4, 2, 9, 1, 3, 20, 20):
        history.transaction(history.random.choices(["insert", "update"], k=size))
    found = [
        in_order(
            read_all(
                history.frames,
                reader(history.plugin, bulk_frames=count, piece_bytes=2**20, bulk=frozenset()),
                chance=random.Random(2),
                longest=longest,
            )
        )
        for count, longest in ((10**9, 100), (5, 100))
    ]
    relations = {change.relation for change in found[0] if not isinstance(change, int)}
    assert {(bool(one.news), bool(one.gone)) for one in relations} == {(True, False), (False, True)}
    assert found[0] == found[1]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_changes_of_tables_that_are_not_for_bulk_are_read_at_once(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(PLUGINS[plugin], random.Random(1), ["a", "b c", 'quoted "\\'])
    history.frames += [frame for table in KEYS for frame in history.plugin.describes(table)]
    history.transaction(["insert"] * 20)
    first = len(history.frames)
    history.transaction(history.random.choices(["insert", "update", "delete"], k=200))
    read = reader(
        history.plugin, bulk_frames=100, piece_bytes=2**20, seen=Snapshot(0), bulk=frozenset()
    )
    read_all(history.frames[:first], read, chance=history.random, longest=1)
    decoder = type(read._decoder)
    decoded, decode = [], decoder.decode

    def counted(self: Any, payload: Any) -> Any:
        decoded.append(payload)
        return decode(self, payload)

    monkeypatch.setattr(decoder, "decode", counted)
    frames = [memoryview(HEADER + frame) for frame in history.frames[first:]]
    (transaction,) = read.read(Stretch(frames))
    assert isinstance(transaction, Transaction)
    assert len(transaction.changes) == 200
    assert len(decoded) == 2  # begin and commit


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("bulk", [frozenset[TableName](), frozenset(SCHEMA)])
def test_a_table_that_has_no_columns_is_read(
    plugin: str, bulk: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {NAMES["one"]: replace(SCHEMA[NAMES["one"]], columns=(), key=())}
    monkeypatch.setattr(f"{__name__}.SCHEMA", bare)
    monkeypatch.setattr(f"{__name__}.TYPES", {})
    frames = PLUGINS[plugin]
    row = frames.change("I", "one", {}, {})
    first = [frames.begin(10), *frames.describes("one"), frames.commit(10)]
    read = reader(frames, bulk_frames=5, piece_bytes=2**20, seen=Snapshot(0), bulk=bulk)
    items = read_all(first, read, chance=random.Random(1), longest=1)
    items += read_all(
        [frames.begin(20), *[row] * 9, frames.commit(20)],
        read,
        chance=random.Random(1),
        longest=11,
    )
    assert sum(isinstance(one, Inserted) for one in in_order(items)) == 9


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("kinds", [["insert"], ["insert", "update", "delete"]])
def test_the_usual_changes_are_set_apart(plugin: str, kinds: list[str]) -> None:
    history = History(PLUGINS[plugin], random.Random(1), ["a", "b c", 'quoted "\\'])
    history.frames += [frame for table in KEYS for frame in history.plugin.describes(table)]
    history.transaction(["insert"])
    first = len(history.frames)
    for _ in range(20):
        history.transaction(history.random.choices(kinds, k=10))
    read = reader(history.plugin, bulk_frames=100, piece_bytes=2**20, seen=Snapshot(0))
    for frames in (history.frames[:first], history.frames[first:]):
        items = list(read.read(Stretch([memoryview(HEADER + frame) for frame in frames])))
    (bulk,) = items
    assert isinstance(bulk, Bulk)
    assert sum(bulk.received().values()) == 200
    assert not any(transaction.changes for transaction in bulk.transactions)
    assert len(bulk.transactions) == 20


@pytest.mark.parametrize("plugin", PLUGINS)
@given(frames=st.lists(st.binary(max_size=60), min_size=5, max_size=9))
def test_any_frames_are_read_or_are_a_protocol_error(plugin: str, frames: list[bytes]) -> None:
    read = reader(PLUGINS[plugin], bulk_frames=5, piece_bytes=100)
    with suppress(ProtocolError):
        list(read.read(Stretch([memoryview(b"w" + frame) for frame in frames])))


@pytest.mark.parametrize("plugin", PLUGINS)
@given(data=st.data(), at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_damaged_frame_is_read_in_bulk_as_it_is_one_by_one(
    plugin: str, data: st.DataObject, at: int, byte: int
) -> None:
    """What is refused one by one may be left to the read database, or is the same error."""
    history = data.draw(histories(plugin))
    damaged = bytearray(b"".join(history.frames))
    damaged[at % len(damaged)] = byte
    frames, position = [], 0
    for frame in history.frames:
        frames.append(bytes(damaged[position : position + len(frame)]))
        position += len(frame)
    reference = outcome(frames, reader(history.plugin, bulk_frames=10**9, piece_bytes=2**20))
    in_bulk = projected(frames, reader(history.plugin, bulk_frames=5, piece_bytes=2**20))
    if reference is not None:
        assert applied(in_bulk) == reference


def outcome(frames: list[bytes], read: Reader) -> Any:
    """Give what a read database holds in the end; None where the frames are refused."""
    return applied(projected(frames, read))


def applied(batch: Batch | None) -> Any:
    mirror = Mirror()
    if batch is not None:
        mirror.apply(batch)
    return None if batch is None else mirror.tables


def projected(frames: list[bytes], read: Reader) -> Batch | None:
    projectors, batch = registry(), Batch()
    try:
        for item in read_all(frames, read, chance=random.Random(1), longest=40):
            if isinstance(item, Bulk):
                batch.add_bulk(item, projectors)
            else:
                batch.add(item, projectors)
    except (ProtocolError, ProjectionError, SchemaChanged):
        return None
    return batch


@pytest.mark.parametrize(
    ("encoding", "value"),
    [(PlainText(), b"\xff"), (JsonText(), b"\xff"), (JsonText(), b"\\q"), (JsonText(), b"\\ud800")],
)
def test_what_is_no_text_is_a_protocol_error(encoding: Encoding, value: bytes) -> None:
    with pytest.raises(ProtocolError, match="UTF-8"):
        encoding.decode(value)


def test_a_row_that_changes_partitions_is_not_told_twice_or_never() -> None:
    """Of a publication that names partitions: what happened in which order counts for both."""
    root = SCHEMA[NAMES["one"]]
    schema = {root.name: replace(root, leaves=(TableName("b", "p"), TableName("b", "first p")))}
    plugin, row = Pgoutput(), dict.fromkeys(COLUMNS, "1")
    describes = [plugin.describes(leaf)[0] for leaf in ("p", "first p")]
    frames = [plugin.begin(10), *describes, plugin.commit(10), plugin.begin(20)]
    for old, new in (("first p", "p"), ("p", "first p")) * 3 + (("first p", "p"),):
        frames += [plugin.change("D", old, {}, row), plugin.change("I", new, row, {})]
    frames.append(plugin.commit(20))
    decoder = PgOutput(Relations(schema, Snapshot(0)), bulk=frozenset(schema))
    read = Reader(decoder, Assembler(Lsn(0), piece_bytes=2**20), piece_bytes=2**20, bulk_frames=5)
    assert outcome(frames[:4], read) is not None
    assert outcome(frames[4:], read)["one"] == {("1",): row}


def test_a_table_whose_key_was_renamed_stops_no_rows_of_others() -> None:
    """Until it has rows again it is known as it was described before that."""
    plugin, other = Pgoutput(), 'Two "é'
    (as_it_was,) = (frame.replace(b"\1id\0", b"\1nr\0") for frame in plugin.describes("one"))
    row = dict.fromkeys(COLUMNS, "1")
    relations = Relations(SCHEMA, Snapshot(50), {NAMES["one"]: {"nr": "id"}})
    read = Reader(
        PgOutput(relations, bulk=frozenset(SCHEMA)),
        Assembler(Lsn(0), piece_bytes=2**20),
        piece_bytes=2**20,
        bulk_frames=5,
    )
    for seen_then_not in (
        [plugin.begin(10), as_it_was, *plugin.describes(other), plugin.commit(10)],
        [plugin.begin(60), plugin.change("I", other, row, {}), plugin.commit(60)],
    ):
        assert outcome(seen_then_not, read) is not None
    updates = [plugin.change("U", other, row | {"v": str(i)}, row) for i in range(8)]
    frames = [plugin.begin(70), *updates, plugin.commit(70)]
    (bulk,) = read.read(Stretch([memoryview(HEADER + frame) for frame in frames]))
    assert isinstance(bulk, Bulk)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_row_made_again_keeps_nothing_of_a_column_dropped_meanwhile(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read table has the column still, and what was in it went with the row."""
    projectors, mirror, frames = registry(), Mirror(), PLUGINS[plugin]
    row = dict.fromkeys(("id", "k", "v"), "1") | {"flag": "t", "data": "\\x01", "n": "1"}
    mirror.tables["one"][("1",)] = row
    monkeypatch.setattr(f"{__name__}.TYPES", {c: oid for c, oid in TYPES.items() if c != "n"})
    monkeypatch.setattr(f"{__name__}.COLUMNS", COLUMNS[:-1])
    new = {c: row[c] for c in COLUMNS}
    other = new | {"id": "2"}
    read = reader(frames, bulk_frames=5, piece_bytes=2**20, seen=Snapshot(0))
    first = [frames.begin(10), *frames.describes("one"), frames.change("I", "one", other, {})]
    again = [frames.change("D", "one", {}, new), frames.change("I", "one", new, {})] * 4
    batch = Batch()
    for part in ([*first, frames.commit(10)], [frames.begin(20), *again, frames.commit(20)]):
        for item in read.read(Stretch([memoryview(HEADER + frame) for frame in part])):
            (batch.add_bulk if isinstance(item, Bulk) else batch.add)(item, projectors)
        mirror.apply(batch)
        batch = Batch()
    assert mirror.tables["one"] == {("1",): new, ("2",): other}


def test_frames_of_a_large_transaction_are_looked_at_once() -> None:
    """Not all that are kept whenever some arrive: it would take longer and longer."""
    looked_at: list[object] = []

    class Looking(PgOutput):
        def is_commit(self, frame: memoryview) -> bool:
            looked_at.append(frame)
            return super().is_commit(frame)

    plugin, row = Pgoutput(), dict.fromkeys(COLUMNS, "1")
    decoder = Looking(Relations(SCHEMA, Snapshot(0)), bulk=frozenset(SCHEMA))
    read = Reader(decoder, Assembler(Lsn(0), piece_bytes=9000), piece_bytes=9000, bulk_frames=5)
    frames = [plugin.begin(10), *plugin.describes("one"), plugin.commit(10), plugin.begin(20)]
    frames += [plugin.change("I", "one", row | {"id": str(i)}, {}) for i in range(200)]
    frames.append(plugin.commit(20))
    items = []
    for i in range(0, len(frames), 5):
        items += read.read(Stretch([memoryview(HEADER + frame) for frame in frames[i : i + 5]]))
    assert len(in_order(items)) == 1 + 200 + 1
    assert sum(isinstance(item, Bulk) for item in items) == 2
    assert len(looked_at) <= len(frames)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_rows_in_bulk_outside_a_transaction_are_a_protocol_error(plugin: str) -> None:
    frames, row = PLUGINS[plugin], dict.fromkeys(COLUMNS, "1") | {"flag": "t", "data": "\\x"}
    read = reader(frames, bulk_frames=5, piece_bytes=500, seen=Snapshot(0))
    first = [frames.begin(10), *frames.describes("one"), frames.commit(10)]
    assert projected(first, read) is not None
    rows = [memoryview(HEADER + frames.change("I", "one", row, {}))] * 9
    with pytest.raises(ProtocolError, match="outside a transaction"):
        list(read.read(Stretch(rows)))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_what_is_read_again_tells_the_stream_nothing(plugin: str) -> None:
    """It is read by another thread."""
    history = History(PLUGINS[plugin], random.Random(1), ["a"])
    history.frames += [frame for table in KEYS for frame in history.plugin.describes(table)]
    history.transaction(["insert"])
    first = len(history.frames)
    history.transaction(["insert"] * 8)
    read = reader(history.plugin, bulk_frames=5, piece_bytes=2**20, seen=Snapshot(0))
    list(read.read(Stretch([memoryview(HEADER + frame) for frame in history.frames[:first]])))
    said = [history.plugin.emitted(), *history.frames[first:]]
    (bulk,) = read.read(Stretch([memoryview(HEADER + frame) for frame in said]))
    assert isinstance(bulk, Bulk)
    assert read.emitted
    read.emitted = False
    assert bulk.in_order()
    assert not read.emitted


def test_a_name_that_is_no_text_is_a_protocol_error() -> None:
    plugin, row = Wal2json(), dict.fromkeys(COLUMNS, "1") | {"flag": "t", "data": "\\x"}
    (name,) = (name for name in KEYS if not name.isascii())
    damaged = plugin.change("I", name, row, {}).replace("é".encode(), b"\xa9")
    frames = [plugin.begin(60), *[damaged] * 9, plugin.commit(60)]
    read = reader(plugin, bulk_frames=5, piece_bytes=2**20)
    list(
        read.read(
            Stretch([memoryview(HEADER + one) for one in (plugin.begin(55), plugin.commit(55))])
        )
    )
    with pytest.raises(ProtocolError, match="not JSON"):
        list(read.read(Stretch([memoryview(HEADER + frame) for frame in frames])))


@pytest.mark.parametrize("catalog_has_it", [True, False])
@pytest.mark.parametrize("bulk", [frozenset[TableName](), frozenset([NAMES["one"]])])
def test_a_table_renamed_and_changed_is_read_as_it_was_under_either_name(
    catalog_has_it: bool, bulk: Tables
) -> None:
    """wal2json reports rows of before by the old name, without the column of now, or with one."""
    plugin, root, old = Wal2json(), SCHEMA[NAMES["one"]], TableName("b", "old")
    catalog = root if catalog_has_it else replace(root, columns=root.columns[:-1])
    full = {"id": "1", "k": "a", "v": "b", "flag": "t", "data": "\\x01", "n": "1"}
    short = {c: v for c, v in full.items() if c != "n"}
    before, after = (short, full) if catalog_has_it else (full, short)

    def rows(table: str, row: Row, first: int) -> list[bytes]:
        return [
            plugin.change("I", table, row | {"id": str(i)}, {}) for i in range(first, first + 70)
        ]

    frames = [plugin.begin(10), *rows("old", before, 0)[:1], plugin.commit(10)]
    later = [plugin.begin(20), *rows("old", before, 100), plugin.commit(20)]
    later += [plugin.begin(40), *rows("one", after, 200), plugin.commit(40)]
    found = []
    for bulk_frames in (5, 10**9):
        relations = Relations({root.name: catalog}, Snapshot(1000), former_tables={old: root.name})
        decoder = Wal2Json(relations, bulk=bulk)
        assembler = Assembler(Lsn(0), piece_bytes=2**20)
        read = Reader(decoder, assembler, piece_bytes=2**20, bulk_frames=bulk_frames)
        items = [
            item
            for part in (frames, later)
            for item in read.read(Stretch([memoryview(HEADER + frame) for frame in part]))
        ]
        found.append(in_order(items))
    assert found[0] == found[1]
    assert len({change.relation.names for change in found[0] if not isinstance(change, int)}) == 2


@pytest.mark.parametrize("plugin", PLUGINS)
def test_what_follows_a_transaction_does_not_count_as_its_size(plugin: str) -> None:
    frames, row = PLUGINS[plugin], dict.fromkeys(COLUMNS, "1") | {"flag": "t", "data": "\\x"}
    read = reader(frames, bulk_frames=5, piece_bytes=60_000, seen=Snapshot(0), bulk=frozenset())
    first = [frames.begin(10), *frames.describes("one"), frames.commit(10)]
    read_all(first, read, chance=random.Random(1), longest=1)
    large = row | {"v": "x" * 55_000}
    parts = [frames.begin(20), *[frames.change("I", "one", row, {})] * 50, frames.commit(20)]
    parts += [frames.begin(30), frames.change("I", "one", large, {})]
    items = list(read.read(Stretch([memoryview(HEADER + frame) for frame in parts])))
    assert [len(one.changes) for one in items if isinstance(one, Transaction)] == [50]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b'"value":true', b'"value":trux'),
        (b'"value":false', b'"value":falsy'),
        (b'"value":null', b'"value":nuly'),
        (b"}]}", b"}]]"),
        (b"}]}", b"}}}"),
    ],
)
@pytest.mark.parametrize("bulk", [frozenset[TableName](), frozenset(SCHEMA)])
def test_a_line_with_a_damaged_end_or_literal_is_a_protocol_error(
    right: bytes, wrong: bytes, bulk: Tables
) -> None:
    plugin = Wal2json()
    rows: list[Row] = [
        {"id": "1", "k": "a", "v": None, "flag": flag, "data": "\\x", "n": "1"} for flag in "tf"
    ]
    lines = [plugin.change("I", "one", row, {}) for row in rows * 40]
    at = next(i for i, line in enumerate(lines) if right in line)
    lines[at] = wrong.join(lines[at].rsplit(right, 1))
    read = reader(plugin, bulk_frames=5, piece_bytes=2**20, seen=Snapshot(0), bulk=bulk)
    read_all([plugin.begin(10), plugin.commit(10)], read, chance=random.Random(1), longest=1)
    frames = [plugin.begin(20), *lines, plugin.commit(20)]
    with pytest.raises(ProtocolError):
        list(read.read(Stretch([memoryview(HEADER + frame) for frame in frames])))

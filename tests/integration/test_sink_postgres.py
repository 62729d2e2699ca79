"""The read database: whole transactions, each exactly once, whatever happens to the connection."""

import enum
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

from cdc import Delete, Operation, Truncate, Update, Upsert
from cdc.assemble import Transaction
from cdc.change import Column, Inserted, Relation
from cdc.errors import (
    CheckpointMoved,
    ProjectionError,
    ReadLocked,
    ReadTransactionLost,
    ReadUnavailable,
    WriteRefused,
)
from cdc.lines import encode, joined
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operation import Append, Move, shape_of
from cdc.projection.batch import Batch
from cdc.projection.lines import BulkPlan
from cdc.projection.registry import Registry
from cdc.servers import Server, find_wheel
from cdc.sink import checkpoint
from cdc.sink.engine import create_engine
from cdc.sink.writer import Writer
from cdc.source.connection import connect
from tests.conftest import FAST, Database, installation, require, until

SECRET = "s3cr3t"
NOW = datetime(2024, 1, 1, tzinfo=UTC)
IDENTITY = checkpoint.Identity("s", "pgoutput", "7", 1)
RELATION = Relation(TableName("public", "source"), (Column("id", 23, 23),), ("id",))
FEW, MANY = 3, 50
START = Lsn(100)


class Script:
    """A projector that returns for each change what the test wants."""

    name = "scripted"
    sources = (RELATION.name,)

    def __init__(self, *tables: sa.Table) -> None:
        self.into = tables
        self.wanted: dict[str, list[Operation]] = {}

    def operations(self, change: Any) -> list[Operation]:
        return self.wanted[change.values[0]]


class Sink:
    """A writer on a database of its own, and transactions made of operations."""

    def __init__(self, read: Database, *tables: sa.Table, create: bool = True) -> None:
        self.read = read
        self.engine = create_engine(read.url)
        self.script = Script(*tables)
        self.registry = Registry([self.script])
        self.writer = Writer(self.engine, IDENTITY.slot)
        self.numbers = count(1)
        self.lsn = START
        connection = self.writer.open()
        with connection.begin():
            if create:
                for table in (checkpoint.TABLE, *tables):
                    table.create(connection)
            checkpoint.intend(connection, IDENTITY)
            checkpoint.advance(connection, IDENTITY, old=None, new=START, commit_time=None)
        self.writer.resume(IDENTITY, START)

    def transaction(self, *operations: Operation, ends: bool = True) -> Transaction:
        """Make a transaction of one change for each operation."""
        changes: list[Any] = []
        for operation in operations:
            number = str(next(self.numbers))
            self.script.wanted[number] = [operation]
            changes.append(Inserted(RELATION, (number,)))
        commit_lsn, self.lsn = self.lsn, Lsn(self.lsn + 10)
        end_lsn = self.lsn if ends else None
        return Transaction(1, commit_lsn, end_lsn, NOW, changes, len(changes))

    def batch(self, *transactions: Transaction) -> Batch:
        batch = Batch()
        for one in transactions:
            batch.add(one, self.registry)
        return batch

    def write(self, batch: Batch) -> None:
        self.writer.apply(batch)

    def apply(self, *operations: Operation) -> None:
        """Apply operations as one transaction of a batch of its own."""
        self.write(self.batch(self.transaction(*operations)))

    def stored(self) -> int:
        return int(self.read.value("select lsn from cdc_checkpoint"))

    def rows(self, table: str = "t") -> list[tuple[Any, ...]]:
        return self.read.rows(f"select * from {table} order by 1, 2")

    def kill(self) -> None:
        """End the writer's session, as a failover would."""
        found = (
            "from pg_stat_activity where application_name = 'cdc' and datname = current_database()"
        )
        self.read.rows(f"select pg_terminate_backend(pid) {found}")
        until(lambda: not self.read.rows(f"select 1 {found}"))


T = sa.Table(
    "t",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("a", sa.Text),
    sa.Column("b", sa.Text, server_default="default"),
)


@pytest.fixture
def sink_of(read: Database) -> Iterator[Callable[..., Sink]]:
    made: list[Sink] = []

    def make(*tables: sa.Table, create: bool = True) -> Sink:
        made.append(Sink(read, *tables, create=create))
        return made[-1]

    yield make
    for sink in made:
        sink.writer.close()
        sink.engine.dispose()


@pytest.fixture
def sink(sink_of: Callable[..., Sink]) -> Sink:
    return sink_of(T)


def upserts(keys: range, **values: Any) -> list[Operation]:
    return [Upsert(T, id=key, **values) for key in keys]


@pytest.fixture(params=[FEW, MANY], ids=["few", "many"])
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


# Rows.


def test_rows_come_change_and_go(sink: Sink, number: int) -> None:
    keys = range(number)
    sink.apply(*upserts(keys, a="x", b="y"))
    assert sink.rows() == [(key, "x", "y") for key in keys]
    sink.apply(*upserts(keys, a="z", b=None))
    assert sink.rows() == [(key, "z", None) for key in keys]
    sink.apply(*(Update(T, id=key, b="w") for key in keys))
    assert sink.rows() == [(key, "z", "w") for key in keys]
    sink.apply(*(Delete(T, id=key) for key in keys))
    assert sink.rows() == []
    assert sink.stored() == sink.lsn


def test_columns_that_are_not_named_keep_their_values_or_take_their_default(
    sink: Sink, number: int
) -> None:
    keys = range(number)
    sink.apply(*upserts(keys, a="x"))
    assert sink.rows() == [(key, "x", "default") for key in keys]
    sink.apply(*upserts(keys, b="y"))
    assert sink.rows() == [(key, "x", "y") for key in keys]


def test_an_update_makes_no_row(sink: Sink, number: int) -> None:
    sink.apply(*(Update(T, id=key, a="x") for key in range(number)))
    sink.apply(*(Update(T, id=key) for key in range(number)))
    assert sink.rows() == []


def test_an_upsert_of_a_key_alone_makes_the_row_and_changes_nothing(
    sink: Sink, number: int
) -> None:
    sink.apply(Upsert(T, id=0, a="kept"))
    sink.apply(*upserts(range(number)))
    assert sink.rows()[0] == (0, "kept", "default")
    assert len(sink.rows()) == number


def test_a_row_that_is_deleted_and_made_again_is_another_row(sink: Sink, number: int) -> None:
    keys = range(number)
    sink.apply(*upserts(keys, a="x", b="y"))
    sink.apply(*(Delete(T, id=key) for key in keys), *upserts(keys, a="new"))
    assert sink.rows() == [(key, "new", "default") for key in keys]


def test_different_columns_in_one_batch(sink: Sink, number: int) -> None:
    keys = range(number)
    sink.apply(*upserts(keys, a="x"), *upserts(range(100, 100 + number), b="y"))
    sink.apply(*(Update(T, id=key, a="z") for key in keys), *(Delete(T, id=100 + k) for k in keys))
    assert sink.rows() == [(key, "z", "default") for key in keys]


def move(old: Any, new: Any, table: sa.Table = T, columns: tuple[str, ...] = ("id",)) -> Operation:
    return Move.between(shape_of(table, columns, text=False), old, new)


def test_a_moved_row_keeps_the_columns_that_were_not_sent(sink: Sink, number: int) -> None:
    keys = range(number)
    sink.apply(*upserts(keys, a="x", b="y"))
    sink.apply(*(move((key,), (1000 + key,)) for key in keys), Update(T, id=1000, a="z"))
    assert sink.rows()[0] == (1000, "z", "y")
    assert [row[0] for row in sink.rows()] == [1000 + key for key in keys]


def test_keys_that_swap_move_through_a_third(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="one"), Upsert(T, id=2, a="two"))
    sink.apply(move((1,), (3,)), move((2,), (1,)), move((3,), (2,)))
    assert sink.rows() == [(1, "two", "default"), (2, "one", "default")]


def test_a_stale_row_makes_way_for_the_one_that_moves_there(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="one"), Upsert(T, id=2, a="stale"))
    sink.apply(move((1,), (2,)))
    assert sink.rows() == [(2, "one", "default")]


def test_a_move_of_a_row_that_is_not_there_deletes_nothing(sink: Sink) -> None:
    sink.apply(Upsert(T, id=2, a="two"))
    sink.apply(move((1,), (2,)))
    assert sink.rows() == [(2, "two", "default")]


COMPOSITE = sa.Table(
    "composite",
    sa.MetaData(),
    sa.Column("a", sa.Integer, primary_key=True),
    sa.Column("b", sa.Integer, primary_key=True),
    sa.Column("v", sa.Text),
)


@pytest.mark.parametrize("columns", [("a", "b"), ("b", "a")])
def test_a_composite_key_moves_whatever_the_order_of_its_columns(
    sink_of: Callable[..., Sink], columns: tuple[str, ...], number: int
) -> None:
    """A mirror names the key's columns in the order of the source's index."""
    sink = sink_of(COMPOSITE)

    def key(a: int, b: int) -> tuple[int, ...]:
        return tuple({"a": a, "b": b}[name] for name in columns)

    sink.apply(*(Upsert(COMPOSITE, a=1, b=n + 10, v=str(n)) for n in range(number)))
    sink.apply(*(move(key(1, n + 10), key(2, n + 20), COMPOSITE, columns) for n in range(number)))
    assert sink.rows("composite") == [(2, n + 20, str(n)) for n in range(number)]
    delete = shape_of(COMPOSITE, columns, text=False)
    sink.apply(*(Delete.of(delete, key(2, n + 20)) for n in range(number)))
    assert sink.rows("composite") == []


def test_a_truncate_comes_before_what_follows_it(sink: Sink, number: int) -> None:
    sink.apply(*upserts(range(100), a="old"))
    sink.apply(Upsert(T, id=1, a="gone"), Truncate(T), *upserts(range(number), a="new"))
    assert sink.rows() == [(key, "new", "default") for key in range(number)]


def test_rows_are_appended_to_a_table_without_a_key(
    sink_of: Callable[..., Sink], number: int
) -> None:
    log = sa.Table("log", sa.MetaData(), sa.Column("x", sa.Integer), sa.Column("y", sa.Text))
    sink = sink_of(log)
    shape = shape_of(log, ("x", "y"), text=True)
    sink.apply(*(Append.of(shape, ("1", None)) for _ in range(number)))
    sink.apply(*(Append.of(shape, ("2", "a\tb\\N")) for _ in range(number)))
    assert sink.rows("log") == [(1, None)] * number + [(2, "a\tb\\N")] * number


ODD = ["per%cent", "%s", 'quo"te', "a space", "semi;colon", "Mixed", "select", "back\\slash", "é%%"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_of_table_and_column(sink_of: Callable[..., Sink], name: str, number: int) -> None:
    table = sa.Table(
        name,
        sa.MetaData(),
        sa.Column(name, sa.Integer, primary_key=True),
        sa.Column(f"{name} 2", sa.Text),
        sa.Column("v", sa.Text),
    )
    sink = sink_of(table)
    quoted = '"' + name.replace('"', '""') + '"'
    full = shape_of(table, (name, f"{name} 2", "v"), text=False)
    part = shape_of(table, (name, f"{name} 2"), text=False)
    key = shape_of(table, (name,), text=False)
    keys = range(number)
    sink.apply(*(Upsert.of(full, (k, "x", "v")) for k in keys))
    sink.apply(*(Update.of(part, (k, "y")) for k in keys))
    sink.apply(*(Move.between(key, (k,), (k + 100,)) for k in keys))
    rows = sink.read.connection.execute(f"select * from {quoted} order by 1".encode()).fetchall()
    assert rows == [(k + 100, "y", "v") for k in keys]
    sink.apply(*(Delete.of(key, (k + 100,)) for k in keys))
    assert not sink.read.connection.execute(f"select * from {quoted}".encode()).fetchall()
    sink.apply(Truncate(table))
    assert sink.stored() == sink.lsn


class Mood(enum.Enum):
    GOOD = "good one"
    BAD = "bad one"


class Upper(sa.types.TypeDecorator[str]):
    """A type with a bind processor of its own."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        del dialect
        return value.upper() if value is not None else None


TYPED: dict[str, tuple[Any, Any, str]] = {
    "json": (sa.JSON(), {"a": [1, None, 'x"\\\t\n']}, '{"a": [1, null, "x\\"\\\\\\t\\n"]}'),
    "jsonb": (JSONB(), [1, {"b": "é"}], '[1, {"b": "é"}]'),
    "jsonb_list": (JSONB(), ["x"], '["x"]'),
    "jsonb_text": (JSONB(), "x", '"x"'),
    "mood": (sa.Enum(Mood, name="mood"), Mood.GOOD, "GOOD"),
    "moods": (ARRAY(sa.Enum(Mood, name="mood")), [Mood.GOOD, Mood.BAD], "{GOOD,BAD}"),
    "uuid": (sa.Uuid(), uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "uuid_text": (
        sa.Uuid(as_uuid=False),
        "00000000-0000-0000-0000-000000000007",
        "00000000-0000-0000-0000-000000000007",
    ),
    "uuids": (ARRAY(sa.Uuid()), [uuid.UUID(int=7)], "{00000000-0000-0000-0000-000000000007}"),
    "bigints": (ARRAY(sa.BigInteger()), [1, None, 2**40], "{1,NULL,1099511627776}"),
    "smalls_as_bigints": (ARRAY(sa.BigInteger()), [1, 2], "{1,2}"),
    "texts": (ARRAY(sa.Text()), ['a"b,c\\', None, "", "NULL"], '{"a\\"b,c\\\\",NULL,"","NULL"}'),
    "nested": (ARRAY(sa.Integer(), dimensions=2), [[1, 2], [3, 4]], "{{1,2},{3,4}}"),
    "empty": (ARRAY(sa.Integer()), [], "{}"),
    "dates": (ARRAY(sa.Date()), [date(2024, 2, 29)], "{2024-02-29}"),
    "numeric": (sa.Numeric(), Decimal("1.500"), "1.500"),
    "numerics": (ARRAY(sa.Numeric()), [Decimal("1.50")], "{1.50}"),
    "float": (sa.Double(), 0.1, "0.1"),
    "float_of_int": (sa.Double(), 1, "1"),
    "nan": (sa.Double(), float("nan"), "NaN"),
    "bytes": (sa.LargeBinary(), b"\x00\xff\\", "\\x00ff5c"),
    "bool": (sa.Boolean(), True, "true"),
    "date": (sa.Date(), date(2024, 2, 29), "2024-02-29"),
    "timestamp": (sa.DateTime(), datetime(2024, 2, 29, 1, 2, 3, 4), "2024-02-29 01:02:03.000004"),  # noqa: DTZ001
    "timestamptz": (sa.DateTime(timezone=True), NOW, "2024-01-01 00:00:00+00"),
    "interval": (sa.Interval(), timedelta(days=1, seconds=2), "1 day 00:00:02"),
    "text_of_int": (sa.Text(), "7", "7"),
    "decorated": (Upper(), "abc", "ABC"),
    "tsvector": (TSVECTOR(), "'a':1", "'a':1"),
    "null_text": (sa.Text(), None, ""),
    "null_array": (ARRAY(sa.Text()), None, ""),
    "null_enum": (sa.Enum(Mood, name="mood"), None, ""),
}


def test_python_values_go_through_their_columns_types_in_either_path(
    sink_of: Callable[..., Sink], number: int
) -> None:
    metadata = sa.MetaData()
    enum_type = sa.Enum(Mood, name="mood", metadata=metadata)
    columns = []
    for name, (type_, _, _) in TYPED.items():
        is_mood = isinstance(type_, sa.Enum)
        is_moods = isinstance(type_, ARRAY) and isinstance(type_.item_type, sa.Enum)
        columns.append(
            sa.Column(name, enum_type if is_mood else ARRAY(enum_type) if is_moods else type_)
        )
    table = sa.Table("typed", metadata, sa.Column("id", sa.Integer, primary_key=True), *columns)
    sink = sink_of(T)
    with sink.engine.connect() as connection, connection.begin():
        metadata.create_all(connection)
    values = {name: value for name, (_, value, _) in TYPED.items()}
    sink.apply(*(Upsert(table, id=key, **values) for key in range(number)))
    listed = ", ".join(f"coalesce({name}::text, '')" for name in TYPED)
    sink.read.connection.execute("set timezone = 'UTC'")
    rows = sink.read.rows(f"select {listed} from typed")
    assert len(rows) == number
    expected = {name: text for name, (_, _, text) in TYPED.items()}
    for row in rows:
        assert dict(zip(TYPED, row, strict=True)) == expected
    for name in TYPED:
        sink.apply(*(Update(table, id=key, **{name: values[name]}) for key in range(number)))
    assert (
        dict(zip(TYPED, sink.read.rows(f"select {listed} from typed")[0], strict=True)) == expected
    )


@pytest.mark.parametrize("type_", [sa.Uuid(), sa.Enum(Mood, name="mood"), sa.Date(), sa.Text()])
def test_keys_of_any_type_are_found_again(
    sink_of: Callable[..., Sink], type_: Any, number: int
) -> None:
    table = sa.Table(
        "t",
        sa.MetaData(),
        sa.Column("k", type_, primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True),
        sa.Column("v", sa.Text),
    )
    made: dict[type, Any] = {
        sa.Uuid: uuid.UUID(int=1),
        sa.Enum: Mood.BAD,
        sa.Date: date(2024, 1, 1),
    }
    value = made.get(type(type_), "it's")
    sink = sink_of(table)
    keys = range(number)
    sink.apply(*(Upsert(table, k=value, n=n, v="a") for n in keys))
    sink.apply(*(Update(table, k=value, n=n, v="b") for n in keys))
    sink.apply(*(move((value, n), (value, n + 100), table, ("k", "n")) for n in keys))
    assert sink.read.rows("select n, v from t order by n") == [(n + 100, "b") for n in keys]
    sink.apply(*(Delete(table, k=value, n=n + 100) for n in keys))
    assert sink.rows() == []


# Constraints.


UNIQUE = sa.Table(
    "u",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, unique=True),
)


def test_a_unique_value_may_go_from_row_to_row_within_a_batch(
    sink_of: Callable[..., Sink], number: int
) -> None:
    sink = sink_of(UNIQUE)
    sink.apply(*(Upsert(UNIQUE, id=k, name=f"n{k}") for k in range(number)))
    batch = sink.batch(
        sink.transaction(Upsert(UNIQUE, id=0, name="aside")),
        sink.transaction(*(Upsert(UNIQUE, id=k, name=f"n{k - 1}") for k in range(1, number))),
        sink.transaction(Upsert(UNIQUE, id=0, name=f"n{number - 1}")),
    )
    sink.write(batch)
    assert dict(sink.rows("u")) == {k: f"n{(k - 1) % number}" for k in range(number)}
    assert sink.stored() == sink.lsn


def test_after_a_fallback_many_rows_are_still_written(sink_of: Callable[..., Sink]) -> None:
    sink = sink_of(UNIQUE, T)
    many = [Upsert(T, id=k, a="x") for k in range(MANY)]
    sink.apply(Upsert(UNIQUE, id=1, name="a"), Upsert(UNIQUE, id=2, name="b"), *many)
    for _ in range(2):
        batch = sink.batch(
            sink.transaction(Upsert(UNIQUE, id=1, name="aside"), *many),
            sink.transaction(Upsert(UNIQUE, id=2, name="a")),
            sink.transaction(Upsert(UNIQUE, id=1, name="b")),
            sink.transaction(*(Upsert(UNIQUE, id=k, name=f"m{k}") for k in range(10, 10 + MANY))),
        )
        sink.write(batch)
        sink.apply(*many, *(Upsert(UNIQUE, id=k, name=f"n{k}") for k in range(10, 10 + MANY)))
        sink.apply(Upsert(UNIQUE, id=1, name="c"), Upsert(UNIQUE, id=2, name="b"))
        sink.apply(Upsert(UNIQUE, id=1, name="a"))
    assert len(sink.rows("u")) == MANY + 2


def families() -> tuple[sa.Table, sa.Table]:
    metadata = sa.MetaData()
    parent = sa.Table(
        "parent", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", sa.Text)
    )
    child = sa.Table(
        "child",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.ForeignKey("parent.id"), nullable=False),
    )
    return parent, child


def test_children_go_before_their_parents_and_come_after_them(
    sink_of: Callable[..., Sink], number: int
) -> None:
    parent, child = families()
    sink = sink_of(parent, child)
    keys = range(number)
    parents = [Upsert(parent, id=k, v="x") for k in keys]
    children = [Upsert(child, id=k, parent_id=k) for k in keys]
    sink.apply(*children, *parents)
    sink.apply(*(Delete(parent, id=k) for k in keys), *(Delete(child, id=k) for k in keys))
    assert sink.rows("parent") == []
    sink.apply(*parents, *children)
    sink.apply(Truncate(parent), Truncate(child))
    assert sink.rows("parent") == []


def test_rows_that_reference_their_own_table_come_in_the_order_of_their_commits(
    sink_of: Callable[..., Sink], number: int
) -> None:
    tree = sa.Table(
        "tree",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("up", sa.ForeignKey("tree.id")),
    )
    sink = sink_of(tree)
    sink.write(
        sink.batch(
            sink.transaction(Upsert(tree, id=number, up=None)),
            *(sink.transaction(Upsert(tree, id=k, up=k + 1)) for k in reversed(range(number))),
            sink.transaction(Upsert(tree, id=number, up=0)),
        )
    )
    sink.write(
        sink.batch(
            sink.transaction(Upsert(tree, id=number, up=None)),
            *(sink.transaction(Delete(tree, id=k)) for k in range(number + 1)),
        )
    )
    assert sink.rows("tree") == []


def test_a_truncate_of_tables_that_reference_one_another_survives_a_fallback(
    sink_of: Callable[..., Sink],
) -> None:
    parent, child = families()
    sink = sink_of(parent, child, UNIQUE)
    sink.apply(
        Upsert(parent, id=1),
        Upsert(child, id=1, parent_id=1),
        Upsert(UNIQUE, id=1, name="a"),
        Upsert(UNIQUE, id=2, name="b"),
    )
    sink.write(
        sink.batch(
            sink.transaction(Truncate(parent), Truncate(child), Upsert(UNIQUE, id=1, name="c")),
            sink.transaction(Upsert(UNIQUE, id=2, name="a")),
            sink.transaction(Upsert(UNIQUE, id=1, name="b"), Upsert(parent, id=5)),
        )
    )
    assert (sink.rows("parent"), sink.rows("child")) == ([(5, None)], [])


REFUSED = sa.Table(
    "refused",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(10), unique=True),
    sa.Column("n", sa.SmallInteger),
    sa.Column("needed", sa.Text, nullable=False, server_default=""),
    sa.Column("mood", sa.Enum(Mood, name="mood")),
    sa.Column("checked", sa.Text),
    sa.Column("indexed", sa.Text, index=True),
    sa.CheckConstraint(f"checked <> '{SECRET}'", name="no_secret"),
)


@pytest.mark.parametrize(
    "values",
    [
        {"name": SECRET},
        {"name": SECRET * 5},
        {"n": 40_000},
        {"n": SECRET},
        {"needed": None},
        {"mood": SECRET},
        {"checked": SECRET},
        {"checked": SECRET + "\0"},
        {"checked": object()},
        {"checked": {1, 2}},
        {"n": 10**30},
        {"n": [1, 2]},
        {"n": True},
        {"n": NOW},
        {"n": SECRET.encode()},
        {"indexed": "".join(map(chr, range(20_000, 30_000)))},
    ],
    ids=lambda values: f"{next(iter(values))}",
)
def test_a_refused_row_is_named_by_projector_and_key_and_never_by_values(
    sink_of: Callable[..., Sink], values: dict[str, Any], number: int
) -> None:
    sink = sink_of(REFUSED)
    sink.apply(Upsert(REFUSED, id=1, name=SECRET))
    good = [Upsert(REFUSED, id=k, name=f"n{k}") for k in range(1000, 1000 + number)]
    before = sink.stored()
    with pytest.raises(WriteRefused) as caught:
        sink.write(
            sink.batch(
                sink.transaction(*good),
                sink.transaction(Upsert(REFUSED, id=77, **values)),
                sink.transaction(*good),
            )
        )
    message = str(caught.value)
    for said in ("scripted", "upsert refused", "id=77", "0/78"):
        assert said in message
    assert SECRET not in message + str(caught.value.hint) + repr(caught.value.__cause__)
    assert "good one" not in message
    assert sink.stored() == before
    assert len(sink.rows("refused")) == 1


@pytest.mark.parametrize("key", [[1], "x", NOW, None, object()], ids=lambda key: type(key).__name__)
@pytest.mark.parametrize("kind", [Upsert, Update, Delete])
def test_a_key_of_another_type_is_refused_or_matches_nothing(
    sink: Sink, key: Any, kind: Any, number: int
) -> None:
    """It is the projector's doing, and never passes by itself."""
    good = [kind(T, id=1000 + k) for k in range(number)]
    with suppress(WriteRefused, ProjectionError):
        sink.apply(*good, kind(T, id=key))
        assert sink.stored() == sink.lsn


def test_a_constraint_that_is_checked_at_the_commit_is_refused_with_its_name(
    sink_of: Callable[..., Sink],
) -> None:
    parent = sa.Table("parent", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    sink = sink_of(parent, T)
    sink.read.run(
        "alter table t add constraint to_parent foreign key (id) references parent "
        "deferrable initially deferred"
    )
    sink.apply(Upsert(T, id=1), Upsert(parent, id=1))
    with pytest.raises(WriteRefused, match="to_parent"):
        sink.apply(Upsert(T, id=2))
    assert sink.rows() == [(1, None, "default")]


def test_a_refused_row_in_a_later_piece_is_told_and_nothing_stays(sink: Sink, number: int) -> None:
    sink.write(sink.batch(sink.transaction(*upserts(range(number), a="x"), ends=False)))
    with pytest.raises(WriteRefused, match="id=9999"):
        sink.apply(Upsert(T, id=9999, a="\0"))
    assert sink.rows() == []


# Exactly once.


def test_transactions_and_their_checkpoint_are_one_commit(sink: Sink) -> None:
    batch = sink.batch(*(sink.transaction(Upsert(T, id=k, a="x")) for k in range(5)))
    sink.write(batch)
    assert sink.stored() == sink.writer.checkpoint == sink.lsn
    assert sink.read.value("select commit_time from cdc_checkpoint") == NOW
    xids = sink.read.rows("select xmin from t union select xmin from cdc_checkpoint")
    assert len(xids) <= 6  # savepoints have numbers of their own
    sink.write(Batch(end_lsn=Lsn(sink.lsn + 5)))
    assert sink.stored() == sink.lsn + 5
    assert sink.read.value("select commit_time from cdc_checkpoint") == NOW


def test_a_checkpoint_that_somebody_else_moved_stops_the_writer(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="x"))
    for lsn in (sink.lsn + 1000, 1):
        sink.read.run(f"update cdc_checkpoint set lsn = {lsn}")
        with pytest.raises(CheckpointMoved):
            sink.apply(Upsert(T, id=2, a="never"))
        assert sink.rows() == [(1, "x", "default")]
        assert sink.stored() == lsn


def test_a_checkpoint_that_is_gone_stops_the_writer(sink: Sink) -> None:
    sink.read.run("delete from cdc_checkpoint")
    with pytest.raises(CheckpointMoved):
        sink.apply(Upsert(T, id=2, a="never"))
    assert sink.rows() == []


def test_a_position_behind_the_checkpoint_does_not_move_it_back(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="x"))
    sink.write(Batch(end_lsn=Lsn(50)))
    assert sink.stored() == sink.lsn
    assert sink.writer.checkpoint == sink.lsn


def test_a_second_writer_of_the_same_slot_is_locked_out(sink: Sink, read: Database) -> None:
    engine = create_engine(read.url)
    second, other = Writer(engine, IDENTITY.slot), Writer(engine, "another")
    with pytest.raises(ReadLocked):
        second.open()
    other.open()
    other.close()
    sink.writer.close()
    second.open()
    second.close()
    engine.dispose()


def test_a_large_transaction_is_visible_at_its_end_alone(sink: Sink) -> None:
    first = sink.batch(
        sink.transaction(Upsert(T, id=1000, a="before")),
        sink.transaction(*upserts(range(MANY), a="x"), ends=False),
    )
    sink.write(first)
    sink.write(sink.batch(sink.transaction(*upserts(range(MANY), b="y"), ends=False)))
    assert sink.rows() == []
    assert sink.stored() == START
    sink.write(sink.batch(sink.transaction(Delete(T, id=0))))
    assert len(sink.rows()) == MANY
    assert sink.rows()[0] == (1, "x", "y")
    assert sink.stored() == sink.lsn


def test_a_connection_lost_before_the_batch_is_no_matter(sink: Sink, number: int) -> None:
    sink.apply(*upserts(range(number), a="x"))
    batch = sink.batch(sink.transaction(*upserts(range(number), a="y")))
    sink.kill()
    with pytest.raises(ReadUnavailable):
        sink.write(batch)
    sink.write(batch)
    assert [row[1] for row in sink.rows()] == ["y"] * number
    assert sink.stored() == sink.lsn


@contextmanager
def broken(sink: Sink, *, after: bool) -> Iterator[None]:
    """Lose the connection just before, or just after, the commit."""
    connection = sink.writer._connection
    assert connection is not None
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    commit = driver.commit

    def commit_and_lose() -> None:
        if after:
            commit()
        sink.kill()
        commit()
        raise psycopg.OperationalError("the connection was lost")

    driver.commit = commit_and_lose  # type: ignore[method-assign]
    yield


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("rows", ["few", "none"])
def test_a_connection_lost_at_the_commit_applies_the_batch_once(
    sink: Sink, after: bool, rows: str
) -> None:
    log = [Append.of(shape_of(T, ("id", "a"), text=True), ("1", "x"))] if rows == "few" else []
    batch = sink.batch(sink.transaction(*log)) if log else Batch(end_lsn=Lsn(START + 7))
    with broken(sink, after=after), pytest.raises(ReadUnavailable):
        sink.write(batch)
    assert (sink.stored() == batch.end_lsn) is after
    # An append cannot be done twice: the key would be taken.
    sink.write(batch)
    assert sink.stored() == sink.writer.checkpoint == batch.end_lsn
    assert len(sink.rows()) == len(log)
    sink.apply(Upsert(T, id=9, a="next"))
    assert sink.stored() == sink.lsn


def test_a_connection_lost_between_pieces_means_to_stream_them_again(sink: Sink) -> None:
    sink.write(sink.batch(sink.transaction(*upserts(range(MANY), a="x"), ends=False)))
    sink.kill()
    with pytest.raises(ReadTransactionLost):
        sink.write(sink.batch(sink.transaction(Upsert(T, id=999, a="y"))))
    assert sink.rows() == []
    assert sink.stored() == START


def test_a_lost_connection_and_a_checkpoint_that_moved_meanwhile(sink: Sink) -> None:
    batch = sink.batch(sink.transaction(Upsert(T, id=1, a="x")))
    sink.kill()
    with pytest.raises(ReadUnavailable):
        sink.write(batch)
    sink.read.run(f"update cdc_checkpoint set lsn = {sink.lsn + 1}")
    with pytest.raises(CheckpointMoved):
        sink.write(batch)


# What is durable.


@pytest.fixture
def lazy_server() -> Iterator[Server]:
    """A server that writes its WAL when it must."""
    settings = {**FAST, "wal_writer_delay": 10_000, "wal_writer_flush_after": 1_000_000}
    with Server(installation(), settings) as server:
        yield server


def test_only_what_is_on_the_read_databases_disk_is_acknowledged(lazy_server: Server) -> None:
    read = Database(lazy_server)
    sink = Sink(read, T)
    assert read.value("show synchronous_commit") == "on"
    sink.apply(Upsert(T, id=1, a="x"))
    assert sink.writer.checkpoint == sink.lsn
    assert sink.writer.has_undurable_commits
    assert sink.writer.durable() == START
    sink.writer.flush()
    assert sink.writer.durable() == sink.lsn
    assert not sink.writer.has_undurable_commits

    sink.apply(Upsert(T, id=2, a="x"))
    batch = sink.batch(sink.transaction(Upsert(T, id=3, a="x")))
    lazy_server.kill()
    lazy_server.start()
    read.connection.close()
    read.connection = read.connect()
    assert sink.stored() == sink.lsn - 20
    with pytest.raises(ReadUnavailable):
        sink.write(batch)
    # The commits that are gone were not acknowledged: they can be streamed again.
    with pytest.raises(ReadTransactionLost):
        sink.write(batch)
    assert sink.writer.durable() == sink.stored()
    sink.writer.close()
    read.connection.close()


def test_where_a_standby_is_waited_for_commits_wait(lazy_server: Server) -> None:
    lazy_server.psql("alter system set synchronous_standby_names = 'nobody'")
    lazy_server.psql("select pg_reload_conf()")
    until(lambda: lazy_server.psql("show synchronous_standby_names") == [("nobody",)])
    engine = create_engine(lazy_server.url())
    writer = Writer(engine, "s")
    connection = writer.open()
    assert connection.exec_driver_sql("show synchronous_commit").scalar() == "on"
    writer.close()
    engine.dispose()


def test_json_is_stored_as_it_was(sink_of: Callable[..., Sink], number: int) -> None:
    table = sa.Table(
        "t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("j", JSONB)
    )
    sink = sink_of(table)
    document = {"a": 'q"\\\n\t', "b": [None, True, 1.5, "\x7f"], "c": {}}
    sink.apply(*(Upsert(table, id=k, j=document) for k in range(number)))
    stored = sink.read.rows("select j::text from t")
    assert {json.dumps(json.loads(text), sort_keys=True) for (text,) in stored} == {
        json.dumps(document, sort_keys=True)
    }


def test_the_session_is_ours_whatever_the_role_is_set_to(read: Database) -> None:
    for setting in ("statement_timeout = 1", "timezone = 'Asia/Tokyo'", "datestyle = 'German'"):
        read.run(f"alter database {read.name} set {setting}")
    engine = create_engine(read.url)
    writer = Writer(engine, "s")
    connection = writer.open()
    show = lambda name: connection.exec_driver_sql(f"show {name}").scalar()  # noqa: E731
    found = [show(name) for name in ("statement_timeout", "timezone", "datestyle")]
    assert found[:2] == ["0", "UTC"]
    assert str(found[2]).startswith("ISO")
    writer.close()
    engine.dispose()


# Rows in bulk.

BULK = BulkPlan(
    shape=shape_of(T, ("id", "a", "b"), text=True),
    positions=(0, 1, 2),
    key_shape=shape_of(T, ("id",), text=True),
    key_positions=(0,),
)


class NewRows:
    """Inserted rows, in bulk."""

    relation = RELATION

    def __init__(self, rows: list[tuple[str, ...]]) -> None:
        self.rows = rows
        self.inserted = [True] * len(rows)
        self.deleted = [False] * len(rows)

    def keys(self, positions: Sequence[int]) -> list[Any]:
        (position,) = positions
        return [row[position] for row in self.rows]

    def lines(self, picked: Sequence[int], positions: Sequence[int]) -> list[bytes]:
        return [encode([self.rows[i][p] for p in positions]) for i in picked]

    def text(self, picked: Sequence[int], positions: Sequence[int]) -> bytes:
        return joined(self.lines(picked, positions))


DIES_ONCE = """
create sequence once;
create function dies_once() returns trigger language plpgsql as $$
begin
  if nextval('once') = 1 then perform pg_terminate_backend(pg_backend_pid()); end if;
  return null;
end $$;
create trigger dies_once before update on t for each statement execute function dies_once();
"""


def test_new_rows_in_bulk_that_collided_outlive_a_lost_connection(sink: Sink) -> None:
    sink.apply(Upsert(T, id=5, a="stale", b="stale"))
    sink.read.run(DIES_ONCE)
    batch = sink.batch(sink.transaction())
    batch.effect.add_rows(NewRows([(str(key), "x", "y") for key in range(MANY)]), BULK)
    batch.effect.seal()
    with pytest.raises(ReadUnavailable):
        sink.write(batch)
    sink.write(batch)
    assert sink.rows() == [(key, "x", "y") for key in range(MANY)]
    assert sink.stored() == sink.lsn


def test_a_timeout_that_newer_servers_alone_know_is_lifted() -> None:
    wheel = find_wheel()
    require(wheel and wheel.version[0] >= 17, "a Postgres server of version 17 or newer")
    with Server(wheel, {**FAST, "transaction_timeout": "1s"}) as server:
        with closing(connect(server.dsn())) as source:
            source_has = source.execute("show transaction_timeout").fetchone()
        with create_engine(server.url()).connect() as read:
            read_has = read.exec_driver_sql("show transaction_timeout").one()
    assert (source_has, tuple(read_has)) == (("0",), ("0",))

"""The contract of every read database: Postgres, MariaDB and SQLite are each run through it."""

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cdc import Delete, Operation, Truncate, Update, Upsert
from cdc.assemble import Transaction
from cdc.change import Column, Inserted, Relation
from cdc.errors import (
    CheckpointMoved,
    ReadError,
    ReadLocked,
    ReadTableMismatch,
    ReadTransactionLost,
    ReadUnavailable,
    WriteRefused,
)
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operation import Append, Move, shape_of
from cdc.projection.batch import Batch
from cdc.projection.mirror import PostgresType
from cdc.projection.registry import Registry
from cdc.sink import checkpoint, sqlite_session, tables
from cdc.sink.engine import create_engine
from cdc.sink.writer import Writer
from tests.conftest import ROOT
from tests.read_databases import MariaRead, PostgresRead, ReadDatabase, SQLiteRead, losing

SECRET = "s3cr3t"
NOW = datetime(2024, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
IDENTITY = checkpoint.Identity("s", "pgoutput", "7", 1)
RELATION = Relation(TableName("public", "source"), (Column("id", 23, 23),), ("id",))
FEW, MANY = 3, 50
START = Lsn(100)
DIALECTS = ["postgres", "mariadb", "sqlite"]


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """The dialect; a test that is about some of them alone gives its own parameter."""
    return str(request.param)


@pytest.fixture
def store(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> ReadDatabase:
    if dialect == "postgres":
        return PostgresRead(request.getfixturevalue("read"))
    if dialect == "mariadb":
        return MariaRead(request.getfixturevalue("mariadb"))
    return SQLiteRead(tmp_path / "read.db")


@pytest.fixture(params=[FEW, MANY], ids=["few", "many"])
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


class Script:
    """A projector that returns for each change what the test wants."""

    name = "scripted"
    sources = (RELATION.name,)

    def __init__(self, *into: sa.Table) -> None:
        self.into = into
        self.wanted: dict[str, list[Operation]] = {}

    def operations(self, change: Any) -> list[Operation]:
        return self.wanted[change.values[0]]


class Sink:
    """A writer on a database of its own, and transactions made of operations."""

    def __init__(self, store: ReadDatabase, *wanted: sa.Table) -> None:
        self.store = store
        self.engine = create_engine(store.url)
        self.script = Script(*wanted)
        self.registry = Registry([self.script])
        self.writer = Writer(self.engine, IDENTITY.slot)
        self.numbers = count(1)
        self.lsn = START
        connection = self.connection = self.writer.open()
        with connection.begin():
            tables.create(connection, [checkpoint.TABLE, *wanted])
        with connection.begin():
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
        return int(self.store.query("select lsn from cdc_checkpoint")[0][0])

    def rows(self, table: str = "t") -> list[tuple[Any, ...]]:
        return self.store.query(f"select * from {table} order by 1, 2")

    def values(self, table: sa.Table) -> list[tuple[Any, ...]]:
        """Give a table's rows as an application reads them, through SQLAlchemy."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.select(table))]


T = sa.Table(
    "t",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("a", sa.Text),
    sa.Column("b", sa.Text, server_default="default"),
)


@pytest.fixture
def sink_of(store: ReadDatabase) -> Iterator[Callable[..., Sink]]:
    made: list[Sink] = []

    def make(*wanted: sa.Table) -> Sink:
        made.append(Sink(store, *wanted))
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


def move(old: Any, new: Any, table: sa.Table = T, columns: tuple[str, ...] = ("id",)) -> Operation:
    return Move.between(shape_of(table, columns, text=False), old, new)


# Net effects.


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


def test_the_key_0_is_a_key_like_any_other(sink: Sink, number: int) -> None:
    sink.apply(*upserts(range(number), a="x"))
    sink.apply(*upserts(range(number), a="y"))
    assert sink.rows()[0] == (0, "y", "default")


def test_a_key_that_is_null_is_no_key_to_be_made_up(sink: Sink) -> None:
    shape = shape_of(T, ("id", "a"), text=True)
    with pytest.raises(WriteRefused, match="upsert t"):
        sink.apply(Upsert.of(shape, ("1", "x")), Upsert.of(shape, (None, "x")))
    assert sink.rows() == []


def test_rows_there_and_new_in_one_batch(sink: Sink, number: int) -> None:
    sink.apply(*upserts(range(0, 2 * number, 2), a="old"))
    sink.apply(*upserts(range(2 * number), a="new"))
    assert sink.rows() == [(key, "new", "default") for key in range(2 * number)]


def test_columns_that_were_not_sent_keep_their_values(sink: Sink, number: int) -> None:
    """Unchanged TOAST, alone, and merged with an insert and with another update of its row."""
    keys = range(number)
    sink.apply(*upserts(keys, a="large", b="y"))
    sink.apply(*(Update(T, id=key, b="z") for key in keys))
    assert sink.rows() == [(key, "large", "z") for key in keys]
    more = range(100, 100 + number)
    sink.write(
        sink.batch(
            sink.transaction(*upserts(more, a="large", b="y")),
            sink.transaction(*(Update(T, id=key, b="w") for key in (*keys, *more))),
            sink.transaction(*(Update(T, id=key, a="other") for key in keys)),
        )
    )
    assert sink.rows() == [
        *((key, "other", "w") for key in keys),
        *((key, "large", "w") for key in more),
    ]


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


def test_a_truncate_comes_before_what_follows_it_and_is_rolled_back_with_it(
    sink: Sink, number: int
) -> None:
    sink.apply(*upserts(range(100), a="old"))
    with pytest.raises(WriteRefused):
        sink.apply(Truncate(T), Upsert(T, id=1, a=object()))
    assert len(sink.rows()) == 100
    sink.writer.open()
    sink.apply(Upsert(T, id=1, a="gone"), Truncate(T), *upserts(range(number), a="new"))
    assert sink.rows() == [(key, "new", "default") for key in range(number)]


def test_rows_are_appended_to_a_table_without_a_key(
    sink_of: Callable[..., Sink], number: int
) -> None:
    log = sa.Table("log", sa.MetaData(), sa.Column("x", sa.Integer), sa.Column("y", sa.Text))
    sink = sink_of(log)
    shape = shape_of(log, ("x", "y"), text=True)
    sink.apply(*(Append.of(shape, ("1", None)) for _ in range(number)))
    sink.apply(*(Append.of(shape, ("2", "a\tb\\N%s%%")) for _ in range(number)))
    assert sink.rows("log") == [(1, None)] * number + [(2, "a\tb\\N%s%%")] * number


# Keys.


def test_a_moved_row_keeps_the_columns_that_were_not_sent(sink: Sink, number: int) -> None:
    keys = range(number)
    sink.apply(*upserts(keys, a="x", b="y"))
    sink.apply(*(move((key,), (1000 + key,)) for key in keys), Update(T, id=1000, a="z"))
    assert sink.rows()[0] == (1000, "z", "y")
    assert [row[0] for row in sink.rows()] == [1000 + key for key in keys]


def test_keys_that_swap_in_one_transaction_move_through_a_third(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="one"), Upsert(T, id=2, a="two"))
    sink.apply(move((1,), (3,)), move((2,), (1,)), move((3,), (2,)))
    assert sink.rows() == [(1, "two", "default"), (2, "one", "default")]


def test_a_stale_row_makes_way_for_the_one_that_moves_there(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="one"), Upsert(T, id=2, a="stale"))
    sink.apply(move((1,), (2,)))
    assert sink.rows() == [(2, "one", "default")]
    sink.apply(move((7,), (2,)))
    assert sink.rows() == [(2, "one", "default")]


def test_a_key_that_is_used_again_is_another_row_in_one_batch_and_across(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="first", b="y"))
    sink.write(
        sink.batch(
            sink.transaction(Delete(T, id=1)),
            sink.transaction(Upsert(T, id=1, a="second")),
            sink.transaction(move((1,), (2,)), Upsert(T, id=1, a="third")),
        )
    )
    assert sink.rows() == [(1, "third", "default"), (2, "second", "default")]


COMPOSITE = sa.Table(
    "composite",
    sa.MetaData(),
    sa.Column("a", sa.Integer, primary_key=True),
    sa.Column("b", sa.String(20), primary_key=True),
    sa.Column("v", sa.Text),
)


@pytest.mark.parametrize("columns", [("a", "b"), ("b", "a")])
def test_composite_keys_whatever_the_order_of_their_columns(
    sink_of: Callable[..., Sink], columns: tuple[str, ...], number: int
) -> None:
    sink = sink_of(COMPOSITE)

    def key(a: int, b: str) -> tuple[Any, ...]:
        return tuple({"a": a, "b": b}[name] for name in columns)

    sink.apply(*(Upsert(COMPOSITE, a=1, b=f"k{n:03}", v=str(n)) for n in range(number)))
    sink.apply(*(Update(COMPOSITE, a=1, b=f"k{n:03}", v=f"{n}!") for n in range(number)))
    moves = (
        move(key(1, f"k{n:03}"), key(2, f"l{n:03}"), COMPOSITE, columns) for n in range(number)
    )
    sink.apply(*moves)
    assert sink.rows("composite") == [(2, f"l{n:03}", f"{n}!") for n in range(number)]
    delete = shape_of(COMPOSITE, columns, text=False)
    sink.apply(*(Delete.of(delete, key(2, f"l{n:03}")) for n in range(number)))
    assert sink.rows("composite") == []


TEXT_KEYS = [
    "a",
    "A",
    "a ",
    "a  ",
    " a",
    "e",
    "é",
    "E",
    "e\u0301",
    "ß",
    "ss",
    "",
    "'",
    "\\",
    "%",
    "😀",
    "\x01",
]


@pytest.mark.parametrize(
    "type_", [sa.String(20), sa.Text(), PostgresType("text"), sa.String()], ids=repr
)
def test_texts_that_only_look_alike_are_different_keys(
    sink_of: Callable[..., Sink], type_: Any, number: int
) -> None:
    table = sa.Table(
        "keyed", sa.MetaData(), sa.Column("k", type_, primary_key=True), sa.Column("v", sa.Text)
    )
    sink = sink_of(table)
    more = [f"x{n}" for n in range(number)]
    sink.apply(*(Upsert(table, k=key, v=key) for key in (*TEXT_KEYS, *more)))
    sink.apply(*(Update(table, k=key, v=f"{key}!") for key in (*TEXT_KEYS, *more)))
    assert sorted(sink.values(table)) == sorted((key, f"{key}!") for key in (*TEXT_KEYS, *more))
    sink.apply(*(Delete(table, k=key) for key in ("a", "é", *more)))
    assert {key for key, _ in sink.values(table)} == {*TEXT_KEYS} - {"a", "é"}
    sink.apply(move(("A",), ("a",), table, ("k",)))
    assert {key for key, _ in sink.values(table)} == {*TEXT_KEYS} - {"A", "é"}


ODD = ["per%cent", "%s", 'quo"te', "tick`", "a space", "semi;colon", "Mixed", "select", "é%%"]


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
    full = shape_of(table, (name, f"{name} 2", "v"), text=False)
    part = shape_of(table, (name, f"{name} 2"), text=False)
    key = shape_of(table, (name,), text=False)
    keys = range(number)
    sink.apply(*(Upsert.of(full, (k, "x", "v")) for k in keys))
    sink.apply(*(Upsert.of(part, (k, "y")) for k in keys))
    sink.apply(*(Move.between(key, (k,), (k + 100,)) for k in keys))
    assert sorted(sink.values(table)) == [(k + 100, "y", "v") for k in keys]
    sink.apply(*(Delete.of(key, (k + 100,)) for k in keys))
    assert sink.values(table) == []
    sink.apply(Truncate(table))
    assert sink.stored() == sink.lsn


# Constraints beside the key.

UNIQUE = sa.Table(
    "u",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(20), unique=True, nullable=False),
    sa.Column("v", sa.Text, server_default="default"),
)


def test_an_upsert_never_writes_to_another_row_through_a_second_unique_index(
    sink_of: Callable[..., Sink], number: int
) -> None:
    sink = sink_of(UNIQUE)
    keys = range(number)
    sink.apply(*(Upsert(UNIQUE, id=k, name=f"n{k}", v="mine") for k in keys))
    before = sink.rows("u")
    stored = sink.stored()
    with pytest.raises(WriteRefused, match="id=1000"):
        sink.apply(
            *(Upsert(UNIQUE, id=2000 + k, name=f"m{k}") for k in keys),
            Upsert(UNIQUE, id=1000, name="n1", v="stolen"),
        )
    assert sink.rows("u") == before
    assert sink.stored() == stored


def test_unique_columns_swap_their_values_through_a_third(
    sink_of: Callable[..., Sink], number: int
) -> None:
    sink = sink_of(UNIQUE)
    many = [Upsert(UNIQUE, id=k, name=f"n{k}") for k in range(10, 10 + number)]
    sink.apply(Upsert(UNIQUE, id=1, name="a"), Upsert(UNIQUE, id=2, name="b"), *many)
    sink.write(
        sink.batch(
            sink.transaction(Upsert(UNIQUE, id=1, name="aside"), *many),
            sink.transaction(Upsert(UNIQUE, id=2, name="a"), Upsert(UNIQUE, id=3, name="c")),
            sink.transaction(Upsert(UNIQUE, id=1, name="b")),
        )
    )
    assert [row[:2] for row in sink.rows("u")[:3]] == [(1, "b"), (2, "a"), (3, "c")]
    assert len(sink.rows("u")) == number + 3


def deferrable(dialect: str) -> sa.Table:
    """The table that a swap at once needs: Postgres is told to wait, the others cannot be."""
    waits = {"deferrable": True, "initially": "DEFERRED"} if dialect == "postgres" else {}
    return sa.Table(
        "u",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20), nullable=False),
        sa.Column("v", sa.Text, server_default="default"),
        sa.UniqueConstraint("name", **waits),
    )


def test_unique_columns_swap_their_values_at_once(
    sink_of: Callable[..., Sink], dialect: str, number: int
) -> None:
    table = deferrable(dialect)
    sink = sink_of(table)
    keys = range(number)
    sink.apply(*(Upsert(table, id=k, name=f"n{k}", v=f"v{k}") for k in keys))
    with_new = Upsert(table, id=1000, name="new")
    sink.apply(*(Upsert(table, id=k, name=f"n{(k + 1) % number}") for k in keys), with_new)
    expected = [(k, f"n{(k + 1) % number}", f"v{k}") for k in keys]
    assert sink.rows("u") == [*expected, (1000, "new", "default")]


def test_unique_columns_swap_though_their_rows_were_sent_in_different_columns(
    sink_of: Callable[..., Sink], dialect: str
) -> None:
    table = deferrable(dialect)
    sink = sink_of(table)
    sink.apply(Upsert(table, id=1, name="a", v="x"), Upsert(table, id=2, name="b", v="y"))
    sink.apply(Update(table, id=1, name="b"), Upsert(table, id=2, name="a", v="z"))
    assert sink.rows("u") == [(1, "b", "x"), (2, "a", "z")]


def test_a_swap_keeps_columns_that_only_the_read_table_has_and_rows_that_refer_to_it(
    sink_of: Callable[..., Sink], dialect: str, number: int
) -> None:
    table = deferrable(dialect)
    child = sa.Table(
        "child",
        table.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("u_id", sa.ForeignKey("u.id")),
    )
    sink = sink_of(table, child)
    sink.store.query("alter table u add column more integer default 5")
    sink.store.query(
        "alter table u add column upper_name varchar(50) generated always as (upper(name)) "
        + ("stored" if dialect == "postgres" else "virtual")
    )
    keys = range(number)
    sink.apply(
        *(Upsert(table, id=k, name=f"n{k}") for k in keys),
        *(Upsert(child, id=k, u_id=k) for k in keys),
    )
    sink.store.query("update u set more = id")
    sink.apply(*(Upsert(table, id=k, name=f"n{(k + 1) % number}") for k in keys))
    assert sink.rows("u") == [
        (k, f"n{(k + 1) % number}", "default", k, f"N{(k + 1) % number}") for k in keys
    ]
    assert sink.rows("child") == [(k, k) for k in keys]


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


def test_a_child_without_a_parent_is_refused(sink_of: Callable[..., Sink], number: int) -> None:
    parent, child = families()
    sink = sink_of(parent, child)
    sink.apply(*(Upsert(parent, id=k) for k in range(number)))
    with pytest.raises(WriteRefused, match=r"child \(id=7\)"):
        sink.apply(
            *(Upsert(child, id=100 + k, parent_id=k) for k in range(number)),
            Upsert(child, id=7, parent_id=999),
        )
    assert sink.rows("child") == []


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
        )
    )
    sink.write(sink.batch(*(sink.transaction(Delete(tree, id=k)) for k in range(number + 1))))
    assert sink.rows("tree") == []


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_sqlite_checks_foreign_keys_that_wait_while_the_transaction_can_be_told(
    sink_of: Callable[..., Sink],
) -> None:
    metadata = sa.MetaData()
    waits: dict[str, Any] = {"deferrable": True, "initially": "DEFERRED"}
    tables_ = [
        sa.Table(
            name,
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("other", sa.ForeignKey(f"{target}.id", name=name, use_alter=True, **waits)),
        )
        for name, target in (("a", "b"), ("b", "a"))
    ]
    sink = sink_of(*tables_)
    a, b = tables_
    sink.apply(Upsert(a, id=1, other=1), Upsert(b, id=1, other=1))
    with pytest.raises(WriteRefused, match=r"committed at 0/6E as a whole.*FOREIGN KEY.*table a"):
        sink.apply(Upsert(a, id=2, other=2))
    assert (sink.rows("a"), sink.rows("b")) == ([(1, 1)], [(1, 1)])


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_swap_takes_no_other_rows_with_it(sink_of: Callable[..., Sink], dialect: str) -> None:
    table = deferrable(dialect)
    child = sa.Table(
        "child",
        table.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("u_id", sa.ForeignKey("u.id", ondelete="CASCADE")),
    )
    sink = sink_of(table, child)
    sink.apply(
        Upsert(table, id=1, name="a"), Upsert(table, id=2, name="b"), Upsert(child, id=1, u_id=1)
    )
    with pytest.raises(WriteRefused, match=r"u \(id=1\)"):
        sink.apply(Upsert(table, id=1, name="b"), Upsert(table, id=2, name="a"))
    assert sink.rows("child") == [(1, 1)]
    sink.writer.open()
    sink.write(  # step by step it can be had
        sink.batch(
            sink.transaction(Upsert(table, id=1, name="aside")),
            sink.transaction(Upsert(table, id=2, name="a"), Upsert(table, id=1, name="b")),
        )
    )
    assert [row[:2] for row in sink.rows("u")] == [(1, "b"), (2, "a")]
    assert sink.rows("child") == [(1, 1)]


@pytest.mark.parametrize("dialect", ["mariadb", "sqlite"])
def test_rows_that_refer_to_a_unique_column_are_not_left_behind_by_a_swap(
    sink_of: Callable[..., Sink], dialect: str
) -> None:
    table = deferrable(dialect)
    child = sa.Table(
        "child",
        table.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("u_name", sa.ForeignKey("u.name")),
    )
    sink = sink_of(table, child)
    sink.apply(
        Upsert(table, id=1, name="a"),
        Upsert(table, id=2, name="b"),
        Upsert(child, id=1, u_name="a"),
    )
    with pytest.raises(WriteRefused, match=r"u \(id=1\)"):
        sink.apply(Upsert(table, id=1, name="b"), Upsert(table, id=2, name="c"))
    assert sink.rows("child") == [(1, "a")]
    assert [row[:2] for row in sink.rows("u")] == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("dialect", ["mariadb", "sqlite"])
def test_a_swap_does_not_hide_a_parent_that_is_missing(
    sink_of: Callable[..., Sink], number: int
) -> None:
    parent, _ = families()
    table = sa.Table(
        "u",
        parent.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20), unique=True),
        sa.Column("parent_id", sa.ForeignKey("parent.id")),
    )
    sink = sink_of(parent, table)
    keys = range(number)
    sink.apply(
        Upsert(parent, id=1), *(Upsert(table, id=k, name=f"n{k}", parent_id=1) for k in keys)
    )
    swapped = [Upsert(table, id=k, name=f"n{(k + 1) % number}", parent_id=1) for k in keys]
    sink.apply(*swapped)
    before = sink.rows("u")
    with pytest.raises(WriteRefused):
        sink.apply(
            *(Upsert(table, id=k, name=f"n{k}", parent_id=1) for k in keys),
            Upsert(table, id=0, name="n0", parent_id=999),
        )
    assert sink.rows("u") == before


@pytest.mark.parametrize("dialect", ["mariadb", "sqlite"])
def test_a_unique_constraint_that_would_wait_is_refused_at_setup(
    sink_of: Callable[..., Sink],
) -> None:
    with pytest.raises(ReadTableMismatch, match="u is deferrable"):
        sink_of(deferrable("postgres"))


@pytest.mark.parametrize("dialect", ["mariadb"])
def test_a_swap_in_mariadb_cascades_to_no_other_rows(
    sink_of: Callable[..., Sink], dialect: str, number: int
) -> None:
    table = deferrable(dialect)
    child = sa.Table(
        "child",
        table.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("u_id", sa.ForeignKey("u.id", ondelete="CASCADE")),
    )
    sink = sink_of(table, child)
    keys = range(number)
    sink.apply(
        *(Upsert(table, id=k, name=f"n{k}") for k in keys),
        *(Upsert(child, id=k, u_id=k) for k in keys),
    )
    sink.apply(*(Upsert(table, id=k, name=f"n{(k + 1) % number}") for k in keys))
    assert len(sink.rows("child")) == number
    with pytest.raises(WriteRefused):  # foreign keys are on again
        sink.apply(Upsert(child, id=1000, u_id=1000))


# What is refused.

REFUSED = sa.Table(
    "refused",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(10), unique=True),
    sa.Column("n", sa.SmallInteger),
    sa.Column("needed", sa.Text, nullable=False, server_default=""),
    sa.Column("checked", sa.Text),
    sa.Column("at", sa.DateTime),
    sa.Column("day", sa.Date),
    sa.Column("amount", sa.Numeric(10, 2).with_variant(sa.Text, "sqlite")),
    sa.CheckConstraint(f"checked <> '{SECRET}'", name="no_secret"),
)


@pytest.mark.parametrize(
    "values",
    [
        {"name": SECRET},
        {"name": SECRET * 5},
        {"n": SECRET},
        {"n": 10**30},
        {"n": [1, 2]},
        {"n": SECRET.encode()},
        {"needed": None},
        {"checked": SECRET},
        {"checked": object()},
        {"checked": {1, 2}},
        {"at": SECRET},
        {"amount": SECRET.encode()},
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
    assert sink.stored() == before
    assert len(sink.rows("refused")) == 1


@pytest.mark.parametrize("dialect", ["mariadb", "sqlite"])
@pytest.mark.parametrize(
    "values",
    [
        {"name": SECRET + " " * 10},
        {"checked": ["a"]},
        {"n": 1.5},
        {"n": Decimal("1.5")},
        {"at": "2024-01-01"},
        {"day": NOW},
    ],
    ids=str,
)
def test_what_would_be_cut_or_made_to_fit_is_refused(
    sink_of: Callable[..., Sink], values: dict[str, Any], number: int
) -> None:
    sink = sink_of(REFUSED)
    good = [Upsert(REFUSED, id=k) for k in range(1000, 1000 + number)]
    with pytest.raises(WriteRefused, match=f"id=77.*column {next(iter(values))}"):
        sink.apply(*good, Upsert(REFUSED, id=77, **values))
    assert sink.rows("refused") == []


# Exactly once.


def test_transactions_and_their_checkpoint_are_one_commit(sink: Sink) -> None:
    sink.write(sink.batch(*(sink.transaction(Upsert(T, id=k, a="x")) for k in range(5))))
    assert sink.stored() == sink.writer.checkpoint == sink.lsn
    with sink.engine.connect() as connection:
        stored = checkpoint.load(connection, IDENTITY.slot)
    assert stored is not None
    assert (stored.identity, stored.commit_time) == (IDENTITY, NOW)
    sink.write(Batch(end_lsn=Lsn(sink.lsn + 5)))
    assert sink.stored() == sink.lsn + 5
    sink.writer.flush()
    assert sink.writer.durable() == sink.lsn + 5


def test_nothing_of_a_batch_is_seen_before_its_commit(sink: Sink) -> None:
    sink.write(sink.batch(sink.transaction(*upserts(range(MANY), a="x"), ends=False)))
    sink.write(sink.batch(sink.transaction(*upserts(range(MANY), b="y"), ends=False)))
    assert sink.rows() == []
    assert sink.stored() == START
    sink.write(sink.batch(sink.transaction(Delete(T, id=0))))
    assert len(sink.rows()) == MANY - 1
    assert sink.rows()[0] == (1, "x", "y")
    assert sink.stored() == sink.lsn


def test_a_refused_row_in_a_later_piece_is_told_and_nothing_stays(sink: Sink) -> None:
    sink.write(sink.batch(sink.transaction(*upserts(range(MANY), a="x"), ends=False)))
    with pytest.raises(WriteRefused, match="id=9999"):
        sink.apply(Upsert(T, id=9999, a=object()))
    assert sink.rows() == []


def test_a_checkpoint_that_somebody_else_moved_stops_the_writer(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="x"))
    for lsn in (sink.lsn + 1000, 1):
        sink.store.query(f"update cdc_checkpoint set lsn = {lsn}")
        with pytest.raises(CheckpointMoved):
            sink.apply(Upsert(T, id=2, a="never"))
        assert sink.rows() == [(1, "x", "default")]
        assert sink.stored() == lsn


def test_rows_that_move_no_checkpoint_are_not_written_either_where_it_was_moved(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="x"))
    sink.store.query(f"update cdc_checkpoint set lsn = {sink.lsn + 1000}")
    copied = sink.batch(sink.transaction(Upsert(T, id=2, a="never")))
    copied.end_lsn = sink.lsn - 1
    with pytest.raises(CheckpointMoved):
        sink.write(copied)
    assert sink.rows() == [(1, "x", "default")]


def test_a_position_behind_the_checkpoint_does_not_move_it_back(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="x"))
    sink.write(Batch(end_lsn=Lsn(50)))
    assert sink.stored() == sink.lsn


def test_a_second_writer_of_the_same_slot_is_locked_out_and_a_reader_is_not(sink: Sink) -> None:
    engine = create_engine(sink.store.url)
    second, other = Writer(engine, IDENTITY.slot), Writer(engine, "another")
    with pytest.raises(ReadLocked, match="another daemon serves slot s"):
        second.open()
    other.open()
    other.close()
    sink.write(sink.batch(sink.transaction(Upsert(T, id=1, a="x"), ends=False)))
    assert sink.rows() == []  # and is not kept waiting
    sink.writer.close()
    second.open()
    second.close()
    engine.dispose()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("rows", ["some", "none"])
def test_a_connection_lost_at_the_commit_applies_the_batch_once(
    sink: Sink, after: bool, rows: str
) -> None:
    log = [Append.of(shape_of(T, ("id", "a"), text=True), ("1", "x"))] if rows == "some" else []
    batch = sink.batch(sink.transaction(*log)) if log else Batch(end_lsn=Lsn(START + 7))
    with losing(sink.connection, sink.store, after=after), pytest.raises(ReadUnavailable):
        sink.write(batch)
    assert (sink.stored() == batch.end_lsn) is after
    # An append cannot be done twice: the key would be taken.
    sink.write(batch)
    assert sink.stored() == sink.writer.checkpoint == batch.end_lsn
    assert len(sink.rows()) == len(log)
    sink.apply(Upsert(T, id=9, a="next"))
    assert sink.stored() == sink.lsn


@pytest.mark.parametrize("dialect", ["postgres", "mariadb"])
def test_a_session_that_was_ended_is_no_matter(sink: Sink, number: int) -> None:
    sink.apply(*upserts(range(number), a="x"))
    batch = sink.batch(sink.transaction(*upserts(range(number), a="y")))
    sink.store.cut()
    with pytest.raises(ReadUnavailable):
        sink.write(batch)
    sink.write(batch)
    assert [row[1] for row in sink.rows()] == ["y"] * number
    assert sink.stored() == sink.lsn


def test_each_piece_of_a_transaction_is_a_step(sink: Sink) -> None:
    before = sink.writer.steps
    for piece in range(FEW):
        sink.write(sink.batch(sink.transaction(Upsert(T, id=piece, a="x"), ends=False)))
        assert sink.writer.steps == before + piece + 1


@pytest.mark.parametrize("dialect", ["postgres", "mariadb"])
def test_a_session_that_was_ended_between_pieces_means_to_stream_them_again(sink: Sink) -> None:
    sink.write(sink.batch(sink.transaction(*upserts(range(MANY), a="x"), ends=False)))
    sink.store.cut()
    with pytest.raises(ReadTransactionLost):
        sink.write(sink.batch(sink.transaction(Upsert(T, id=999, a="y"))))
    assert sink.rows() == []
    assert sink.stored() == START


@pytest.mark.parametrize("dialect", ["postgres", "mariadb"])
def test_a_write_that_waits_for_a_lock_is_ended_by_a_stop(sink: Sink) -> None:
    sink.apply(Upsert(T, id=1, a="x"))
    with sink.engine.connect() as other, other.begin():
        other.execute(sa.update(T).values(a="mine"))
        with ThreadPoolExecutor(1) as pool:
            write = pool.submit(sink.apply, Upsert(T, id=1, a="y"))
            while not write.done():  # it may not wait yet: a stop says so again
                sink.writer.interrupt()
                wait([write], timeout=0.05)
            with pytest.raises(ReadUnavailable):
                write.result()


# Values.

MIRRORED: dict[str, tuple[str, str | None, Any, Any]] = {
    # column: type, text as it is sent, what MariaDB gives back, what SQLite gives back
    "small": ("smallint", "-32768", -32768, -32768),
    "int": ("integer", "2147483647", 2147483647, 2147483647),
    "big": ("bigint", "-9223372036854775808", -(2**63), -(2**63)),
    "oid": ("oid", "4294967295", 4294967295, 4294967295),
    "flag": ("boolean", "t", 1, 1),
    "unflag": ("boolean", "f", 0, 0),
    "raw": ("bytea", "\\x00ff5c", b"\x00\xff\\", b"\x00\xff\\"),
    "empty": ("bytea", "\\x", b"", b""),
    "uuid": ("uuid", "00000000-0000-0000-0000-000000000007", None, None),
    "num": ("numeric", "1." + "1234567890" * 20, None, None),
    "scaled": ("numeric(10,2)", "1.50", None, None),
    "nan": ("numeric(10,2)", "NaN", None, None),
    "infinite": ("numeric", "-Infinity", None, None),
    "real": ("real", "0.1", None, None),
    "float": ("double precision", "-0", None, None),
    "float_nan": ("double precision", "NaN", None, None),
    "money": ("money", "$1,234.50", None, None),
    "text": ("text", "a\tb\n\r\\ 'q' \"d\" `t` % %s ? \x01 \u007f é e\u0301 😀 ", None, None),
    "padded": ("character(5)", "ab   ", None, None),
    "limited": ("character varying(5)", "ab   ", None, None),
    "json": ("json", '{"b" :  1, "b": 1.50}', None, None),
    "json_number": ("jsonb", "12345678901234567890.10", None, None),
    "ts": ("timestamp without time zone", "0044-03-15 00:00:00 BC", None, None),
    "tstz": ("timestamp with time zone", "infinity", None, None),
    "tstz3": ("timestamp(3) with time zone", "10000-01-01 00:00:00.123+00", None, None),
    "date": ("date", "4713-01-01 BC", None, None),
    "time": ("time without time zone", "24:00:00", timedelta(hours=24), "24:00:00"),
    "time6": (
        "time(6) without time zone",
        "10:34:56.123456",
        timedelta(hours=10, minutes=34, seconds=56, microseconds=123456),
        "10:34:56.123456",
    ),
    "timetz": ("time with time zone", "10:34:56.123456+05:30", None, None),
    "interval": ("interval", "1 year 2 mons -3 days +04:05:06.789", None, None),
    "array": ("integer[]", "{1,NULL,3}", None, None),
    "texts": ("text[]", '{"a\\"b",NULL,""}', None, None),
    "range": ("int4range", "[1,5)", None, None),
    "inet": ("inet", "10.0.0.1", None, None),
    "bits": ("bit varying(5)", "101", None, None),
    "xml": ("xml", "<a/>", None, None),
    "tsvector": ("tsvector", "'a':1", None, None),
    "null_text": ("text", None, None, None),
    "null_int": ("integer", None, None, None),
    "null_raw": ("bytea", None, None, None),
}


@pytest.mark.parametrize("dialect", ["mariadb", "sqlite"])
def test_what_a_mirror_carries_is_stored_natively_where_all_of_it_fits_and_else_as_its_text(
    sink_of: Callable[..., Sink], dialect: str, number: int
) -> None:
    columns = [sa.Column(name, PostgresType(type_)) for name, (type_, *_) in MIRRORED.items()]
    table = sa.Table(
        "mirrored",
        sa.MetaData(),
        sa.Column("id", PostgresType("integer"), primary_key=True),
        *columns,
    )
    sink = sink_of(table)
    shape = shape_of(table, ("id", *MIRRORED), text=True)
    values = tuple(text for _, text, *_ in MIRRORED.values())
    expected = tuple(
        (lite if dialect == "sqlite" else maria) if maria is not None else text
        for _, text, maria, lite in MIRRORED.values()
    )
    for kind in (Upsert, Upsert, Update):
        sink.apply(*(kind.of(shape, (str(k), *values)) for k in range(number)))
        assert sink.rows("mirrored") == [(k, *expected) for k in range(number)]


COMPUTED = {
    "mariadb": "alter table orders add amount_dec decimal(12,2) as (cast(amount as decimal(12,2)))",
    "sqlite": "alter table orders add amount_num as (cast(amount as real))",
}


@pytest.mark.parametrize("dialect", COMPUTED)
def test_a_column_that_is_added_to_compute_with_a_text_is_as_the_documentation_has_it(
    sink_of: Callable[..., Sink], dialect: str, number: int
) -> None:
    assert COMPUTED[dialect] in (ROOT / "docs" / "read-databases.md").read_text()
    table = sa.Table(
        "orders",
        sa.MetaData(),
        sa.Column("id", PostgresType("integer"), primary_key=True),
        sa.Column("amount", PostgresType("numeric(12,2)")),
    )
    sink = sink_of(table)
    shape = shape_of(table, ("id", "amount"), text=True)
    sink.store.query(COMPUTED[dialect])
    sink.apply(
        Upsert.of(shape, ("0", "NaN")),
        *(Upsert.of(shape, (str(k), "1.50")) for k in range(1, number)),
    )
    (total,) = sink.store.query(
        f"select sum({COMPUTED[dialect].split()[4]}) from orders where amount <> 'NaN'"
    )
    assert float(total[0]) == 1.5 * (number - 1)
    with sink.connection.begin():
        assert tables.misfits(sink.connection, [table]) == []


KEYS = {
    "smallint": ["-1", "0", "7"],
    "bigint": ["0", "9223372036854775807"],
    "text": ["a", "A", "a ", "é", "e", ""],
    "character varying(20)": ["a", "A", "a "],
    "character(3)": ["a  ", "A  "],
    "numeric": ["1", "1.5", "NaN", "1" * 100],
    "uuid": ["00000000-0000-0000-0000-000000000007"],
    "bytea": ["\\x", "\\x00", "\\x0000", "\\x61", "\\x41"],
    "boolean": ["t", "f"],
    "date": ["2024-02-29", "infinity", "0044-03-15 BC"],
    "timestamp with time zone": ["2024-02-29 01:02:03.000004+00", "infinity"],
    "time without time zone": ["24:00:00", "00:00:00"],
    "inet": ["10.0.0.1", "::1"],
}


@pytest.mark.parametrize("dialect", ["mariadb", "sqlite"])
@pytest.mark.parametrize("type_sql", KEYS)
def test_keys_of_every_type_are_found_again(sink_of: Callable[..., Sink], type_sql: str) -> None:
    table = sa.Table(
        "keyed",
        sa.MetaData(),
        sa.Column("k", PostgresType(type_sql), primary_key=True),
        sa.Column("n", PostgresType("integer"), primary_key=True),
        sa.Column("v", PostgresType("text")),
    )
    sink = sink_of(table)
    shape = shape_of(table, ("k", "n", "v"), text=True)
    key = shape_of(table, ("k", "n"), text=True)
    keys = [(k, str(n)) for k in KEYS[type_sql] for n in range(4)]
    sink.apply(*(Upsert.of(shape, (*k, "a")) for k in keys))
    sink.apply(*(Upsert.of(shape, (*k, "b")) for k in keys))
    assert [row[2] for row in sink.rows("keyed")] == ["b"] * len(keys)
    sink.apply(*(Move.between(key, k, (k[0], str(int(k[1]) + 10))) for k in keys))
    sink.apply(*(Update.of(shape, (k, str(int(n) + 10), "c")) for k, n in keys))
    assert [row[2] for row in sink.rows("keyed")] == ["c"] * len(keys)
    sink.apply(*(Delete.of(key, (k, str(int(n) + 10))) for k, n in keys))
    assert sink.rows("keyed") == []


@pytest.mark.parametrize("dialect", ["mariadb"])
def test_a_key_too_long_for_the_index_is_refused_with_its_column(
    sink_of: Callable[..., Sink],
) -> None:
    table = sa.Table("keyed", sa.MetaData(), sa.Column("k", PostgresType("text"), primary_key=True))
    sink = sink_of(table)
    shape = shape_of(table, ("k",), text=True)
    sink.apply(Upsert.of(shape, ("é" * 768,)))
    for value in ("é" * 769, "a" * 768 + " "):
        with pytest.raises(WriteRefused, match="column k: a value is longer than the 768 it holds"):
            sink.apply(Upsert.of(shape, (value,)))
        sink.writer.open()


@pytest.mark.parametrize("size", [1, 5])
def test_values_of_megabytes_arrive_or_are_refused(
    sink_of: Callable[..., Sink], dialect: str, size: int
) -> None:
    table = sa.Table(
        "large",
        sa.MetaData(),
        sa.Column("id", PostgresType("integer"), primary_key=True),
        sa.Column("t", PostgresType("text")),
        sa.Column("b", PostgresType("bytea")),
    )
    sink = sink_of(table)
    shape = shape_of(table, ("id", "t", "b"), text=True)
    text, raw = "é\\" * (size * 250_000), "\\x" + "00ff5c" * (size * 300_000)
    sink.apply(*(Upsert.of(shape, (str(k), text, raw)) for k in range(MANY // 4)))
    query = "select count(*), min(length(t)), min(length(b)) from large"
    characters = len(text.encode()) if dialect == "mariadb" else len(text)
    assert sink.store.query(query) == [(MANY // 4, characters, size * 900_000)]


@pytest.mark.parametrize("dialect", ["mariadb"])
def test_a_row_too_large_for_the_server_is_refused_rather_than_tried_for_ever(
    sink_of: Callable[..., Sink],
) -> None:
    sink = sink_of(T)
    with pytest.raises(WriteRefused, match=r"id=5\).*max_allowed_packet"):
        sink.apply(*upserts(range(5), a="x"), Upsert(T, id=5, a="x" * 17_000_000))
    assert sink.rows() == []


READ_MODEL = sa.Table(
    "read_model",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String),
    sa.Column("amount", sa.Numeric(30, 10).with_variant(sa.String, "sqlite")),
    sa.Column("ratio", sa.Float),
    sa.Column("raw", sa.LargeBinary),
    sa.Column("flag", sa.Boolean),
    sa.Column("on", sa.Date),
    sa.Column("at", sa.DateTime),
    sa.Column("at_utc", sa.DateTime(timezone=True)),
    sa.Column("daily", sa.Time),
    sa.Column("span", sa.Interval),
    sa.Column("uuid", sa.Uuid),
    sa.Column("mood", sa.Enum("good", "Good", name="mood")),
    sa.Column("doc", sa.JSON),
)


def test_python_values_go_through_their_columns_types_and_come_back_unrounded(
    sink_of: Callable[..., Sink], dialect: str, number: int
) -> None:
    sink = sink_of(T)
    with sink.connection.begin():
        if dialect == "postgres":
            READ_MODEL.create(sink.connection)
        else:
            tables.create(sink.connection, [READ_MODEL])
    amount = Decimal("12345678901234567890.0123456789")
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    values: dict[str, Any] = {
        "name": "x" * 100_000,
        "amount": str(amount) if dialect == "sqlite" else amount,
        "ratio": 0.1 + 0.2,
        "raw": b"\x00\xff" * 50_000,
        "flag": True,
        "on": date(1, 1, 1),
        "at": datetime(9999, 12, 31, 23, 59, 59, 999999),  # noqa: DTZ001
        "at_utc": elsewhere,
        "daily": time(23, 59, 59, 999999),
        "span": timedelta(days=1, microseconds=7),
        "uuid": uuid.UUID(int=7),
        "mood": "Good",
        "doc": {"a": [1, None, 'x"\\\t\n%s😀']},
    }
    sink.apply(*(Upsert(READ_MODEL, id=k, **values) for k in range(number)))
    expected = dict(values)
    if dialect != "postgres":
        expected["at_utc"] = NOW.replace(tzinfo=None)
    for row in sink.values(READ_MODEL):
        assert dict(zip(values, row[1:], strict=True)) == expected
    for name, value in values.items():
        sink.apply(*(Update(READ_MODEL, id=k, **{name: value}) for k in range(number)))
    assert sink.values(READ_MODEL)[0][1:] == tuple(expected.values())


@pytest.mark.parametrize("dialect", ["mariadb", "sqlite"])
@pytest.mark.parametrize("type_", [sa.Float(), sa.Double()], ids=repr)
def test_nan_becomes_no_null(sink_of: Callable[..., Sink], type_: Any) -> None:
    table = sa.Table(
        "f", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", type_)
    )
    sink = sink_of(table)
    with pytest.raises(WriteRefused, match="NaN is no value there"):
        sink.apply(Upsert(table, id=1, v=float("nan")))
    assert sink.rows("f") == []


@pytest.mark.parametrize(
    ("dialect", "type_"), [("sqlite", sa.Numeric(10, 2)), ("mariadb", sa.Numeric())], ids=str
)
def test_a_read_model_that_would_be_rounded_is_refused_at_setup(
    sink_of: Callable[..., Sink], type_: Any
) -> None:
    table = sa.Table(
        "n", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", type_)
    )
    with pytest.raises(ReadTableMismatch, match=r"n\.v.*round|round.*n\.v") as caught:
        sink_of(table)
    assert caught.value.hint


# Sessions.


@pytest.mark.parametrize("dialect", ["mariadb"])
def test_a_server_that_may_lose_commits_is_refused(store: ReadDatabase) -> None:
    store.query("set global innodb_flush_log_at_trx_commit = 2")
    try:
        with pytest.raises(ReadError, match="innodb_flush_log_at_trx_commit is 2, not 1"):
            Writer(create_engine(store.url), "s").open()
    finally:
        store.query("set global innodb_flush_log_at_trx_commit = 1")


@pytest.mark.parametrize("dialect", ["mariadb"])
def test_limits_that_would_cut_a_transaction_short_are_lifted_for_our_sessions(
    store: ReadDatabase,
) -> None:
    """What they end would be tried again, and ended again, for ever."""
    limits = ("max_statement_time", "idle_transaction_timeout", "idle_write_transaction_timeout")
    names = (*limits, "sql_safe_updates", "completion_type")
    for name in names:
        store.query(f"set global {name} = 1")
    try:
        with create_engine(store.url).connect() as connection:
            ours = [connection.exec_driver_sql(f"select @@{name}").scalar_one() for name in names]
    finally:
        for name in names:
            store.query(f"set global {name} = default")
    assert ours == [0, 0, 0, 0, "NO_CHAIN"]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_sqlite_that_another_process_writes_to_is_tried_again(
    store: ReadDatabase, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(sqlite_session, "_BUSY_SECONDS", 0.05)
    sink = Sink(store, T)
    batch = sink.batch(sink.transaction(*upserts(range(number), a="x")))
    other = sqlite3.connect(store.url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("begin immediate")
    for _ in range(2):
        with pytest.raises(ReadUnavailable, match="SQLITE_BUSY"):
            sink.write(batch)
    other.execute("rollback")
    other.close()
    sink.write(batch)
    assert len(sink.rows()) == number
    assert sink.stored() == sink.lsn
    sink.writer.close()


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_sqlite_is_durable_and_does_not_keep_readers_out(sink: Sink) -> None:
    def pragma(name: str) -> Any:
        with sink.connection.begin():
            return sink.connection.exec_driver_sql(f"pragma {name}").scalar()

    assert [pragma(name) for name in ("journal_mode", "synchronous", "foreign_keys")] == [
        "wal",
        2,
        1,
    ]
    reader = sqlite3.connect(sink.store.url.removeprefix("sqlite:///"), timeout=0)
    sink.write(sink.batch(sink.transaction(*upserts(range(MANY), a="x"), ends=False)))
    assert reader.execute("select count(*) from t").fetchone() == (0,)
    reader.close()

"""Whatever is written, however it is batched and wherever it stops: the mirror equals its source."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from psycopg import sql

from cdc.daemon import Daemon
from tests.conftest import Configuration, Database, examples

Configure = Callable[..., Configuration]

# Schemas.

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
LONG = st.builds(lambda letter, times: letter * times, st.sampled_from("ab\\\té🐘"), st.just(2100))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**31), 2**31 - 1),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=5),
    "float8": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "bytea": st.binary(max_size=5),
    "text": TEXT | LONG,
    "uuid": st.uuids(),
    "date": st.dates(),
    "text[]": st.lists(TEXT | st.none(), max_size=3),
}
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(1, 4),
    "text": st.sampled_from(["", "a", "A", "\\N", "\t", "é'\""]),
    "numeric(4,2)": st.sampled_from([1, 2, 3]),
}
NAMES = ["id", "Id", "select", 'quo"te', "dot.ted", "per%cent", "ünï", "a b", "back\\slash", "{}"]


@dataclass(frozen=True)
class Table:
    """A random table; values are drawn for its columns in their order."""

    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]
    identity: str

    @property
    def quoted(self) -> sql.Identifier:
        return sql.Identifier("public", self.name)

    def statements(self) -> list[sql.Composed]:
        columns = [sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(t)) for n, t in self.columns]
        key = sql.SQL("primary key ({})").format(sql.SQL(", ").join(map(sql.Identifier, self.key)))
        made = sql.SQL("create table {} ({})").format(
            self.quoted, sql.SQL(", ").join([*columns, key])
        )
        wide = [
            sql.SQL("alter table {} alter {} set storage external").format(
                self.quoted, sql.Identifier(name)
            )
            for name, kind in self.columns
            if kind == "text"
        ]
        identity = sql.SQL("alter table {} replica identity {}").format(
            self.quoted, sql.SQL(self.identity)
        )
        return [made, *wide, identity]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=2, max_size=5))
    name, *columns = names
    key = draw(st.lists(st.sampled_from(columns), unique=True, min_size=1, max_size=2))
    kinds = {n: draw(st.sampled_from(sorted(KEYS if n in key else VALUES))) for n in columns}
    identity = draw(st.sampled_from(["default", "full"]))
    return Table(name, tuple(kinds.items()), tuple(key), identity)


# Writes.

Statement = tuple[sql.Composed, list[Any]]


def value(table: Table, column: str) -> st.SearchStrategy[Any]:
    kind = dict(table.columns)[column]
    return KEYS[kind] if column in table.key else VALUES[kind] | st.none()


@st.composite
def statements(draw: st.DrawFn, table: Table) -> Statement:
    kind = draw(
        st.sampled_from(
            ["insert", "insert", "insert", "update", "move", "delete", "all", "truncate"]
        )
    )
    names = [name for name, _ in table.columns]
    others = [name for name in names if name not in table.key]
    where = sql.SQL(" and ").join(sql.SQL("{} = %s").format(sql.Identifier(k)) for k in table.key)
    at = [draw(value(table, k)) for k in table.key]
    if kind == "insert":
        marks = sql.SQL(", ").join([sql.Placeholder()] * len(names))
        listed = sql.SQL(", ").join(map(sql.Identifier, names))
        insert = sql.SQL("insert into {} ({}) values ({}) on conflict do nothing")
        return insert.format(table.quoted, listed, marks), [draw(value(table, n)) for n in names]
    if kind == "delete":
        return sql.SQL("delete from {} where {}").format(table.quoted, where), at
    if kind == "truncate":
        return sql.SQL("truncate {}").format(table.quoted), []
    changed = list(table.key) if kind == "move" or not others else [draw(st.sampled_from(others))]
    assigned = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(c)) for c in changed)
    values = [draw(value(table, c)) for c in changed]
    if kind == "all":
        return sql.SQL("update {} set {}").format(table.quoted, assigned), values
    update = sql.SQL("update {} set {} where {}")
    return update.format(table.quoted, assigned, where), [*values, *at]


@dataclass(frozen=True)
class Run:
    """Transactions, and with what bounds the daemon is run after them, to which of them."""

    transactions: list[list[Statement]]
    batch_changes: int
    stops_after: int


@st.composite
def runs(draw: st.DrawFn, of: tuple[Table, ...]) -> list[Run]:
    one = st.sampled_from(of).flatmap(statements)
    transactions = st.lists(st.lists(one, min_size=1, max_size=6), min_size=1, max_size=6)
    run = st.builds(Run, transactions, st.sampled_from([1, 2, 7, 20_000]), st.integers(0, 6))
    return draw(st.lists(run, min_size=1, max_size=3))


CASES = st.lists(tables(), min_size=1, max_size=2, unique_by=lambda t: t.name).flatmap(
    lambda made: st.tuples(st.just(tuple(made)), runs(tuple(made)))
)


# The daemon.


@pytest.fixture
def _interpreter() -> Iterator[None]:
    """Put back what a daemon in this process changes."""
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)


def commit(write: Database, transaction: list[Statement]) -> None:
    """Commit what of a transaction the server takes."""
    with write.connection.transaction():
        for statement, values in transaction:
            with suppress(psycopg.Error), write.connection.transaction():
                write.connection.execute(statement, values)


def execute(database: Database, *composed: sql.Composed) -> None:
    for statement in composed:
        database.connection.execute(statement)


@pytest.mark.usefixtures("_interpreter")
@settings(
    max_examples=examples(20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(CASES)
def test_a_mirror_equals_its_source(
    write: Database,
    read: Database,
    configuration: Configure,
    plugin: str,
    case: tuple[tuple[Table, ...], list[Run]],
) -> None:
    made, wanted = case
    mirrored = configuration(plugin, mirrors=[{"source": "public.*"}])
    try:
        for table in made:
            execute(write, *table.statements())
        Daemon(mirrored.settings(), until="now").run()
        for run in wanted:
            ends = [commit_all(write, [transaction]) for transaction in run.transactions]
            bounds = {"batch_changes": run.batch_changes, "batch_bytes": 65536}
            until = str(ends[min(run.stops_after, len(ends) - 1)])
            Daemon(mirrored.with_(read=bounds).settings(), until=until).run()
        Daemon(mirrored.settings(), until="now").run()
        for table in made:
            name = table.quoted.as_string()
            note(f"{table}")
            assert read.texts(name.removeprefix('"public".')) == write.texts(name)
    finally:
        for table in made:
            execute(write, sql.SQL("drop table if exists {}").format(table.quoted))
            execute(read, sql.SQL("drop table if exists {}").format(sql.Identifier(table.name)))


def commit_all(write: Database, transactions: list[list[Statement]]) -> Any:
    """Commit transactions; give a position after them."""
    for transaction in transactions:
        commit(write, transaction)
    return write.run()

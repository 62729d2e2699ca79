"""The round trip of every type into MariaDB and SQLite: native where all of it fits, else its text."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Configuration, Database, tells_not_numbers
from tests.integration.test_types import (
    Values,
    carried,
    pinned,
    prepare,
    sql_value,
    write_keys,
)
from tests.matrix import Kind
from tests.read_databases import MariaRead, ReadDatabase, SQLiteRead

Configure = Callable[..., Configuration]
Run = Callable[..., Any]
Convert = Callable[[str], object]

MERGED: Final = 20_000  # changes in a batch: staged, and merged by key
ALONE: Final = 1

# What docs/read-databases.md says of the types that are not stored as their text.
WHOLE: Final = ("smallint", "integer", "bigint", "oid")
DECLARED: Final = {
    "mariadb": {
        "smallint": "smallint",
        "integer": "int",
        "bigint": "bigint",
        "oid": "bigint",
        "boolean": "tinyint",
        "bytea": "longblob",
        "uuid": "char",
        "time without time zone": "time",
    },
    "sqlite": dict.fromkeys(WHOLE, "integer") | {"boolean": "boolean", "bytea": "blob"},
}
TEXT: Final = {"mariadb": "longtext", "sqlite": "text"}
KINDS_PER_TABLE: Final = 40  # InnoDB has no room in a row for columns of all of them
KEY_CHARACTERS: Final = 768  # InnoDB's, as documented: what is longer is refused


def _time(text: str) -> timedelta:
    hours, minutes, seconds = text.split(":")
    whole, _, fraction = seconds.partition(".")
    return timedelta(
        hours=int(hours),
        minutes=int(minutes),
        seconds=int(whole),
        microseconds=int(fraction.ljust(6, "0")),
    )


CONVERTED: Final[dict[str, Convert]] = {
    **dict.fromkeys(WHOLE, int),
    "boolean": {"t": 1, "f": 0}.__getitem__,
    "bytea": lambda text: bytes.fromhex(text.removeprefix("\\x")),
    "time without time zone": _time,
}


def each_way(dialect: str, plugin: str, *more: object) -> Any:
    """Give the parameters of one way through, from a plugin to a dialect."""
    marks = [pytest.mark.wal2json] if plugin == "wal2json" else []
    return pytest.param(dialect, plugin, *more, marks=marks)


@pytest.fixture
def store(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> ReadDatabase:
    if dialect == "mariadb":
        return MariaRead(request.getfixturevalue("mariadb"))
    return SQLiteRead(tmp_path / "read.db")


def stored_type(kind: Kind) -> str:
    """Give a kind's type as the documentation lists it: without a modifier."""
    return re.sub(r"\(\d+(,\d+)?\)", "", kind.column_type)


def as_stored(type_: str, dialect: str, printed: str) -> object:
    """Give what a reader of the read database sees of a printed text."""
    convert = CONVERTED[type_] if type_ in CONVERTED and type_ in DECLARED[dialect] else str
    return convert(printed)


def printed(column: str) -> str:
    """Give an expression for the text that the type's own output function prints."""
    return f"case when {column} is distinct from null then format('%s', {column}) end"


@pytest.mark.parametrize(
    ("dialect", "plugin", "batch_changes"),
    [
        each_way("mariadb", "pgoutput", MERGED),
        each_way("mariadb", "pgoutput", ALONE),
        each_way("mariadb", "wal2json", MERGED),
        each_way("sqlite", "pgoutput", MERGED),
        each_way("sqlite", "pgoutput", ALONE),
        each_way("sqlite", "wal2json", MERGED),
    ],
    indirect=["plugin"],
)
def test_every_type_arrives_as_it_is_documented_to_be_stored(
    write: Database,
    store: ReadDatabase,
    dialect: str,
    plugin: str,
    configuration: Configure,
    cdc_run: Run,
    batch_changes: int,
) -> None:
    values = Values(write, plugin, kinds_per_table=KINDS_PER_TABLE)
    mirrors = [{"source": f"public.{table}"} for table in values.tables]
    read = {"url": store.url, "batch_changes": batch_changes}
    wanted = configuration(plugin, mirrors=mirrors).with_(read=read)
    cdc_run(wanted)
    values.fill()
    cdc_run(wanted)
    pinned(write)
    for table in values.tables:
        assert_as_documented(values, table, store, dialect)
        assert_declared(values, table, store, dialect)


def stored_types(values: Values, table: str) -> dict[str, str]:
    """Give the types of a table's columns as the documentation lists them; arrays are texts."""
    columns = [(n, column) for n in values.tables[table] for column, _ in values.columns(n)]
    return {
        column: "text" if column.startswith("a") else stored_type(values.kinds[number])
        for number, column in columns
    }


def assert_as_documented(values: Values, table: str, store: ReadDatabase, dialect: str) -> None:
    """Compare each column whole, with the rows that are NULL in it."""
    types = stored_types(values, table)
    texts = ", ".join(map(printed, types))
    source = values.write.rows(f"select id, {texts} from public.{table} order by id")
    found = store.query(f"select id, {', '.join(types)} from {table} order by id")
    assert [row[0] for row in found] == [row[0] for row in source]
    for position, (column, type_) in enumerate(types.items(), start=1):
        sent = [row[position] for row in source]
        assert any(text is not None for text in sent), column
        wanted = [None if text is None else as_stored(type_, dialect, text) for text in sent]
        assert [row[position] for row in found] == wanted, (column, type_)


def assert_declared(values: Values, table: str, store: ReadDatabase, dialect: str) -> None:
    declared = declared_types(store, table, dialect)
    for column, type_ in stored_types(values, table).items():
        assert declared[column] == DECLARED[dialect].get(type_, TEXT[dialect]), (column, type_)


def declared_types(store: ReadDatabase, table: str, dialect: str) -> dict[str, str]:
    query = {
        "mariadb": "select column_name, data_type from information_schema.columns "
        f"where table_schema = database() and table_name = '{table}'",
        "sqlite": f"select name, lower(type) from pragma_table_info('{table}')",
    }
    return dict(store.query(query[dialect]))


@pytest.mark.parametrize(
    ("dialect", "plugin"),
    [
        each_way("mariadb", "pgoutput"),
        each_way("sqlite", "pgoutput"),
        each_way("sqlite", "wal2json"),
    ],
    indirect=["plugin"],
)
def test_every_type_that_can_be_a_key_is_one_there(
    write: Database,
    store: ReadDatabase,
    dialect: str,
    plugin: str,
    configuration: Configure,
    cdc_run: Run,
) -> None:
    kinds = [kind for kind in prepare(write) if kind.key]
    for number, kind in enumerate(kinds):
        write.run(f"create table k{number} (k {kind.sql} primary key, n int)")
    wanted = configuration(plugin, mirrors=[{"source": "public.k*"}])
    wanted = wanted.with_(read={"url": store.url})
    not_numbers = tells_not_numbers(write, plugin)
    cdc_run(wanted)
    for number, kind in enumerate(kinds):
        fitting = [v for v in carried(kind, not_numbers=not_numbers) if fits(write, kind, v)]
        write_keys(write, f"k{number}", tuple(fitting), kind.sql)
    for _ in range(2):
        cdc_run(wanted)
        pinned(write)
        for number, kind in enumerate(kinds):
            table = f"k{number}"
            source = write.rows(f"select {printed('k')}, n from public.{table} order by n")
            assert store.query(f"select k, n from {table} order by n") == [
                (as_stored(stored_type(kind), dialect, text), n) for text, n in source
            ], kind.sql
        write.run("set search_path = public", "set lc_monetary = 'C'")
        for number in range(len(kinds)):
            write.run(f"delete from k{number} where n > 0")


def fits(write: Database, kind: Kind, value: str) -> bool:
    """Tell whether a value is short enough for a key of MariaDB's; else it is refused there."""
    size = write.value(f"select length(format('%s', ({sql_value(value)})::{kind.sql}))")
    return bool(size <= KEY_CHARACTERS)

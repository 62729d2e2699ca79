"""Names that need quotes, of everything that has a name, from setup to metrics."""

from collections.abc import Callable
from typing import Any

import pytest

from cdc.names import TableName
from tests.conftest import Configuration, Database

Configure = Callable[..., Configuration]
Run = Callable[..., Any]
NAMES = [
    "Mixed Case",
    "dot.ted",
    'quo"te',
    '"',
    "ünï🐘",
    "select",
    "per%cent %s",
    "back\\slash\\",
    "a,b;c'd",
    "*",
    "[x]?",
    "{}",
    " ",
    "line\nbreak",
]


def quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def equal(write: Database, read: Database, table: str, target: str) -> None:
    assert read.texts(target) == write.texts(table)


@pytest.mark.parametrize("partitioned", [False, True], ids=["plain", "partitioned"])
def test_any_name_of_schema_table_column_and_type(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_run: Run,
    plugin: str,
    partitioned: bool,
) -> None:
    mirrors = []
    for number, name in enumerate(NAMES):
        schema, key, column, kind, domain, table, one, other = (
            quoted(name + suffix) for suffix in ("s", "", "c", "t", "d", "k", "1", "2")
        )
        columns = f"{key} int primary key, {column} {schema}.{kind}, d {schema}.{domain}"
        full = f"{schema}.{table}"
        write.run(
            f"create schema {schema}",
            f"create type {schema}.{kind} as enum ('a', 'b')",
            f"create domain {schema}.{domain} as numeric(5,2)",
            f"create table {full} ({columns})" + f" partition by list ({key})" * partitioned,
        )
        if partitioned:
            write.run(
                f"create table {schema}.{one} partition of {full} for values in (1)",
                f"create table {schema}.{other} partition of {full} default",
            )
        if not set("*?") & set(name):
            mirrors.append({"source": full, "target": f"{number}{name}"})
    mirrors.append({"source": "*.*"})  # the others: outright, their names would be patterns
    wanted = configuration(plugin, mirrors=mirrors)
    cdc_run(wanted)
    for name in NAMES:
        table = f"{quoted(name + 's')}.{quoted(name + 'k')}"
        write.commit(
            f"insert into {table} values (1, 'a', 1.5), (2, null, null), (3, 'a', 7)",
            f"update {table} set d = 2 where {quoted(name)} = 1",
            f"update {table} set {quoted(name)} = 5 where {quoted(name)} = 1",
            f"delete from {table} where {quoted(name)} = 2",
        )
    cdc_run(wanted)
    for number, name in enumerate(NAMES):
        target = quoted(f"{name}k" if set("*?") & set(name) else f"{number}{name}")
        equal(write, read, f"{quoted(name + 's')}.{quoted(name + 'k')}", target)
        assert read.value(f"select count(*) from {target}") == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_as_it_is_printed(name: str) -> None:
    table = TableName(name, f"{name}2")
    assert TableName.parse(f"{quoted(table.schema)}.{quoted(table.table)}") == table
    assert TableName.parse(table.sql) == table
    assert TableName.parse(str(table)) == table

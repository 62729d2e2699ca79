"""A megabyte that an update leaves alone is not sent, and stays as it is in the read database."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Configuration, Database

Configure = Callable[..., Configuration]
Run = Callable[..., Any]
Pair = tuple[Database, Database]

COLUMNS = "id int, big text, more bytea, v int not null"
IDENTITIES = {
    "by_default": ("create table {0} ({1}, primary key (id))",),
    "whole": ("create table {0} ({1}, primary key (id))", "alter table {0} replica identity full"),
    "by_index": (
        "create table {0} ({1}, other int not null default 0)",
        "alter table {0} alter id set not null",
        "create unique index {0}_by_id on {0} (id)",
        "alter table {0} replica identity using index {0}_by_id",
    ),
}
LOOKING = """
import sqlalchemy as sa

from cdc import UNCHANGED, Deleted, Delete, Upsert, projector

metadata = sa.MetaData()


def looking(source):
    table = sa.Table(
        f"{source}_looked",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("big", sa.Text),
        sa.Column("more", sa.LargeBinary),
        sa.Column("v", sa.Integer),
    )

    @projector(f"public.{source}", into=table, name=f"look_{source}")
    def look(change):
        if isinstance(change, Deleted):
            return Delete(table, id=change.key["id"])
        values = {name: change.row[name] for name in ("id", "big", "more", "v")}
        assert all(value is UNCHANGED or isinstance(value, (int, str, bytes, type(None)))
                   for value in values.values())
        return Upsert(table, **values)

    return look


globals().update({name: looking(name) for name in NAMES})
"""
MEGABYTE = "repeat('{}', 1000000)"
BYTES = "decode(repeat('{}', 1000000), 'hex')"


@pytest.fixture
def databases(write: Database, read: Database) -> Pair:
    return write, read


def filled(key: int, v: int = 0) -> str:
    """Insert a row: the first two, and those that a scenario adds, hold a megabyte twice."""
    long = 1_000_000 if key in {1, 2, 20} else 4_000
    values = f"repeat('{key % 10}', {long}), decode(repeat('f{key % 10}', {long}), 'hex'), {v}"
    return f"insert into {{}} (id, big, more, v) values ({key}, {values})"


# What is committed as one transaction each. Rows 1 to 9 are there before.
SCENARIOS = {
    "unchanged": [["update {} set v = 1 where id = 1"]],
    "one of two changed": [[f"update {{}} set big = {MEGABYTE.format('n')} where id = 1"]],
    "null": [["update {} set big = null where id = 1"], ["update {} set v = 2 where id = 1"]],
    "key changed": [["update {} set id = 100 where id = 1"]],
    "key and one of two changed": [["update {} set id = 100, more = '\\x00' where id = 1"]],
    "inserted and updated in one transaction": [[filled(20), "update {} set v = 1 where id = 20"]],
    "inserted and updated in two": [[filled(20)], ["update {} set v = 1 where id = 20"]],
    "updated twice": [["update {} set v = 1 where id = 1"], ["update {} set v = 2 where id = 1"]],
    "each long value once": [
        [f"update {{}} set big = {MEGABYTE.format('n')} where id = 1"],
        [f"update {{}} set more = {BYTES.format('ab')} where id = 1"],
        ["update {} set v = 3 where id = 1"],
    ],
    "null and back": [
        ["update {} set big = null where id = 1"],
        ["update {} set v = 1 where id = 1"],
        [f"update {{}} set big = {MEGABYTE.format('n')} where id = 1"],
        ["update {} set v = 2 where id = 1"],
    ],
    "deleted and inserted": [
        ["update {} set v = 1 where id = 1"],
        ["delete from {} where id = 1"],
        ["insert into {} (id, v) values (1, 5)"],
        ["update {} set v = 6 where id = 1"],
    ],
    "inserted, moved and updated": [
        [filled(20)],
        ["update {} set id = 21 where id = 20"],
        ["update {} set v = 9 where id = 21"],
    ],
    "updated, moved, updated, moved back": [
        ["update {} set v = 1 where id = 1"],
        ["update {} set id = 100 where id = 1"],
        [f"update {{}} set big = {MEGABYTE.format('n')} where id = 100"],
        ["update {} set v = 2 where id = 100", "update {} set id = 1, v = 3 where id = 100"],
        ["update {} set v = 4 where id = 1"],
    ],
    "two rows swap keys": [
        [
            "update {} set id = -1 where id = 1",
            "update {} set id = 1 where id = 2",
            "update {} set id = 2 where id = -1",
        ],
        ["update {} set v = v + 1 where id in (1, 2)"],
    ],
    "moved onto a key that was deleted": [
        ["delete from {} where id = 2"],
        ["update {} set id = 2, v = 7 where id = 1"],
        ["update {} set v = 8 where id = 2"],
    ],
    "many rows": [
        ["update {} set v = v + 1"],
        ["update {} set id = id + 1000, v = v + 1 where id > 3"],
        ["update {} set more = null where id > 5"],
        ["update {} set v = v + 1"],
    ],
    "truncated and inserted": [
        ["update {} set v = 1"],
        ["truncate {}"],
        [filled(1, v=5)],
        ["update {} set v = 6"],
    ],
}


TABLES = {
    f"{identity}_{number}": transactions
    for identity in IDENTITIES
    for number, transactions in enumerate(SCENARIOS.values())
}
ALONE_AND_MERGED = pytest.mark.parametrize("batch_changes", [1, 20_000], ids=["alone", "merged"])


@ALONE_AND_MERGED
def test_a_megabyte_that_is_left_alone_stays(
    databases: Pair, configuration: Configure, cdc_run: Run, plugin: str, batch_changes: int
) -> None:
    write, read = databases
    for table in TABLES:
        statements = IDENTITIES[table.rpartition("_")[0]]
        write.run(*(statement.format(table, COLUMNS) for statement in statements))
        write.run(*(f"alter table {table} alter {c} set storage external" for c in ("big", "more")))
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}], modules=["looking"])
    (wanted.folder / "looking.py").write_text(f"NAMES = {list(TABLES)}\n{LOOKING}")
    wanted = wanted.with_(read={"batch_changes": batch_changes, "batch_bytes": 2**30})
    cdc_run(wanted)
    for table in TABLES:
        write.commit(*(filled(key).format(table) for key in range(1, 10)))
    cdc_run(wanted)
    for table, transactions in TABLES.items():
        for statements in transactions:
            write.commit(*(statement.format(table) for statement in statements))
    cdc_run(wanted)
    assert_equal(write, read)


def assert_equal(write: Database, read: Database) -> None:
    """Compare by digests: a difference of megabytes helps nobody."""
    query = "select id, length(big), md5(big), length(more), md5(more), v from {} order by id"
    names = list(SCENARIOS)
    for table in TABLES:
        name = names[int(table.rpartition("_")[2])]
        source = write.rows(query.format(table))
        assert source
        assert read.rows(query.format(table)) == source, (name, table)
        assert read.rows(query.format(f"{table}_looked")) == source, (name, table)


@ALONE_AND_MERGED
def test_a_toasted_key_is_followed(
    databases: Pair, configuration: Configure, cdc_run: Run, plugin: str, batch_changes: int
) -> None:
    """Of random letters, so that it is stored outside of the row, and short enough for an index."""
    write, read = databases
    keyed = {
        "keyed": ("create table {} (k text primary key, big text, v int)",),
        "keyed_whole": (
            "create table {} (k text primary key, big text, v int)",
            "alter table {} replica identity full",
        ),
        "keyed_by_index": (
            "create table {} (k text not null, big text, v int)",
            "create unique index by_k on {} (k)",
            "alter table {} replica identity using index by_k",
        ),
    }
    for table, statements in keyed.items():
        write.run(*(statement.format(table) for statement in statements))
        write.run(f"alter table {table} alter k set storage external")
    wanted = configuration(plugin, mirrors=[{"source": "public.keyed*"}])
    wanted = wanted.with_(read={"batch_changes": batch_changes})
    cdc_run(wanted)
    key = "(select string_agg(chr(97 + (i * i * {n}) % 23), '') from generate_series(1, 2300) i)"
    big = MEGABYTE.format("b")
    for table in keyed:
        write.run(
            *(f"insert into {table} values ({key.format(n=n)}, {big}, {n})" for n in range(1, 5)),
            f"update {table} set v = v + 10",
            f"update {table} set k = k || 'x' where v = 11",
            f"update {table} set k = 'short', v = 20 where v = 12",
            f"update {table} set v = v + 100, big = null where k = 'short'",
            f"update {table} set k = k || 'y' where v = 11",
            f"delete from {table} where v = 13",
        )
    assert write.value("select pg_column_size(k) from keyed where v = 14") > 2000
    cdc_run(wanted)
    for table in keyed:
        query = f"select md5(k), md5(big), v from {table} order by v"
        assert read.rows(query) == write.rows(query), table
        assert len(read.rows(query)) == 3
        write.run(f"update {table} set v = v + 1", f"delete from {table} where v > 100")
    cdc_run(wanted)
    for table in keyed:
        query = f"select md5(k), md5(big), v from {table} order by v"
        assert read.rows(query) == write.rows(query), table

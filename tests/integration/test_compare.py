"""The comparison finds every row that is missing, extra or different, and tells only its key."""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from cdc import Delete, Inserted, Update, Upsert, projector
from cdc.errors import ProjectionError, ReadError, SourceError
from cdc.names import TableName
from cdc.operate.compare import TableComparison, compare
from cdc.projection.mirror import mirrors
from cdc.projection.projector import Projector
from cdc.projection.registry import Registry
from cdc.settings import MirrorSettings
from cdc.sink.engine import create_engine
from cdc.source.catalog import describe
from cdc.source.connection import connect
from tests.conftest import Database

SOURCE = """
create table kinds (
    id int, region text, primary key (region, id),
    flag boolean, code char(5), address inet, amount numeric, ratio float8, raw bytea,
    at timestamptz, document jsonb, verbatim json, span interval, tags text[],
    doubled int generated always as (id * 2) stored
);
insert into kinds
select n, 'north', n % 2 = 0, 'ab', '10.0.0.1', 1.50, -0.0, '\\xdeadbeef',
       '2024-02-29 10:34:56.123456+00', '{"a": 1}', '{"a" :  1}', '1 day 2 hours',
       array['x', null, 'tab	and \\ backslash']
from generate_series(1, 12) n;
insert into kinds (id, region) values (13, 'south');
create table parted (id int primary key, v text) partition by range (id);
create table parted_low partition of parted for values from (0) to (100);
create table parted_high partition of parted for values from (100) to (200);
insert into parted values (1, 'low'), (150, 'high');
create table logged (line text);
insert into logged values ('a'), ('a');
create table counted (id int primary key, n int);
insert into counted values (1, 10), (2, 20), (3, 30);
create table labels (id int primary key, label text);
insert into labels values (1, 'one'), (2, 'two'), (3, 'three'), (4, 'no such row');
"""

METADATA = sa.MetaData()
COUNTED = sa.Table(
    "counted_read",
    METADATA,
    sa.Column("id", sa.Integer, key="attribute", primary_key=True, autoincrement=False),
    sa.Column("n", sa.Numeric(10, 2)),
    sa.Column("even", sa.Boolean),
    sa.Column("label", sa.String),
    sa.Column("seen_at", sa.DateTime, server_default=sa.func.now()),
    sa.Column("twice", sa.Numeric, sa.Computed("n * 2", persisted=True)),
)


@projector("public.counted", into=COUNTED, on_truncate=lambda _: None)
def counted(change):
    row = change.row
    yield Upsert(COUNTED, attribute=row["id"], n=row["n"], even=row["n"] % 20 == 0)
    if row["id"] == 3:
        yield Delete(COUNTED, attribute=3)


@projector("public.labels", into=COUNTED, on_truncate=lambda _: None)
def labelled(change):
    yield Update(COUNTED, attribute=change.row["id"], label=change.row["label"])


@pytest.fixture
def write(write: Database) -> Database:
    write.run(*SOURCE.split(";\n"))
    return write


Compared = Callable[..., dict[str, TableComparison]]


@contextmanager
def _comparing(write: Database, read: Database, projectors: list[Projector]) -> Iterator[Compared]:
    """Make the read tables of the projectors and give a function that compares them."""
    registry = Registry(projectors)
    engine = create_engine(read.url)
    with connect(write.dsn) as source, engine.connect() as reading:
        for table in registry.read_tables:
            table.create(reading)
        reading.commit()
        schema = describe(source, registry.sources)
        yield lambda **options: {
            found.table: found
            for found in compare(registry, schema, source=source, read=reading, **options)
        }


def _mirrors(write: Database, **settings: Any) -> list[Projector]:
    mirror = MirrorSettings(**settings)
    with connect(write.dsn) as source:
        schema = describe(source, [TableName.parse(mirror.source)])
        return list(mirrors([mirror], schema, hash_key=b""))


def _carry(write: Database, read: Database, table: str, columns: str, where: str = "true") -> None:
    """Copy rows as Postgres itself does, from the write to the read database."""
    selected = f"copy (select {columns} from {table} where {where}) to stdout"
    with write.connection.cursor().copy(selected) as out:
        rows = list(out)
    with read.connection.cursor().copy(f"copy {table} ({columns}) from stdin") as into:
        for row in rows:
            into.write(row)


KINDS = "id, region, flag, code, address, amount, ratio, raw, at, document, verbatim, span, tags"


def test_values_of_every_kind_compare_equal_to_their_copies(write, read):
    with _comparing(write, read, _mirrors(write, source="public.kinds")) as compared:
        _carry(write, read, "kinds", KINDS)
        found = compared()["kinds"]
    assert found.equal
    assert found == TableComparison("kinds", ("id", "region"), rows=13)


def test_rows_missing_extra_and_different_are_counted_and_named_by_key(write, read):
    with _comparing(write, read, _mirrors(write, source="public.kinds")) as compared:
        _carry(write, read, "kinds", KINDS, where="id not in (2, 10)")
        read.run("update kinds set flag = not flag where id = 4")
        read.run("update kinds set amount = 1.5 where id = 5")
        read.run("update kinds set code = null where id = 6")
        read.run("update kinds set verbatim = '{\"a\":1}' where id = 7")
        read.run("insert into kinds (region, id) values ('east', 1)")
        found = compared()["kinds"]
    assert not found.equal
    assert (found.rows, found.missing, found.extra, found.different) == (14, 2, 1, 4)
    assert found.keys == {
        "missing": (("2", "north"), ("10", "north")),
        "extra": (("1", "east"),),
        "different": (("4", "north"), ("5", "north"), ("6", "north"), ("7", "north")),
    }


def test_only_so_many_keys_are_named_and_all_are_counted(write, read):
    with _comparing(write, read, _mirrors(write, source="public.kinds")) as compared:
        found = compared(keys=3)["kinds"]
    assert found.missing == 13
    assert found.keys == {"missing": (("1", "north"), ("2", "north"), ("3", "north"))}


def test_a_partitioned_table_is_read_through_its_root(write, read):
    with _comparing(write, read, _mirrors(write, source="public.parted")) as compared:
        _carry(write, read, "parted", "id, v")
        assert compared() == {"parted": TableComparison("parted", ("id",), rows=2)}


def test_masked_and_renamed_columns_are_compared_as_the_mirror_writes_them(write, read):
    settings = {
        "source": "public.parted",
        "target": "masked",
        "rename": {"id": "number"},
        "mask": {"v": "hash"},
    }
    with _comparing(write, read, _mirrors(write, **settings)) as compared:
        digest = hmac.new(b"", b"low", hashlib.sha256).hexdigest()
        read.run(f"insert into masked values (1, '{digest}'), (150, 'high')")
        assert compared()["masked"].keys == {"different": (("150",),)}


def test_an_insert_only_table_is_skipped_and_says_why(write, read):
    settings = {"source": "public.logged", "insert_only": True}
    with _comparing(write, read, _mirrors(write, **settings)) as compared:
        found = compared()["logged"]
    assert found.skipped == "insert-only: it has no key"
    assert found.equal


def test_what_projectors_compute_is_compared_in_the_read_tables_types(write, read):
    with _comparing(write, read, [counted]) as compared:
        read.run(
            "insert into counted_read (id, n, even, seen_at) values "
            "(1, 10, false, '2001-01-01'), (2, 20.00, true, null)"
        )
        assert compared() == {"counted_read": TableComparison("counted_read", ("id",), rows=2)}


def test_updates_of_rows_that_another_source_table_brings_are_applied_after_them(write, read):
    with _comparing(write, read, [labelled, counted]) as compared:
        read.run(
            "insert into counted_read (id, n, even, label) values "
            "(1, 10, false, 'one'), (2, 20, true, 'wrong')"
        )
        found = compared()["counted_read"]
    assert (found.rows, found.keys) == (2, {"different": (("2",),)})


def test_comparing_leaves_nothing_in_either_database_and_can_be_done_again(write, read):
    with _comparing(write, read, _mirrors(write, source="public.kinds")) as compared:
        _carry(write, read, "kinds", KINDS, where="id <> 3")
        assert compared() == compared()
    tables = "select count(*) from pg_class where relname like 'cdc%'"
    assert read.value(tables) == 0
    assert read.value("select count(*) from kinds") == 12


def test_a_projector_that_fails_is_named_with_the_key_and_without_values(write, read):
    @projector("public.labels", into=COUNTED)
    def failing(change: Inserted):
        raise ValueError(f"secret {change.row['label']}")

    with _comparing(write, read, [failing]) as compared, pytest.raises(ProjectionError) as raised:
        compared()
    assert str(raised.value) == (
        "projector failing failed on inserted public.labels (id='1'): ValueError"
    )


def test_errors_tell_which_database_they_are_of(write, read):
    with _comparing(write, read, _mirrors(write, source="public.parted")) as compared:
        read.run("drop table parted")
        with pytest.raises(ReadError, match="read database"):
            compared()
        read.run("create table parted (id int primary key, v text)")
        write.run("alter table parted rename to gone")
        with pytest.raises(SourceError, match="write database"):
            compared()

"""The write database's catalog: tables, keys, types."""

from collections.abc import Callable, Iterator

import pytest

from cdc.names import TableName
from cdc.schema import Schema, SourceTable
from cdc.source.catalog import describe
from cdc.source.connection import connect
from tests.conftest import Database

Describe = Callable[..., Schema]


@pytest.fixture
def described(write: Database) -> Iterator[Describe]:
    source = connect(write.dsn)
    yield lambda *names: describe(source, [TableName.parse(name) for name in names])
    source.close()


def one(described: Describe, name: str) -> SourceTable:
    (table,) = described(name).values()
    return table


def test_only_wanted_tables_that_exist_are_described(write: Database, described: Describe) -> None:
    write.run(
        "create schema app", "create table a ()", "create table app.a ()", "create table b ()"
    )
    found = described("public.a", "app.a", "app.nothing", "nothing.a")
    assert set(found) == {TableName("public", "a"), TableName("app", "a")}
    assert described() == {}


def test_a_pattern_covers_tables_but_no_partitions_views_or_catalogs(
    write: Database, described: Describe
) -> None:
    write.run(
        "create table a (id int)",
        "create unlogged table u (id int)",
        "create view v as select 1",
        "create materialized view m as select 1",
        "create table p (id int) partition by range (id)",
        "create table p1 partition of p for values from (0) to (1)",
    )
    write.connection.execute("create temporary table temporary (id int)")
    assert {name.table for name in described("*.*")} == {"a", "p"}
    assert {name.table for name in described("public.?")} == {"a", "p"}
    assert {name.table for name in described("public.*", "public.p1")} == {"a", "p", "p1"}


@pytest.mark.parametrize(
    ("statements", "key", "identity"),
    [
        (["create table t (b int, a int, c int, primary key (a, b))"], ("a", "b"), "default"),
        (["create table t (a int, b int)"], (), "default"),
        (["create table t (a int unique not null)"], (), "default"),
        (["create table t (a int primary key deferrable)"], (), "default"),
        (
            ["create table t (a int primary key)", "alter table t replica identity full"],
            ("a",),
            "full",
        ),
        (["create table t (a int)", "alter table t replica identity full"], (), "full"),
        (
            ["create table t (a int primary key)", "alter table t replica identity nothing"],
            (),
            "nothing",
        ),
        (
            [
                "create table t (a int primary key, b int not null, c int not null, d int)",
                "create unique index i on t (c, b) include (d)",
                "alter table t replica identity using index i",
            ],
            ("c", "b"),
            "index",
        ),
        (
            [
                "create table t (a int primary key, b int not null)",
                "create unique index i on t (b)",
                "alter table t replica identity using index i",
                "drop index i",
            ],
            (),
            "index",
        ),
        (["create table t (a int, b int, primary key (a) include (b))"], ("a",), "default"),
        (
            [
                "create table t (x int, b int, a int, primary key (a, b))",
                "alter table t drop column x",
                "alter table t rename a to z",
            ],
            ("z", "b"),
            "default",
        ),
    ],
)
def test_the_key_is_that_of_the_replica_identity(
    write: Database, described: Describe, statements: list[str], key: tuple[str, ...], identity: str
) -> None:
    write.run(*statements)
    table = one(described, "t")
    assert (table.key, table.identity) == (key, identity)


def test_columns_are_told_in_order_without_those_that_were_dropped(
    write: Database, described: Describe
) -> None:
    write.run(
        'create table t (id int, gone int, "V 1" text, g int generated always as (id * 2) stored)',
        "alter table t drop column gone",
        "alter table t add column later numeric(10,2)",
    )
    columns = one(described, "t").columns
    assert [(c.name, c.stored_as, c.generated) for c in columns] == [
        ("id", "integer", False),
        ("V 1", "text", False),
        ("g", "integer", True),
        ("later", "numeric(10,2)", False),
    ]


def test_types_of_users_own_are_decoded_and_stored_as_types_everybody_has(
    write: Database, described: Describe
) -> None:
    write.run(
        "create schema app",
        "create type app.mood as enum ('a')",
        "create domain price as numeric(10,2)",
        "create domain small_price as price check (value < 9)",
        "create domain moody as app.mood",
        "create domain numbers as int[]",
        "create type pair as (a int, b text)",
        "create type span as range (subtype = float8)",
        "create table t (a app.mood, b app.mood[], c price, d small_price, e price[], f moody, "
        "g numbers, h pair, i pair[], j span, k moody[], l small_price[], m app.mood[][])",
    )
    found = {c.name: (c.decoded_as, c.stored_as) for c in one(described, "t").columns}
    text, text_array, numeric, numerics = 25, 1009, 1700, 1231
    assert found["a"] == (text, "text")
    assert found["b"] == found["m"] == (text_array, "text[]")
    assert found["c"] == found["d"] == (numeric, "numeric(10,2)")
    assert found["e"][0] == numerics
    assert found["f"] == (text, "text")
    assert found["g"] == (1007, "integer[]")
    assert found["h"] == found["j"] == (text, "text")
    for name in "iekl":
        # Whatever it is stored as must exist everywhere and take the text as it is.
        stored_as = found[name][1]
        write.run(f"create table stored_{name} (x {stored_as})")
        assert "mood" not in stored_as
        assert "price" not in stored_as


def test_a_partitioned_table_knows_its_leaves(write: Database, described: Describe) -> None:
    write.run(
        "create schema app",
        "create table p (id int primary key) partition by range (id)",
        "create table p1 partition of p for values from (0) to (10)",
        "create table app.p2 partition of p for values from (10) to (20) partition by range (id)",
        'create table app."p 2a" partition of app.p2 default',
        "create table empty (id int primary key) partition by range (id)",
    )
    found = described("public.*")
    table = found[TableName("public", "p")]
    assert table.partitioned
    assert set(table.leaves) == {TableName("public", "p1"), TableName("app", "p 2a")}
    assert table.key == ("id",)
    assert found[TableName("public", "empty")].leaves == ()


@pytest.mark.parametrize(
    "name", ["Mixed Case", "dot.ted", 'quo"te', "per%cent", "it's", "[a]", "ß"]
)
def test_any_name_is_found(write: Database, described: Describe, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    write.run(
        f"create schema {quoted}", f"create table {quoted}.{quoted} ({quoted} int primary key)"
    )
    table = one(described, str(TableName(name, name)))
    assert table.name == (name, name)
    assert table.key == (name,)
    assert one(described, str(TableName(name, "*"))).name == (name, name)

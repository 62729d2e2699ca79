"""Chunks hold every row of a table, in its key's order, as a snapshot saw them."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cdc import lines
from cdc.copy_state import Key
from cdc.errors import CatalogOutdated, SourceRefused, SourceUnavailable
from cdc.names import TableName
from cdc.source.catalog import describe
from cdc.source.chunks import ChunkReader, ChunkSize, Page
from cdc.source.connection import Connection, connect
from cdc.source.relations import Relations
from tests.conftest import Database, until

Values = tuple[Any, ...]


@contextmanager
def reading(write: Database, name: str, *, dsn: str | None = None) -> Iterator[ChunkReader]:
    table_name = TableName.parse(name)
    with closing(connect(write.dsn)) as connection:
        schema = describe(connection, [table_name])
    relation = Relations(schema).known(table_name)
    with closing(
        ChunkReader(lambda: connect(dsn or write.dsn), schema[table_name], relation)
    ) as reader:
        yield reader


def pages(reader: ChunkReader, rows: int) -> list[Page]:
    """Read a table to its end, each page in a transaction of its own."""
    found: list[Page] = []
    while not found or not found[-1].ends:
        reader.begin()
        found.append(reader.read(after=found[-1].last if found else None, rows=rows))
        reader.mark()
    return found


def values(*read: Page) -> list[Values]:
    rows = [row for page in read for row in lines.decode(page.text)]
    assert len(rows) == sum(page.count for page in read)
    return rows


def in_order(write: Database, table: str, columns: str, order: str) -> list[Values]:
    """Give a table's rows as COPY prints them."""
    query = f"copy (select {columns} from {table} order by {order}) to stdout"
    with closing(connect(write.dsn)) as connection, connection.cursor() as cursor:
        with cursor.copy(query.encode()) as copy:
            return list(copy.rows())


SOME = "generate_series(1, 23) n"
KEYS = {
    "bigint": f"select n * 1000000007::bigint from {SOME}",
    "smallint": f"select 12 - n from {SOME}",
    "text": "select unnest(array['b', 'A', 'a', 'B', '', 'é', 'e', 'f', E'a\\tb', E'a\\nb', '%', "
    "'\\', '''', '\"', 'a b', 'a-b', 'ab', E'\\x01', '%s', '{}', '\\.'])",
    'text collate "C"': "select unnest(array['b', 'A', 'a', 'B', '', 'é', 'e', 'f', 'Z'])",
    "varchar(3)": f"select 'v' || n from {SOME}",
    "char(5)": f"select 'c' || n from {SOME}",
    '"char"': "select unnest(array['a', 'b', 'Z', '1'])::\"char\"",
    "name": f"select 'n' || n from {SOME}",
    "uuid": f"select md5(n::text)::uuid from {SOME}",
    "numeric": "select unnest(array['NaN', '-Infinity', 'Infinity', '1.50', '1.5000001', '-2', "
    "'1e300', '0.00', '123456789012345678901234567890.5']::numeric[])",
    "numeric(10, 2)": f"select n / 7.0 from {SOME}",
    "float8": "select unnest(array['NaN', '-Infinity', '0.1', '0.30000000000000004', '1e-300', "
    "'-5', '0.3']::float8[])",
    "timestamptz": "select unnest(array['infinity', '-infinity', '0044-03-15 BC', '2026-01-01 "
    "00:00:00.000001+00', '2026-01-01 00:00:00+02', '294276-01-01']::timestamptz[])",
    "date": f"select date '2024-02-29' + n from {SOME}",
    "interval": "select unnest(array['1 mon', '29 days', '-1 day', '31 days 00:00:01']::interval[])",
    "bytea": "select unnest(array['\\x', '\\x00', '\\x01', '\\x5c', '\\xff00', '\\xff']::bytea[])",
    "bit(5)": "select n::bit(5) from generate_series(0, 31) n",
    "bit varying(9)": "select unnest(array['0', '1', '00', '01', '10101']::varbit[])",
    "inet": f"select inet '10.0.0.0/24' + n * 3 from {SOME}",
    "boolean": "select unnest(array[true, false])",
    "int4range": f"select int4range(n, n + 2) from {SOME}",
    "int[]": f"select array[n % 3, n] from {SOME}",
    "text[]": "select unnest(array['{a,b}', '{a}', '{\"a b\"}', '{\"\"}', '{\"\\\"\"}'])::text[]",
    "jsonb": "select unnest(array['1', '\"a\"', '{\"a\": 1}', '[]', 'true']::jsonb[])",
    "mood": "select unnest(enum_range(null::mood))",
    "email": f"select 'E' || n from {SOME}",
    "feeling": "select unnest(enum_range(null::mood))",
    "pair": f"select row(n % 4, 'x' || n)::pair from {SOME}",
}
TYPES = (
    "create type mood as enum ('sad', 'ok', 'Happy one', 'angry')",
    "create domain email as varchar(20) collate \"C\" check (value <> 'x')",
    "create domain feeling as mood",
    "create type pair as (a int, b text)",
)


@pytest.mark.parametrize("key", KEYS)
def test_a_table_is_read_whole_and_in_order_whatever_its_key(write: Database, key: str) -> None:
    write.run(
        *TYPES,
        f"create table kept (k {key} primary key, v text)",
        f"insert into kept select k, 'v' || row_number() over () from ({KEYS[key]}) q(k)",
    )
    expected = in_order(write, "kept", "k, v", "k")
    with reading(write, "kept") as reader:
        assert values(*pages(reader, 4)) == expected
        assert values(*pages(reader, len(expected))) == expected
        reader.begin()
        everything = [(str(k),) for k, _ in expected]
        assert sorted(values(reader.read_keys(everything[1::2]))) == sorted(expected[1::2])
        assert reader.last_key() == everything[-1]
        upto = reader.read(after=everything[0], rows=100, bound=everything[-2])
        assert (values(upto), upto.ends) == (expected[1:-1], True)


def test_composite_keys_are_read_in_the_order_of_their_index(write: Database) -> None:
    write.run(
        *TYPES,
        "create table kept (v text, at timestamptz, m mood, id uuid, primary key (m, at, id))",
        "insert into kept select 'v' || n, timestamptz '2026-01-01' + n % 3 * interval '1 hour', "
        "(enum_range(null::mood))[1 + n % 4], md5(n::text)::uuid from generate_series(1, 100) n",
    )
    expected = in_order(write, "kept", "v, at, m, id", "m, at, id")
    with reading(write, "kept") as reader:
        found = pages(reader, 7)
        assert values(*found) == expected
        assert [page.count for page in found] == [7] * 14 + [2]
        assert found[0].last == tuple(expected[6][n] for n in (2, 1, 3))
        assert found[0].last is not None
        reader.begin()
        keys: list[Key] = [(m, at, i) for _, at, m, i in expected[3:6]]
        assert sorted(values(reader.read_keys([*keys, keys[0]]))) == sorted(expected[3:6])
        assert reader.read_keys([]).count == 0
        assert reader.last_key() == tuple(expected[-1][n] for n in (2, 1, 3))
        assert values(reader.read(after=keys[0], rows=100, bound=keys[2])) == expected[4:6]


def test_a_key_may_be_of_an_extensions_type(write: Database) -> None:
    if not write.rows("select 1 from pg_available_extensions where name = 'citext'"):
        pytest.skip("needs the extension citext, which is not here")
    write.run(
        'create schema "ext"',
        "create extension citext schema ext",
        "create table kept (k ext.citext, n int, primary key (k, n))",
        "insert into kept select k, n from unnest(array['b', 'A', 'C', 'd', 'E', 'f']) k, "
        "generate_series(1, 5) n",
    )
    expected = in_order(write, "kept", "k, n", "k, n")
    with reading(write, "kept") as reader:
        assert values(*pages(reader, 4)) == expected
        assert not reader.ordered
        reader.begin()
        assert sorted(values(reader.read_keys([("a", "2"), ("A", "2")]))) == [("A", "2")]
        assert reader.last_key() == expected[-1]
        upto = reader.read(after=("A", "4"), rows=100, bound=("e", "2"))
        assert values(upto) == expected[4:22]


@pytest.mark.parametrize(
    "index", ["a desc, b desc", "a desc, b", "a text_pattern_ops, b", 'a collate "POSIX" desc, b']
)
def test_the_index_of_the_replica_identity_decides_the_order(write: Database, index: str) -> None:
    write.run(
        "create table kept (a text not null, b int not null, v text)",
        f"create unique index kept_key on kept ({index})",
        "alter table kept replica identity using index kept_key",
        "insert into kept select chr(65 + n % 5) || chr(97 + n % 3), n, 'v' "
        "from generate_series(1, 50) n",
    )
    with reading(write, "kept") as reader:
        read = values(*pages(reader, 7))
    assert sorted(read) == sorted(write.texts("kept"))
    assert len(set(read)) == 50


def test_names_that_need_quotes_are_quoted(write: Database) -> None:
    write.run(
        'create schema "a ""schema"" %s"',
        'create table "a ""schema"" %s"."Tab.le {}" ("select" int, "k %% {}" text, "v""" text, '
        'primary key ("k %% {}", "select"))',
        'insert into "a ""schema"" %s"."Tab.le {}" select n, n::text, null '
        "from generate_series(1, 9) n",
    )
    with reading(write, '"a ""schema"" %s"."Tab.le {}"') as reader:
        assert values(*pages(reader, 4)) == [(str(n), str(n), None) for n in range(1, 10)]
        assert reader.estimate() > 0
        reader.begin()
        assert reader.read_keys([("3", "3")]).count == 1
        assert [count for _, count in reader.read_all(2**20)] == [9]


def test_generated_columns_are_left_out_and_children_that_inherit_too(write: Database) -> None:
    write.run(
        "create table kept (id int primary key, twice int generated always as (id * 2) stored, "
        "v text)",
        "create table child () inherits (kept)",
        "insert into kept values (1, default, 'a'), (2, default, 'b')",
        "insert into child values (3, default, 'c')",
    )
    with reading(write, "kept") as reader:
        assert values(*pages(reader, 10)) == [("1", "a"), ("2", "b")]


def test_values_are_printed_as_the_stream_prints_them(write: Database) -> None:
    write.run(
        "create table kept (id int primary key, t regclass, c char(4), b boolean, e text)",
        "insert into kept values (1, 'public.kept', 'x', true, ''), (2, null, null, null, null)",
    )
    with reading(write, "kept") as reader:
        assert values(*pages(reader, 10)) == [
            ("1", "public.kept", "x   ", "t", ""),
            ("2", None, None, None, None),
        ]


PARTED = (
    "create table kept (region text, id int, v text, primary key (region, id)) partition by {}",
    "create table one partition of kept {}",
    "create table two partition of kept {}",
    "create table three (v text, id int not null, region text not null)",
    "alter table kept attach partition three {}",
    "insert into kept select (array['a', 'b', 'c'])[1 + n % 3], n, 'v' "
    "from generate_series(1, 60) n",
)
BOUNDS = {
    "hash (id)": [f"for values with (modulus 3, remainder {n})" for n in range(3)],
    "list (region)": ["for values in ('b')", "for values in ('c')", "default"],
    "range (id)": [
        "for values from (30) to (50)", "for values from (0) to (30)", "default"
    ],
}  # fmt: skip


@pytest.mark.parametrize("strategy", BOUNDS)
def test_a_partitioned_table_is_read_as_one(write: Database, strategy: str) -> None:
    one, two, three = BOUNDS[strategy]
    fillings = [strategy, one, two, "", three, ""]
    write.run(*(text.format(with_) for text, with_ in zip(PARTED, fillings, strict=True)))
    expected = in_order(write, "kept", "region, id, v", "region, id")
    plans: list[str] = []
    with reading(write, "kept") as reader:
        explained(reader, plans)
        assert values(*pages(reader, 7)) == expected
        until_index_alone(plans)
        reader.begin()
        assert reader.read_keys([("a", "3"), ("c", "5"), ("a", "5")]).count == 2
        until_index_alone(plans)
        assert sum(count for _, count in reader.read_all(64)) == 60


def explained(reader: ChunkReader, plans: list[str]) -> None:
    """Have the server tell the plans of what the reader asks for from now on."""
    open_ = reader._open

    def opened() -> Connection:
        connection = open_()
        connection.execute("load 'auto_explain'")
        for setting in ("log_min_duration = 0", "log_format = json"):
            connection.execute(f"set auto_explain.{setting}".encode())
        connection.execute("set client_min_messages = log")
        connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        return connection

    reader._open = opened


def until_index_alone(plans: list[str]) -> None:
    """Hold where every plan that reads the table goes by an index, and sorts nothing."""
    trees = [json.loads(text.split("plan:\n", 1)[1]) for text in plans if "plan:\n" in text]
    plans.clear()
    mine = [tree["Plan"] for tree in trees if tree["Query Text"].startswith("copy")]
    assert mine
    for plan in mine:
        types = list(node_types(plan))
        assert {"Index Scan", "Index Only Scan"} & set(types), types
        assert not {"Seq Scan", "Bitmap Heap Scan", "Incremental Sort"} & set(types), types


def node_types(plan: dict[str, Any]) -> Iterator[str]:
    yield plan["Node Type"]
    for child in plan.get("Plans", ()):
        yield from node_types(child)


@pytest.mark.parametrize("statistics", ["none", "stale", "fresh"])
@pytest.mark.parametrize("key", ["bigint", "text"])
def test_rows_are_found_by_the_index_whatever_the_statistics(
    write: Database, statistics: str, key: str
) -> None:
    write.run(f"create table kept (k {key}, n int, v text, primary key (k, n))")
    if statistics == "stale":
        write.run("vacuum analyze kept")  # as of when it was empty
    write.run("insert into kept select n % 10, n, 'v' from generate_series(1, 2000) n")
    write.run("create index on kept (n)", "create index on kept (k)")
    if statistics == "fresh":
        write.run("vacuum analyze kept")
    plans: list[str] = []
    with reading(write, "kept") as reader:
        explained(reader, plans)
        assert len(values(*pages(reader, 300))) == 2000
        reader.begin()
        assert reader.read_keys([(str(n % 10), str(n)) for n in range(1, 500)]).count == 499
    until_index_alone(plans)


def test_a_page_is_as_its_snapshot_saw_the_table(write: Database) -> None:
    write.run(
        "create table kept (id int primary key, v text)",
        "insert into kept select n, 'before' from generate_series(1, 10) n",
    )
    with reading(write, "kept") as reader:
        snapshot = reader.begin()
        with write.connection.transaction():
            xid = int(write.value("select pg_current_xact_id()::text")) & 0xFFFFFFFF
            write.connection.execute("update kept set v = 'after'")
            write.connection.execute("delete from kept where id = 5")
            write.connection.execute("insert into kept values (11, 'after')")
        page = reader.read(after=("3",), rows=4)
        rest = reader.read(after=page.last, rows=10)
        watermark = reader.mark()
        assert values(page, rest) == [(str(n), "before") for n in range(4, 11)]
        assert (page.last, page.ends, rest.last, rest.ends) == (("7",), False, ("10",), True)
        assert not snapshot.sees(xid)
        assert watermark <= write.run()
        assert reader.begin().sees(xid)
        assert values(reader.read(after=("10",), rows=10)) == [("11", "after")]


def test_a_table_that_is_rewritten_meanwhile_is_never_seen_empty(write: Database) -> None:
    write.run(
        "create table kept (id int primary key, v text)",
        "insert into kept select n, 'v' from generate_series(1, 10) n",
    )
    with reading(write, "kept") as reader:
        reader.begin()
        with write.connect() as altering:
            altering.execute("set lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                altering.execute("alter table kept alter id type int using id + 0")
        assert reader.read(after=None, rows=100).count == 10
        reader.rollback()
        write.run("alter table kept alter id type int using id + 0")
        reader.begin()
        assert reader.read(after=None, rows=100).count == 10


def test_an_empty_table_ends_at_once(write: Database) -> None:
    write.run("create table kept (id int primary key)")
    with reading(write, "kept") as reader:
        assert reader.estimate() == 0
        assert pages(reader, 10) == [Page(b"", 0, None, ends=True)]


def test_a_table_without_a_key_is_read_in_pieces(write: Database) -> None:
    write.run(
        "create table kept (v text)",
        "insert into kept select case when n % 3 > 0 then E'line\\n' || n end "
        "from generate_series(1, 1000) n",
    )
    with reading(write, "kept") as reader:
        reader.begin()
        pieces = list(reader.read_all(1000))
        reader.mark()
        assert not reader.ordered
    assert len(pieces) > 3
    assert all(len(text) < 1100 for text, _ in pieces)
    read = [row for text, _ in pieces for row in lines.decode(text)]
    assert sum(count for _, count in pieces) == 1000
    assert sorted(read, key=repr) == write.texts("kept")


def test_the_rows_are_estimated_as_the_planner_does(write: Database) -> None:
    one, two, three = BOUNDS["hash (id)"]
    fillings = ["hash (id)", one, two, "", three, ""]
    write.run(*(text.format(with_) for text, with_ in zip(PARTED, fillings, strict=True)))
    write.run(
        "create table plain (id int primary key)",
        "insert into plain select generate_series(1, 5000)",
        "analyze plain",
        "analyze kept",
    )
    with reading(write, "kept") as parted, reading(write, "plain") as plain:
        assert parted.estimate() == 60
        assert plain.estimate() == 5000


@pytest.mark.parametrize(
    "change",
    [
        "drop table kept",
        "alter table kept drop column v",
        "alter table kept rename v to w",
        "alter table kept rename to other",
        "alter table kept alter k type text using 'a' || k",
        "alter table kept alter v type varchar(3)",
        "alter table kept drop constraint kept_pkey",
    ],
)
def test_a_table_that_changed_has_the_catalog_read_again(write: Database, change: str) -> None:
    write.run(
        "create table kept (k int primary key, v text)", "insert into kept values (1), (2), (3)"
    )
    with reading(write, "kept") as reader:
        write.run(change)
        with pytest.raises(CatalogOutdated, match="kept"):
            pages(reader, 2)


@pytest.mark.parametrize("change", ["alter table kept drop column v", "drop table kept"])
def test_a_table_may_change_between_two_chunks(write: Database, change: str) -> None:
    write.run(
        "create table kept (k int primary key, v text)", "insert into kept values (1), (2), (3)"
    )
    with reading(write, "kept") as reader:
        reader.begin()
        assert reader.read(after=None, rows=2).last == ("2",)
        reader.mark()
        write.run(change)
        with pytest.raises(CatalogOutdated, match="kept"):
            reader.begin()


def test_what_the_role_may_not_read_is_named_with_the_remedy(write: Database) -> None:
    write.run(
        "create schema hidden",
        "create table hidden.kept (id int primary key)",
        "insert into hidden.kept values (1)",
        f'create role "{write.name}-role" login',
    )
    dsn = psycopg.conninfo.make_conninfo(write.dsn, user=f"{write.name}-role")
    try:
        with reading(write, "hidden.kept", dsn=dsn) as reader, refused() as hint:
            reader.begin()
        write.run(*hint[0].split("; "))
        with reading(write, "hidden.kept", dsn=dsn) as reader:
            assert pages(reader, 10)[0].count == 1
        write.run("alter table hidden.kept enable row level security")
        with reading(write, "hidden.kept", dsn=dsn) as reader, refused() as hint:
            pages(reader, 10)
        write.run(*hint[0].split("; "))
        with reading(write, "hidden.kept", dsn=dsn) as reader:
            assert pages(reader, 10)[0].count == 1
    finally:
        write.run(f'drop owned by "{write.name}-role"', f'drop role "{write.name}-role"')


@contextmanager
def refused() -> Iterator[list[str]]:
    hints: list[str] = []
    with pytest.raises(SourceRefused, match=r"hidden\.kept") as caught:
        yield hints
    hints.append(caught.value.hint or "")


def test_a_read_is_cancelled_from_another_thread(write: Database) -> None:
    write.run(
        "create table kept (id int primary key)",
        "insert into kept select generate_series(1, 100000)",
    )
    with reading(write, "kept") as reader:
        reader.begin()
        pieces = reader.read_all(10)
        next(pieces)
        reader.cancel()
        with pytest.raises(SourceUnavailable):
            list(pieces)
        reader.close()
        reader.cancel()
        gone = sql.SQL(
            "select not exists (select from pg_stat_activity where state = 'active' "
            "and datname = current_database() and pid <> pg_backend_pid())"
        )
        until(lambda: write.connection.execute(gone).fetchone() == (True,))


def test_a_page_of_wide_rows_is_cut_off(write: Database) -> None:
    """How wide rows are is not known before they are read: memory would have to hold them all."""
    write.run(
        "create table t (id int primary key, v text)",
        "insert into t select n, repeat(md5(n::text), 3000) from generate_series(1, 50) n",
    )
    found: list[Page] = []
    after = None
    with reading(write, "public.t") as reader:
        while not found or not found[-1].ends:
            reader.begin()
            found.append(reader.read(after=after, rows=1000, most_bytes=1_000_000))
            assert reader.mark()
            after = found[-1].last or after
    assert [page.count for page in found] == [11, 11, 11, 11, 6]


def test_the_next_chunk_follows_the_width_of_the_rows() -> None:
    size = ChunkSize(2**20)
    size.learn(Page(b"x" * 200_000, 1000, None, ends=False), seconds=0.1)
    assert size.rows == 5242
    size.learn(Page(b"", 0, None, ends=True), seconds=0.1)
    assert size.rows == 5242
    size.learn(Page(b"x" * 200_000, 1000, None, ends=False), seconds=1.5)
    assert size.rows == 2621
    size.learn(Page(b"x" * 100_000, 1, None, ends=False), seconds=0.1)
    assert size.rows == 40
    size.learn(Page(b"x" * 2_000_000, 1, None, ends=False), seconds=0.1)
    assert size.rows == 1
    size.learn(Page(b"\n" * 1000, 1000, None, ends=False), seconds=0.1)
    assert size.rows == 50_000

"""Rows that were there before: copied in chunks, beside the stream."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.daemon import Daemon
from cdc.source.chunks import ChunkReader, Page
from tests.conftest import Configuration, Database, RunningDaemon, until

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
Run = Callable[..., Any]

TABLE = "create table t (id bigint primary key, v text, big text)"
FILL = "insert into t select i, 'v' || i, null from generate_series(1, {}) i"
ODD = '"Odd % ""name"""'
SMALL = {"chunk_bytes": 65536}  # many chunks
MIRROR = [{"source": "public.t"}]


def equal(write: Database, read: Database, table: str = "t", target: str | None = None) -> None:
    assert read.texts(target or table) == write.texts(table)


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_rows_from_before_are_copied(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    plugin: str,
    rows: int,
) -> None:
    write.run(TABLE, FILL.format(rows))
    daemon = cdc_start(configuration(plugin, mirrors=MIRROR))
    daemon.wait_until(daemon.copied)
    daemon.wait_for(write.run("insert into t values (1000000, 'new', 'big')"))
    equal(write, read)
    assert daemon.stop() == 0


def test_a_run_to_now_brings_the_rows_from_before_too(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run(TABLE, FILL.format(3000))
    cdc_run(configuration(mirrors=MIRROR))
    equal(write, read)


KEYS = {
    "text": "md5(i::text)",
    "uuid": "md5(i::text)::uuid",
    "numeric": "i / 7.0",
    "timestamptz": "timestamptz '2026-01-01' + i * interval '1 second'",
    "bytea": "decode(md5(i::text), 'hex')",
    "date": "date '1900-01-01' + i",
    "varchar(40)": "'Ä' || md5(i::text)",
    "mood": "null",
}


@pytest.mark.parametrize("key", [name for name in KEYS if name != "mood"])
def test_a_table_with_this_type_of_key_is_copied(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, key: str
) -> None:
    write.run(
        f"create table t (id {key} primary key, v int)",
        f"insert into t select {KEYS[key]}, i from generate_series(1, 4000) i",
    )
    cdc_run(configuration(mirrors=MIRROR))
    equal(write, read)


def test_a_key_whose_columns_are_declared_in_another_order_is_copied(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    """The read table has its key's columns in the order of the table's, not of the key's."""
    write.run(
        "create table t (id int, v text, tenant int, primary key (tenant, id))",
        "insert into t select i, repeat('v', 40), i % 7 from generate_series(1, 6000) i",
    )
    cdc_run(configuration(mirrors=MIRROR).with_(copy=SMALL))
    equal(write, read)


def test_the_copy_of_a_table_that_has_become_empty_ends(
    write: Database, read: Database, configuration: Configure, cdc_start: Start
) -> None:
    """A row that is to be read once more, and is no longer there, has no chunk to come after."""
    write.run(
        "create table a (id int primary key)", "insert into a select generate_series(1, 3000)"
    )
    write.run(TABLE, "alter table t alter big set storage external")
    mirrors = [{"source": "public.a"}, {"source": "public.t"}]
    daemon = cdc_start(configuration(mirrors=mirrors).with_(copy={"max_rows_per_second": 500}))
    daemon.wait_until(lambda: read.value("select to_regclass('a') is not null"))
    daemon.wait_until(lambda: read.rows("select 1 from a"))
    write.run("insert into t values (1, 'v', repeat('b', 9000))", "update t set id = 2")
    write.run("delete from t")
    daemon.wait_until(daemon.copied)
    equal(write, read)
    assert daemon.stop() == 0


def test_every_kind_of_table_is_copied(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(
        "create type mood as enum ('z', 'a')",
        "create table pairs (v text, b int, a mood, primary key (b, a))",
        "insert into pairs select 'v' || i, i, 'z' from generate_series(1, 2500) i",
        "insert into pairs select 'v' || i, i, 'a' from generate_series(1, 2500) i",
        f'create table {ODD} ("The Key" int primary key, "select" text)',
        f"insert into {ODD} select i, chr(9) || chr(10) || chr(13) || chr(92) || chr(1) || i from generate_series(1, 2500) i",
        "create table parts (id int, k int, t text, primary key (id, k)) partition by range (k)",
        "create table parts_1 partition of parts for values from (0) to (10)",
        "create table parts_2 partition of parts for values from (10) to (20)",
        "insert into parts select i, i % 20, '' from generate_series(1, 2500) i",
        "create table g (id int primary key, twice int generated always as (id * 2) stored)",
        "insert into g select i from generate_series(1, 100) i",
        "create table indexed (id int primary key, u text not null, v jsonb)",
        "create unique index indexed_u on indexed (u)",
        "alter table indexed replica identity using index indexed_u",
        """insert into indexed select i, 'u' || i, '{"a": null}' from generate_series(1, 2500) i""",
        "alter table indexed drop column id",
    )
    cdc_run(configuration(plugin, mirrors=[{"source": "public.*"}]))
    for table in ("pairs", ODD, "parts", "indexed"):
        equal(write, read, table)
    assert read.value("select count(*) from g") == 100


@pytest.mark.parametrize("key", ["", "primary key"])
def test_insert_only_tables_are_copied_once(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    plugin: str,
    key: str,
) -> None:
    """The write database gets rows all the while: each comes once, by the copy or the stream."""
    write.run(
        f"create table log (v int {key}, t text)",
        "insert into log select i from generate_series(1, 30000) i",
    )
    mirrors = [{"source": "public.log", "insert_only": True}]
    with writing(write, lambda n: f"insert into log values ({-n}, 'streamed')"):
        daemon = cdc_start(configuration(plugin, mirrors=mirrors))
        daemon.wait_until(daemon.copied)
    daemon.wait_for(write.run("insert into log values (0)"))
    equal(write, read, "log")


def test_a_transaction_that_reads_a_whole_table_may_idle(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run(TABLE, FILL.format(50_000))
    name = write.value("select quote_ident(current_database())")
    write.run(f"alter database {name} set idle_in_transaction_session_timeout = '1ms'")
    mirrors = [{"source": "public.t", "insert_only": True}]
    cdc_run(configuration(mirrors=mirrors).with_(copy=SMALL))
    assert read.value("select count(*) from t") == 50_000


def test_a_stop_in_the_midst_of_an_insert_only_table_leaves_nothing_of_it(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, cdc_run: Run
) -> None:
    write.run(
        "create table log (v int, t text)",
        "insert into log select i, repeat('x', 300) from generate_series(1, 300000) i",
    )
    chosen = configuration(mirrors=[{"source": "public.log", "insert_only": True}])
    daemon = cdc_start(chosen)
    pages = "select pg_relation_size(to_regclass('log'))"
    daemon.wait_until(lambda: (read.value(pages) or 0) > 1_000_000)
    assert daemon.stop() == 0, daemon.log
    assert read.value("select count(*) from log") == 0
    cdc_run(chosen)
    equal(write, read, "log")


def test_excluded_and_renamed_columns_hold_for_copied_rows(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run(TABLE, FILL.format(1000))
    mirror = {"source": "public.t", "exclude": ["v"], "rename": {"big": "large"}}
    cdc_run(configuration(mirrors=[mirror]))
    assert read.rows("select * from t where id = 7") == [(7, None)]
    assert read.value("select count(large) + count(*) from t") == 1000


def test_masks_hold_for_copied_rows(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run(TABLE, FILL.format(1000))
    mask = {"v": "hash", "big": "null"}
    cdc_run(configuration(mirrors=[{"source": "public.t", "mask": mask, "target": "masked"}]))
    assert (
        read.value("select count(*) from masked where v ~ '^[0-9a-f]{64}$' and big is null") == 1000
    )


@contextmanager
def writing(write: Database, statement: Callable[[int], str]) -> Iterator[None]:
    """Let an application write all the while, from a connection of its own."""
    ended = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        number = 0
        try:
            with write.connect() as connection:
                while not ended.is_set():
                    number += 1
                    connection.execute(statement(number).encode())
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not errors


def random_write(seed: int) -> Callable[[int], str]:
    choose = random.Random(seed)

    def statement(number: int) -> str:
        key, other = choose.randint(1, 25_000), choose.randint(1, 25_000)
        return choose.choice(
            [
                f"update t set v = 'u{number}' where id between {key} and {key + 50}",
                f"delete from t where id between {key} and {key + 20}",
                f"insert into t values ({key}, 'i{number}', repeat('b{number}', 3000)) on conflict do nothing",
                f"update t set id = {other} where id = {key} and not exists (select from t where id = {other})",
            ]
        )

    return statement


@pytest.mark.parametrize("key", ["bigint", "numeric"])
def test_an_application_writes_all_the_while(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    plugin: str,
    key: str,
) -> None:
    write.run(
        f"create table t (id {key} primary key, v text, big text)",
        "alter table t alter big set storage external",
        "insert into t select i, 'v', repeat('x', 2500) from generate_series(1, 20000) i",
    )
    with writing(write, random_write(7)):
        daemon = cdc_start(configuration(plugin, mirrors=MIRROR).with_(copy=SMALL))
        daemon.wait_until(daemon.copied)
    daemon.wait_for(write.run("insert into t values (99999, 'last', null)"))
    equal(write, read)


def test_a_large_transaction_comes_beside_the_copy(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run(TABLE, FILL.format(50_000))
    daemon = cdc_start(configuration(plugin, mirrors=MIRROR).with_(copy=SMALL))
    daemon.wait_until(daemon.checkpoint)
    write.run("update t set v = v || 'x'", "update t set v = v || 'y' where id % 2 = 0")
    daemon.wait_until(daemon.copied)
    daemon.wait_for(write.run("delete from t where id % 3 = 0"))
    equal(write, read)


def test_rows_that_reference_one_another_are_copied_parents_first(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, tmp_path: Path
) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    write.run(
        "create table parent (id int primary key)",
        "create table a_child (id int primary key, parent int references parent)",
        "insert into parent select i from generate_series(1, 20000) i",
        "insert into a_child select i, i from generate_series(1, 20000) i",
    )
    chosen = configuration(modules=["family"]).with_(copy=SMALL)
    with writing(write, lambda n: f"insert into a_child values ({-n}, {20000 - n % 20000})"):
        daemon = cdc_start(chosen)
        daemon.wait_until(daemon.copied)
    daemon.wait_for(write.run("insert into parent values (0)"))
    equal(write, read, "a_child", "child_read")
    equal(write, read, "parent", "parent_read")


FAMILY = """
import sqlalchemy as sa
from cdc import Delete, Deleted, Upsert, projector

metadata = sa.MetaData()
ParentRead = sa.Table("parent_read", metadata, sa.Column("id", sa.Integer, primary_key=True))
ChildRead = sa.Table(
    "child_read", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent", sa.ForeignKey("parent_read.id")),
)

@projector("public.parent", into=ParentRead)
def parent(change):
    if isinstance(change, Deleted):
        return Delete(ParentRead, id=change.key["id"])
    return Upsert(ParentRead, id=change.row["id"])

@projector("public.a_child", into=ChildRead)
def child(change):
    if isinstance(change, Deleted):
        return Delete(ChildRead, id=change.key["id"])
    return Upsert(ChildRead, id=change.row["id"], parent=change.row["parent"])
"""

SHARED = """
import sqlalchemy as sa
from cdc import Inserted, Update, Upsert, projector

metadata = sa.MetaData()
Person = sa.Table(
    "person", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text), sa.Column("address", sa.Text), sa.Column("was_copied", sa.Boolean),
)

@projector("public.names", into=Person, on_truncate=lambda change: None)
def names(change):
    match change:
        case Inserted(row=row, copied=copied):
            return Upsert(Person, id=row["id"], name=row["name"], was_copied=copied)

@projector("public.addresses", into=Person, on_truncate=lambda change: None)
def addresses(change):
    match change:
        case Inserted(row=row):
            return Update(Person, id=row["id"], address=row["address"])
"""


def test_projectors_that_fill_one_read_table_together_find_one_anothers_rows(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, tmp_path: Path
) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    write.run(
        "create table names (id int primary key, name text)",
        "create table addresses (id int primary key, address text)",
        "insert into names select i, 'n' || i from generate_series(1, 3000) i",
        "insert into addresses select i, 'a' || i from generate_series(1, 3000) i",
    )
    cdc_run(configuration(modules=["shared"]))
    whole = "name = 'n' || id and address = 'a' || id and was_copied"
    assert read.value(f"select count(*) filter (where {whole}) from person") == 3000


def test_a_table_that_is_added_later_is_copied_alone(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run(
        TABLE,
        FILL.format(10),
        "create table u (id int primary key)",
        "insert into u select i from generate_series(1, 2000) i",
    )
    cdc_run(configuration(mirrors=MIRROR))
    read.run("update t set v = 'planted' where id = 5")
    write.run("delete from u where id = 7", "insert into u values (9999)")
    cdc_run(configuration(mirrors=[*MIRROR, {"source": "public.u"}]))
    equal(write, read, "u")
    assert read.value("select v from t where id = 5") == "planted"


def test_a_projector_that_was_taken_out_and_comes_back_is_copied_again(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run(
        TABLE,
        FILL.format(10),
        "create table u (id int primary key)",
        "insert into u values (1), (2)",
    )
    both = configuration(mirrors=[*MIRROR, {"source": "public.u"}])
    cdc_run(both)
    cdc_run(configuration(mirrors=MIRROR))
    write.run("delete from u where id = 1", "insert into u values (3)")
    cdc_run(both)
    equal(write, read, "u")


def test_a_first_copy_into_a_table_that_holds_rows_says_so(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    """Of a mirror with a key that every database orders alike, what the source has not goes."""
    write.run("create table t (id bigint primary key, v text, big text)", FILL.format(10))
    read.run(
        "create table t (id bigint primary key, v text, big text)", "insert into t values (5), (50)"
    )
    ran = cdc_run(configuration(mirrors=MIRROR))
    assert "has rows already" in ran.stderr
    equal(write, read)


@pytest.mark.parametrize(
    ("stale", "mirror"),
    [("(5, 'stale'), (900000, 'stale')", {}), ("(5, 'stale')", {"mask": {"v": "hash"}})],
    ids=["directly", "masked"],
)
def test_a_copy_ends_though_rows_are_added_faster_than_it_reads(
    write: Database,
    read: Database,
    configuration: Configure,
    monkeypatch: pytest.MonkeyPatch,
    stale: str,
    mirror: dict[str, Any],
) -> None:
    """It reads up to the row that was the last one when it began; the stream brings those after."""
    table = "create table t (id bigint primary key, v text)"
    write.run(table, "insert into t select i, repeat('v', 30) from generate_series(1, 3000) i")
    read.run(table, f"insert into t values {stale}")
    read_page, pages = ChunkReader.read, itertools.count(1)

    def and_more_come(reader: ChunkReader, **which: Any) -> Page:
        page = read_page(reader, **which)
        if next(pages) < 20:
            write.run(
                "insert into t select m + i, repeat('n', 30) from generate_series(1, 1000) i, "
                "(select max(id) from t) q(m)"
            )
        return page

    monkeypatch.setattr(ChunkReader, "read", and_more_come)
    mirrors = [{"source": "public.t", **mirror}]
    Daemon(
        configuration(mirrors=mirrors).with_(copy={"chunk_bytes": 16384}).settings(), until="now"
    ).run()
    assert next(pages) < 10
    assert read.rows("select id from t order by id") == write.rows("select id from t order by id")
    assert not read.rows("select 1 from t where v = 'stale'")


@pytest.mark.parametrize("key", ["bigint", "text"])
def test_a_table_that_is_renamed_loses_no_delete_that_is_pending(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, key: str
) -> None:
    write.run(
        f"create table t (id {key} primary key)",
        "insert into t select i from generate_series(1, 100) i",
    )
    cdc_run(configuration(mirrors=MIRROR))
    write.run("delete from t where id in ('5', '50')", "alter table t rename to t2")
    cdc_run(configuration(mirrors=[{"source": "public.t2", "target": "t"}]))
    equal(write, read, "t2", "t")


def test_rows_that_were_only_ever_added_are_neither_doubled_nor_removed_by_a_rename(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    """The read table may be an archive: it holds what the source has deleted."""
    write.run("create table log (v int)", "insert into log values (1), (2), (3)")
    mirror = {"source": "public.log", "insert_only": True}
    cdc_run(configuration(mirrors=[mirror]))
    write.run(
        "delete from log where v = 1",
        "insert into log values (4)",
        "alter table log rename to log2",
    )
    ran = cdc_run(configuration(mirrors=[mirror | {"source": "public.log2", "target": "log"}]))
    assert "not copied" in ran.stderr
    assert read.rows("select v from log order by v") == [(1,), (2,), (3,), (4,)]


def test_nothing_is_copied_where_that_is_turned_off(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run(TABLE, FILL.format(10))
    chosen = configuration(mirrors=MIRROR).with_(copy={"enabled": False})
    cdc_run(chosen)
    write.run("insert into t values (11, 'streamed', null)")
    cdc_run(chosen)
    assert read.rows("select id from t") == [(11,)]


def test_a_chunk_waits_for_a_commit_that_is_streamed_before_it_is_visible(
    write: Database, read: Database, configuration: Configure, cdc_start: Start
) -> None:
    """A commit that waits for a synchronous standby is streamed, and no snapshot sees it yet."""
    write.run(TABLE, FILL.format(3000))
    daemon = cdc_start(configuration(mirrors=MIRROR).with_(copy={"enabled": False}))
    daemon.wait_started()
    with write.server.connect() as admin:
        admin.execute("alter system set synchronous_standby_names = 'nobody'")
        admin.execute("select pg_reload_conf()")
    waiting = write.connect()
    try:
        until(lambda: write.value("show synchronous_standby_names") == "nobody")
        thread = threading.Thread(target=committed_in_vain, args=(waiting,))
        thread.start()
        daemon.wait_until(lambda: read.rows("select from t where id = 5 and v = 'newer'"))
        assert write.value("select v from t where id = 5") == "v5"  # streamed, and not visible
        read.run("update cdc_copy set state = 'waiting', purpose = 'again', asked = asked + 1")
        daemon.wait_until(lambda: "copying" in daemon.log)
        assert read.value("select count(*) from t") == 1
    finally:
        with write.server.connect() as admin:
            admin.execute("alter system reset synchronous_standby_names")
            admin.execute("select pg_reload_conf()")
        thread.join()
        waiting.close()
    daemon.wait_until(daemon.copied)
    equal(write, read)


def committed_in_vain(connection: "psycopg.Connection[Any]") -> None:
    connection.execute("update t set v = 'newer' where id = 5")

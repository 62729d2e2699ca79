"""The daemon as a process: after any writes and restarts, the mirror equals its source."""

import json
import random
import re
import signal
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from cdc.lsn import Lsn
from tests.conftest import Configuration, Database, RunningDaemon, require, toml

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
Run = Callable[..., Any]
Pair = tuple[Database, Database]
CONFIRMED = """
select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots where slot_name = %s
"""
WALSENDER = "select active_pid from pg_replication_slots where slot_name = %s"
EVERYTHING = [{"source": "public.*"}]
STOP = {"on_error": "stop"}


@pytest.fixture
def databases(write: Database, read: Database) -> Pair:
    return write, read


def equal(write: Database, read: Database, table: str, target: str | None = None) -> None:
    assert read.texts(target or table) == write.texts(table)


# Random writes.

SCHEMA = (
    "create type mood as enum ('ok', 'so so')",
    "create table plain (id int primary key, n numeric, t text, b bytea, f float8, m mood)",
    "create table pairs (v text, b int, a int, primary key (b, a))",
    "create table whole (id int primary key, t text, v int)",
    "alter table whole replica identity full",
    "create table indexed (id int primary key, u text not null, v jsonb)",
    "create unique index indexed_u on indexed (u)",
    "alter table indexed replica identity using index indexed_u",
    'create table "Odd % ""name""" ("The Key" int primary key, "select" text)',
    *(f"alter table {t} alter t set storage external" for t in ("plain", "whole")),
)
PARTS = (
    "create table parts (id int, k int, t text, primary key (id, k)) partition by range (k)",
    "create table parts_1 partition of parts for values from (0) to (10)",
    "create table parts_2 (t text, k int not null, id int not null)",
    "alter table parts attach partition parts_2 for values from (10) to (20)",
)
TABLES = ("plain", "pairs", "whole", "indexed", "parts", '"Odd % ""name"""')


class Workload:
    """Random statements over a small set of keys, so that they meet."""

    def __init__(self, write: Database, seed: int) -> None:
        self.write = write
        self.choose = random.Random(seed)

    def key(self, most: int = 12) -> int:
        return self.choose.randint(1, most)

    def long(self) -> str:
        letter, length = self.choose.choice("xyz"), self.choose.choice([0, 3, 3000, 9000])
        return f"repeat('{letter}\t\\', {length})"

    def statement(self) -> str:
        k, other, some = self.key(), self.key(), self.key(40)
        odd, long = '"Odd % ""name"""', self.long()
        clash = " on conflict (id) do update set"
        ignore = "on conflict do nothing"
        return self.choose.choice(
            [
                (
                    f"insert into plain values ({k}, {k}.{other}0, {long}, '\\x00', -0.0, 'so so')"
                    f"{clash} n = excluded.n, m = 'ok'"
                ),
                (
                    f"insert into plain select i, i, {long} "
                    f"from generate_series(100, 100 + {some}) i {clash} f = random()"
                ),
                "update plain set n = n + 1, b = null where id % 3 = 0",
                f"update plain set id = {k} where id = {other}",
                "update plain set id = -id where id > 100 and id % 2 = 0",
                f"update plain set t = {long} where id = {k}",
                f"delete from plain where id = {k} or id % 7 = {k}",
                f"insert into pairs values ({long}, {k}, {other}) {ignore}",
                f"update pairs set a = {k}, b = {other} where a = {other}",
                f"update pairs set v = null where a = {k}",
                f"delete from pairs where b = {k}",
                f"insert into whole values ({k}, {long}, {other}) {ignore}",
                f"update whole set v = {other} where id < {k}",
                f"update whole set id = {k}, v = 0 where id = {other}",
                f"delete from whole where id = {k}",
                f"insert into indexed values ({k}, 'u{other}', '[1, \"{k}\"]') {ignore}",
                f"update indexed set u = 'u{k}' where u = 'u{other}'",
                f"update indexed set id = id + 100 where id = {k}",
                f"delete from indexed where id % 5 = {k}",
                f"insert into parts values ({k}, {other}, {long}) {ignore}",
                f"update parts set k = (k + {other}) % 20 where id = {k}",
                f"update parts set id = {k} where id = {other}",
                f"delete from parts where k = {k}",
                f"insert into {odd} values ({k}, {long}) {ignore}",
                f'update {odd} set "The Key" = {k} where "The Key" = {other}',
                f"truncate {self.choose.choice(TABLES)}"
                if self.choose.random() < 0.2
                else "select 1",
            ]
        )

    def write_some(self, transactions: int) -> Lsn:
        for _ in range(transactions):
            statements = [self.statement() for _ in range(self.choose.choice([1, 1, 2, 5, 12]))]
            with suppress(psycopg.Error), self.write.connection.transaction():
                for statement in statements:
                    self.savepoint(statement)
                if self.choose.random() < 0.1:
                    raise psycopg.errors.RaiseException
        return self.write.run()

    def savepoint(self, statement: str) -> None:
        with suppress(psycopg.Error), self.write.connection.transaction():
            self.write.connection.execute(statement.encode())


@pytest.mark.parametrize("seed", range(2))
def test_a_mirror_equals_its_source_after_random_writes_and_restarts(
    databases: Pair, configuration: Configure, cdc_run: Run, plugin: str, seed: int
) -> None:
    write, read = databases
    write.run(*SCHEMA, *PARTS)
    # Small batches and pieces, so that their borders fall everywhere.
    small = {"batch_changes": 30, "batch_bytes": 65536}
    wanted = configuration(plugin, mirrors=EVERYTHING)
    cdc_run(wanted)
    workload = Workload(write, seed)
    for round_ in range(3):
        workload.write_some(60)
        cdc_run(wanted.with_(read=small) if round_ % 2 else wanted)
        for table in TABLES:
            equal(write, read, table)
    assert any(write.texts(table) for table in TABLES)


def test_a_mirror_equals_its_source_while_both_go_on(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run(*SCHEMA, *PARTS)
    wanted = configuration(plugin, mirrors=EVERYTHING)
    daemon = cdc_start(wanted)
    daemon.wait_started()
    workload = Workload(write, 7)
    for number in range(6):
        lsn = workload.write_some(25)
        if number == 1:
            daemon.kill()
            daemon = cdc_start(wanted)
        if number == 3:
            found = "from pg_stat_activity where application_name = 'cdc'"
            read.rows(f"select pg_terminate_backend(pid) {found} and datname = current_database()")
        if number == 4:
            write.rows(
                "select pg_terminate_backend(active_pid) from pg_replication_slots "
                "where slot_name = %s and active_pid is not null",
                wanted.slot,
            )
    daemon.wait_for(lsn)
    for table in TABLES:
        equal(write, read, table)
    assert daemon.stop() == 0


# One feature each.


def test_columns_are_renamed_masked_and_left_out_and_never_arrive(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(
        "create table authors (id int primary key, name text, email text, phone text, secret text)",
        "alter table authors replica identity full",
    )
    wanted = configuration(
        plugin,
        mirrors=[
            {
                "source": "public.authors",
                "target": "author_read",
                "exclude": ["secret"],
                "rename": {"name": "full name"},
                "mask": {"email": "hash", "phone": "null"},
            }
        ],
    ).with_(projection={"hash_key": "k"})
    cdc_run(wanted)
    write.run(
        "insert into authors values (1, 'Ada', 'ada@x.org', '555', 'xyzzy')",
        "insert into authors values (2, null, null, null, '')",
        "update authors set id = 3, name = 'Ada L.' where id = 1",
        "update authors set phone = '556', secret = 'plugh'",
    )
    ran = cdc_run(wanted, "--log-level", "DEBUG")
    rows = read.rows('select id, "full name", email, phone from author_read order by id')
    assert [(row[0], row[1], row[3]) for row in rows] == [(2, None, None), (3, "Ada L.", None)]
    assert rows[0][2] is None
    assert re.fullmatch("[0-9a-f]{64}", rows[1][2])
    dump = json.dumps(read.texts("author_read")) + ran.stderr
    for value in ("ada@x.org", "555", "556", "xyzzy", "plugh"):
        assert value not in dump


def test_a_table_without_a_key_is_appended_once_each_whatever_the_source_updates(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table log (what text, n int)", "create table t (id int primary key)")
    mirrors = [{"source": "public.log", "insert_only": True}, {"source": "public.t"}]
    wanted = configuration(plugin, mirrors=mirrors)
    cdc_run(wanted)
    write.run(
        "insert into log values ('a', 1), ('a', 1), (null, null)",
        "update log set n = 2",
        "delete from log where n = 2",
        "insert into log select 'b', i from generate_series(1, 50) i",
        "insert into t values (1)",
    )
    cdc_run(wanted)
    cdc_run(wanted)
    assert len(read.rows("select * from log")) == 53
    assert read.rows("select * from t") == [(1,)]
    write.run("truncate log")
    cdc_run(wanted)
    assert read.rows("select * from log") == []


def test_writes_to_a_table_without_a_key_that_nobody_mirrors_stop_nothing(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table log (n int)", "create table t (id int primary key)")
    wanted = configuration(plugin, mirrors=[{"source": "public.t"}])
    cdc_run(wanted)
    write.run("insert into log values (1)", "update log set n = 2", "delete from log")
    write.run("insert into t values (1)")
    cdc_run(wanted)
    assert read.rows("select * from t") == [(1,)]


def test_rows_that_are_left_out_of_a_mirror_stop_it_with_the_table(
    write: Database, configuration: Configure, cdc_run: Run
) -> None:
    """A key that is dropped while streaming: wal2json warns, and leaves the update out."""
    require(write.server.installation.wal2json, "wal2json")
    write.run("create table t (id int primary key, v int)")
    wanted = configuration("wal2json", mirrors=[{"source": "public.t"}])
    cdc_run(wanted)
    write.run("insert into t values (1, 1)", "alter table t drop constraint t_pkey")
    write.run("update t set v = 2", "alter table t add primary key (id)")
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 6
    assert "Traceback" not in ran.stderr
    assert '"t"' in ran.stderr


@pytest.mark.parametrize("kind", ["generated", "identity"])
def test_a_table_with_generated_columns_has_no_column_that_is_null_for_ever(
    databases: Pair, configuration: Configure, cdc_run: Run, plugin: str, kind: str
) -> None:
    write, read = databases
    column = {
        "generated": "g int generated always as (v * 2) stored",
        "identity": "g int generated always as identity",
    }[kind]
    write.run(f"create table t (id int primary key, v int, {column})")
    wanted = configuration(plugin, mirrors=EVERYTHING)
    cdc_run(wanted)
    write.run("insert into t (id, v) values (1, 5)", "update t set v = 6")
    cdc_run(wanted)
    (mirrored,) = read.rows("select to_jsonb(t) from t")
    (source,) = write.rows("select to_jsonb(t) from t")
    assert mirrored[0].items() <= source[0].items()
    assert {"id", "v"} <= mirrored[0].keys()


@pytest.mark.parametrize("by", ["mirror", "projector"])
def test_a_key_with_a_generated_column_is_refused(
    databases: Pair, configuration: Configure, cdc_run: Run, plugin: str, by: str
) -> None:
    """No plugin tells its rows apart: pgoutput leaves the column out."""
    write, _ = databases
    write.run("create table t (v int, g int generated always as (v * 2) stored primary key)")
    mirrors = [{"source": "public.t"}] if by == "mirror" else []
    modules = ["looking"] if by == "projector" else []
    wanted = configuration(plugin, mirrors=mirrors, modules=modules)
    (wanted.folder / "looking.py").write_text(LOOKING)
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 2
    assert "public.t" in ran.stderr
    assert '"g"' in ran.stderr
    write.run("alter table t add column id int generated always as identity")
    write.run(
        "create unique index by_id on t (id)", "alter table t replica identity using index by_id"
    )
    cdc_run(wanted)


def test_inserts_alone_need_no_key_that_is_sent(
    databases: Pair, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write, read = databases
    write.run("create table t (v int, g int generated always as (v * 2) stored primary key)")
    wanted = configuration(plugin, mirrors=[{"source": "public.t", "insert_only": True}])
    cdc_run(wanted)
    write.run("insert into t values (1), (2)", "update t set v = 3 where v = 2", "delete from t")
    cdc_run(wanted)
    assert read.rows("select v from t order by v") == [(1,), (2,)]


LOOKING = """
import sqlalchemy as sa
from cdc import projector

@projector("public.t", into=sa.Table("r", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True)))
def look(change):
    return None
"""


def test_a_transaction_larger_than_memory_allows_appears_at_once(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run("create table t (id int primary key, v text)")
    wanted = configuration(plugin, mirrors=EVERYTHING).with_(
        read={"batch_bytes": 65536, "batch_changes": 100}, source={"queue_bytes": 65536}
    )
    daemon = cdc_start(wanted)
    daemon.wait_started()
    lsn = write.commit(
        "insert into t select i, repeat('x', 100) from generate_series(1, 20000) i",
        "delete from t where id % 2 = 0",
        "update t set id = -id",
    )
    seen = set()

    def done() -> bool:
        seen.add(read.value("select count(*) from t"))
        return (daemon.checkpoint() or 0) >= lsn

    daemon.wait_until(done)
    assert seen <= {0, 10_000}
    equal(write, read, "t")


def test_writes_to_other_tables_move_checkpoint_and_slot(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run("create table t (id int primary key)", "create table other (v text)")
    daemon = cdc_start(configuration(plugin, mirrors=[{"source": "public.t"}]))
    daemon.wait_started()
    lsn = write.run("insert into other select repeat('x', 100) from generate_series(1, 10000)")
    daemon.wait_for(lsn)
    daemon.wait_until(lambda: write.value(CONFIRMED, daemon._slot) >= lsn)
    assert read.value("select count(*) from t") == 0
    assert daemon.stop() == 0


@pytest.fixture
def lazy_read(read: Database) -> Iterator[Database]:
    """A read database whose server writes its WAL when it must."""
    settings = ("wal_writer_delay = 10000", "wal_writer_flush_after = 1000000")
    read.run(*(f"alter system set {setting}" for setting in settings), "select pg_reload_conf()")
    yield read
    read.run("alter system reset all", "select pg_reload_conf()")


def crash(read: Database) -> None:
    """Kill the read server, and with it what it has not on disk; start it again."""
    read.server.kill()
    read.server.start()
    read.connection.close()
    read.connection = read.connect()


def test_nothing_is_acknowledged_that_a_crash_of_the_read_server_could_lose(
    write: Database,
    lazy_read: Database,
    configuration: Configure,
    cdc_start: Start,
    cdc_run: Run,
) -> None:
    write.run("create table t (id int primary key)")
    wanted = configuration(mirrors=EVERYTHING)
    cdc_run(wanted)
    lost = 0
    for key in range(5):
        daemon = cdc_start(wanted)
        daemon.wait_for(write.run(f"insert into t values ({key})"))
        before = daemon.checkpoint() or 0
        daemon.kill()
        crash(lazy_read)
        after = daemon.checkpoint() or 0
        assert write.value(CONFIRMED, daemon._slot) <= after <= before
        lost += after < before
    assert lost, "the crash lost no commit: nothing was tested"
    cdc_run(wanted)
    equal(write, lazy_read, "t")


def test_a_checkpoint_found_at_start_is_acknowledged_when_it_is_on_disk(
    write: Database,
    lazy_read: Database,
    configuration: Configure,
    cdc_start: Start,
    cdc_run: Run,
) -> None:
    """The one that stored it may have been killed before it was."""
    write.run("create table t (id int primary key)")
    wanted = configuration(mirrors=EVERYTHING)
    cdc_run(wanted)
    first = cdc_start(wanted)
    first.wait_for(write.run("insert into t values (1)"))
    first.kill()
    second = cdc_start(wanted)
    told = (
        "select flush_lsn is not null from pg_stat_replication r join pg_replication_slots s "
        "on s.active_pid = r.pid where slot_name = %s"
    )
    second.wait_until(lambda: write.rows(told, wanted.slot) == [(True,)])
    second.kill()
    crash(lazy_read)
    assert write.value(CONFIRMED, wanted.slot) <= (second.checkpoint() or 0)
    cdc_run(wanted)
    equal(write, lazy_read, "t")


def test_a_crash_of_the_read_server_after_the_first_start_is_survived(
    write: Database, lazy_read: Database, configuration: Configure, cdc_start: Start, cdc_run: Run
) -> None:
    write.run("create table t (id int primary key)")
    wanted = configuration(mirrors=EVERYTHING)
    daemon = cdc_start(wanted)
    daemon.wait_started()
    daemon.kill()
    crash(lazy_read)
    write.run("insert into t values (1)")
    cdc_run(wanted)
    equal(write, lazy_read, "t")


def test_draining_applies_what_was_received_and_acknowledges_it(
    write: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run("create table t (id int primary key)")
    daemon = cdc_start(configuration(plugin, mirrors=EVERYTHING))
    daemon.wait_started()
    daemon.wait_for(write.run("insert into t select generate_series(1, 1000)"))
    checkpoint = daemon.checkpoint()
    assert daemon.stop(signal.SIGINT) == 0
    assert write.value(CONFIRMED, daemon._slot) >= checkpoint
    assert "Traceback" not in daemon.log


@pytest.fixture
def impatient_write(write: Database) -> Iterator[Database]:
    """A write database whose server ends clients that say nothing for a second."""
    write.run("alter system set wal_sender_timeout = 1000", "select pg_reload_conf()")
    yield write
    write.run("alter system reset all", "select pg_reload_conf()")


def test_a_writer_that_waits_for_long_costs_no_connection(
    impatient_write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    plugin: str,
) -> None:
    write = impatient_write
    write.run("create table t (id int primary key, v text)")
    daemon = cdc_start(
        configuration(plugin, mirrors=EVERYTHING).with_(source={"queue_bytes": 65536})
    )
    daemon.wait_started()
    daemon.wait_for(write.run("insert into t values (0)"))
    pid = write.value(WALSENDER, daemon._slot)
    with read.connect(autocommit=False) as blocking:
        blocking.execute("lock table t")
        lsn = write.run("insert into t select i, repeat('x', 500) from generate_series(1, 5000) i")
        began = write.value("select clock_timestamp()")
        heard = (
            "select max(reply_time) - %s > interval '2.5 s' from pg_stat_replication where pid = %s"
        )
        daemon.wait_until(lambda: write.value(heard, began, pid))
        assert read.value("select count(*) from cdc_checkpoint where lsn >= %s", int(lsn)) == 0
    daemon.wait_for(lsn)
    assert write.value(WALSENDER, daemon._slot) == pid
    equal(write, read, "t")


def test_a_fast_stop_of_the_write_server_waits_for_no_writer(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run("create table t (id int primary key)")
    daemon = cdc_start(configuration(plugin, mirrors=EVERYTHING))
    daemon.wait_started()
    daemon.wait_for(write.run("insert into t values (0)"))
    with read.connect(autocommit=False) as blocking:
        blocking.execute("lock table t")
        write.run("insert into t select generate_series(1, 5000)")
        write.connection.close()
        write.server.stop("fast", timeout=10)
        write.server.start()
        write.connection = write.connect()
    daemon.wait_for(write.run("insert into t values (-1)"))
    equal(write, read, "t")
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_stopped_while_its_slot_is_made_can_be_started_again(
    databases: Pair, configuration: Configure, cdc_start: Start, plugin: str, number: signal.Signals
) -> None:
    write, read = databases
    write.run("create table t (id int primary key)")
    wanted = configuration(plugin, mirrors=EVERYTHING)
    with write.connect(autocommit=False) as writing:
        writing.execute("insert into t values (1)")
        first = cdc_start(wanted)
        first.wait_until(write.slots)
        assert first.stop(number) == (0 if number is signal.SIGTERM else -number)
        second = cdc_start(wanted)
        second.wait_until(lambda: "standby" in second.log or second.checkpoint() or write.slots())
    second.wait_started()
    second.wait_for(write.run("insert into t values (2)"))
    assert (2,) in read.rows("select * from t")
    assert second.stop() == 0


def test_restarts_of_either_server_are_survived(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run("create table t (id int primary key)")
    daemon = cdc_start(configuration(plugin, mirrors=EVERYTHING))
    daemon.wait_started()
    daemon.wait_for(write.run("insert into t values (1)"))
    read.server.restart("fast")
    read.connection.close()
    read.connection = read.connect()
    daemon.wait_for(write.run("insert into t values (2)"))
    # A fast stop waits until the daemon has confirmed all that it was sent.
    write.server.restart("fast", timeout=20)
    write.connection.close()
    write.connection = write.connect()
    daemon.wait_for(write.run("insert into t values (3)"))
    equal(write, read, "t")
    assert daemon.stop() == 0


def test_a_read_server_that_crashes_and_loses_commits_gets_them_again(
    write: Database, lazy_read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run("create table t (id int primary key)")
    daemon = cdc_start(configuration(plugin, mirrors=EVERYTHING))
    daemon.wait_started()
    for round_ in range(3):
        daemon.wait_for(
            write.run(f"insert into t select 100 * {round_} + i from generate_series(1, 50) i")
        )
        lazy_read.server.kill()
        lsn = write.run(f"insert into t values ({10_000 + round_})")
        crash(lazy_read)
        daemon.wait_for(lsn)
        equal(write, lazy_read, "t")
    assert daemon.stop() == 0


PROJECTORS = """
import sqlalchemy as sa
from cdc import Delete, Deleted, Inserted, Update, Updated, Upsert, projector

metadata = sa.MetaData()
Posts = sa.Table("post_read", metadata, sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("title", sa.Text), sa.Column("body", sa.Text), sa.Column("tags", sa.ARRAY(sa.Text)))
Tags = sa.Table("tag_read", metadata, sa.Column("post_id", sa.Integer, primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True))

@projector("public.posts", into=Posts)
def post(change):
    match change:
        case Deleted(key=key):
            yield Delete(Posts, id=key["id"])
        case Inserted(row=row) | Updated(row=row):
            yield Upsert(Posts, id=row["id"], title=row["title"].upper(), body=row["body"],
                         tags=row["tags"])

@projector("public.tags", into=Tags)
def tag(change):
    match change:
        case Deleted(key=key):
            return Delete(Tags, post_id=key["post_id"], tag=key["tag"])
        case Inserted(row=row) | Updated(row=row):
            return Upsert(Tags, post_id=row["post_id"], tag=row["tag"])
"""


def test_a_projector_written_simply_is_right(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_run: Run,
    plugin: str,
) -> None:
    wanted = configuration(plugin, modules=["blog_of_test"])
    (wanted.folder / "blog_of_test.py").write_text(PROJECTORS)
    write.run(
        "create table posts (id int primary key, title text, body text, tags text[])",
        "alter table posts alter body set storage external",
        "create table tags (tag text, post_id int, primary key (tag, post_id))",
    )
    cdc_run(wanted)
    write.run(
        "insert into posts select i, 'title', repeat('x', 5000), '{a,NULL}' "
        "from generate_series(1, 40) i",
        "update posts set title = 'new' where id % 2 = 0",
        "update posts set id = id + 100, title = 'moved' where id % 3 = 0",
        "delete from posts where id % 5 = 0",
        "insert into tags values ('a', 1), ('b', 2)",
        "update tags set tag = 'c', post_id = 3 where post_id = 1",
    )
    cdc_run(wanted)
    query = "select id, upper(title), body, tags from posts order by id"
    assert read.rows("select * from post_read order by id") == write.rows(query)
    assert read.rows("select * from tag_read order by 1") == [(2, "b"), (3, "c")]
    write.run("truncate posts", "insert into posts values (1, 't', null, null)")
    cdc_run(wanted)
    assert read.rows("select * from post_read") == [(1, "T", None, None)]


def test_a_projector_that_fails_stops_with_its_name_and_goes_on_when_it_is_mended(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_run: Run,
    plugin: str,
) -> None:
    wanted = configuration(plugin, modules=["blog_that_fails"]).with_(projection=STOP)
    module = wanted.folder / "blog_that_fails.py"
    module.write_text(PROJECTORS)
    write.run(
        "create table posts (id int primary key, title text, body text, tags text[])",
        "create table tags (tag text, post_id int, primary key (tag, post_id))",
    )
    cdc_run(wanted)
    write.run(
        "insert into posts values (1, 's3cr3t', null, null)",
        "insert into posts values (77, null, 's3cr3t', null)",
        "insert into posts values (3, 'c', null, null)",
    )
    for _ in range(2):
        ran = cdc_run(wanted, succeeds=False)
        assert ran.returncode == 5
        for said in ("projector post ", "public.posts", "id='77'", "AttributeError"):
            assert said in ran.stderr
        assert "Traceback" not in ran.stderr
        assert "s3cr3t" not in ran.stderr
    module.write_text(PROJECTORS.replace('row["title"].upper()', '(row["title"] or "").upper()'))
    cdc_run(wanted)
    assert read.rows("select id, title from post_read order by id") == [
        (1, "S3CR3T"),
        (3, "C"),
        (77, ""),
    ]


def test_a_change_the_read_database_refuses_stops_with_its_key_and_is_retried_from_there(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table t (id int primary key, v text)")
    wanted = configuration(plugin, mirrors=EVERYTHING).with_(projection=STOP)
    cdc_run(wanted)
    read.run("alter table t add constraint no_secret check (v <> 's3cr3t')")
    write.run("insert into t values (1, 'a')")
    refused = write.run("insert into t values (2, 's3cr3t')")
    write.run("insert into t values (3, 'c')")
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 4
    for said in ("mirror:public.t", "upsert t", "id='2'", "no_secret"):
        assert said in ran.stderr
    assert "s3cr3t" not in ran.stderr
    # The first transaction may or may not have been a batch of its own.
    assert read.rows("select id from t") in ([], [(1,)])
    assert read.value("select lsn from cdc_checkpoint") < refused
    read.run("alter table t drop constraint no_secret")
    cdc_run(wanted)
    equal(write, read, "t")


def test_read_rows_that_a_policy_hides_stop_it_and_are_not_passed_over(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run("create table t (id int primary key)", "insert into t values (1), (2)")
    wanted = configuration(mirrors=[{"source": "public.t"}])
    cdc_run(wanted)
    read.run("alter table t enable row level security", "alter table t force row level security")
    write.run("delete from t where id = 1")
    ran = cdc_run(wanted, succeeds=False)
    assert (ran.returncode, "row-level security" in ran.stderr) == (4, True)
    read.run("alter table t no force row level security")
    cdc_run(wanted)
    assert read.rows("select * from t") == [(2,)]


def test_a_column_added_while_streaming_stops_and_its_hint_mends_it(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table t (id int primary key, v text)")
    wanted = configuration(plugin, mirrors=EVERYTHING)
    cdc_run(wanted)
    write.run("insert into t values (1, 'a')", "alter table t add column w int default 7")
    write.run("insert into t values (2, 'b', 3)")
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 8
    assert '"w"' in ran.stderr
    assert "Traceback" not in ran.stderr
    read.run("alter table t add column w int")
    cdc_run(wanted)
    assert read.rows("select id, v, w from t where id = 2") == [(2, "b", 3)]


def test_a_column_dropped_while_streaming_stops_nothing(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> None:
    write.run("create table t (id int primary key, v text, w int)")
    daemon = cdc_start(configuration(plugin, mirrors=EVERYTHING))
    daemon.wait_started()
    lsn = write.run(
        "insert into t values (1, 'a', 1)",
        "alter table t drop column w",
        "insert into t values (2, 'b')",
        "update t set v = 'c'",
        "update t set id = 5 where id = 1",
    )
    daemon.wait_for(lsn)
    assert read.rows("select id, v, w from t order by id") == [(2, "c", None), (5, "c", 1)]


def test_until_a_position_stops_there(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table t (id int primary key)")
    wanted = configuration(plugin, mirrors=EVERYTHING)
    cdc_run(wanted)
    lsn = write.run("insert into t values (1)")
    ran = cdc_run(wanted, until=str(lsn))
    assert read.value("select lsn from cdc_checkpoint") >= lsn
    assert read.rows("select * from t") == [(1,)]
    assert "stopped" in ran.stderr


def test_a_configuration_written_by_these_tests_is_toml() -> None:
    value = {"a": [{"b": 'q"\\\n', "c d": True}], "e": 5}
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value

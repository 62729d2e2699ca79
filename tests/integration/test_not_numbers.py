"""NaN and the infinities, which wal2json 2.5 sends as null: never a silent NULL."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

from cdc.errors import SourceUnavailable
from cdc.names import TableName
from cdc.operate.check import Finding, check
from cdc.source.catalog import describe
from cdc.source.connection import connect, connect_replication
from cdc.source.current_rows import CurrentRows
from cdc.source.relations import Relations
from cdc.source.slot import knows_options, try_plugin
from tests.conftest import (
    Configuration,
    Database,
    RunningDaemon,
    require,
    tells_not_numbers,
    until,
)

Configure = Callable[..., Configuration]
Run = Callable[..., Any]
Pair = tuple[Database, Database]
TABLE = "create table t (id int primary key, x {} {}, v int)"


@pytest.fixture(autouse=True)
def wal2json(write: Database) -> None:
    require(write.server.installation.wal2json, "wal2json")
    require(not tells_not_numbers(write, "wal2json"), "wal2json older than 2.6")


@pytest.fixture
def databases(write: Database, read: Database) -> Pair:
    return write, read


@pytest.fixture
def mirrored(configuration: Configure) -> Configuration:
    return configuration("wal2json", mirrors=[{"source": "public.*"}])


def refused(ran: Any, *parts: str) -> None:
    assert ran.returncode == 6, ran.stderr
    for part in (*parts, "NaN", "wal2json 2.6", "pgoutput"):
        assert part in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("real", "NaN"),
        ("double precision", "-Infinity"),
        ("numeric", "Infinity"),
        ("numeric(10,2) not null", "NaN"),
    ],
)
def test_no_number_is_an_error_that_names_the_column(
    databases: Pair, mirrored: Configuration, cdc_run: Run, column: str, value: str
) -> None:
    write, read = databases
    write.run(f"create table t (id int primary key, x {column})", "insert into t values (2, 6)")
    cdc_run(mirrored)
    write.run("insert into t values (1, 5)", f"update t set x = '{value}' where id = 2")
    refused(cdc_run(mirrored, succeeds=False), '"x"', "public.t", "'2'")
    assert read.value("select x::float8 from t where id = 2") == 6


def test_null_in_a_number_column_is_null(
    write: Database, read: Database, mirrored: Configuration, cdc_run: Run
) -> None:
    write.run(
        "create table t (id int primary key, x float8, y numeric(10,2), z numeric not null)",
        "create table f (id int primary key, x float4)",
        "alter table f replica identity full",
    )
    cdc_run(mirrored)
    write.run(
        "insert into t select i, nullif(i % 2, 0), null, 0 from generate_series(1, 2500) i",
        "update t set y = 1 where id % 3 = 0",
        "update t set x = null",
        "insert into f select i, null from generate_series(1, 20) i",
        "update f set x = 1 where id = 1",
        "update f set x = null",
        "update f set id = -id",
        "delete from f where id = -2",
    )
    for number in range(20):
        write.run(f"insert into t values (-{number} - 1, null, null, 1)")
    write.run(
        "do $$ begin insert into t values (9999, null, null, 2); "
        "begin insert into t values (10000, null, null, 3); "
        "exception when others then null; end; end $$"
    )
    cdc_run(mirrored)
    for table in ("t", "f"):
        assert read.texts(table) == write.texts(table)


def test_the_latest_state_of_a_row_decides_and_what_could_not_be_told_is_logged(
    write: Database, read: Database, mirrored: Configuration, cdc_run: Run
) -> None:
    write.run(TABLE.format("float8", ""))
    cdc_run(mirrored)
    write.run(
        "insert into t values (1, 'NaN'), (2, null), (3, 'NaN')",
        "update t set x = 1 where id = 1",
        "delete from t where id = 3",
        "update t set v = 5 where id = 2",
    )
    ran = cdc_run(mirrored)
    assert ran.stderr.count("could not be told") == 1
    assert read.texts("t") == write.texts("t")
    write.run("insert into t values (4, null)")
    assert "could not be told" not in cdc_run(mirrored).stderr


def test_a_row_that_is_mended_lets_the_stream_go_on(
    write: Database, read: Database, mirrored: Configuration, cdc_run: Run
) -> None:
    write.run(TABLE.format("numeric", ""))
    cdc_run(mirrored)
    write.run("insert into t values (1, 'NaN')", "insert into t values (2, 1)")
    refused(cdc_run(mirrored, succeeds=False))
    write.run("update t set x = 0 where id = 1")
    cdc_run(mirrored)
    assert read.texts("t") == write.texts("t")


KEYS = {
    "k numeric": ("1.0", "1.5"),
    "k text": ("a", "Straße % '"),
    "k mood": ("ok", "so so"),
    "k price": ("1.00", "2.00"),
    "k varchar(9)": ("a", "b"),
    "k bytea": ("\\x00", "\\xff5c"),
    "k int[]": ("{1,NULL}", "{}"),
    "k char(3)": ("a  ", "b  "),
    "k bool": ("t", "f"),
    "k timestamptz": ("2024-02-29 10:00:00+00", "infinity"),
    'k int default 5, "odd % ""k""" uuid': (f"{'0' * 8}-1111-1111-1111-{'0' * 12}", f"{'f' * 32}"),
}


@pytest.mark.parametrize("columns", KEYS)
def test_rows_are_found_again_by_any_key(write: Database, columns: str) -> None:
    name = 'odd % "k"' if "odd" in columns else "k"
    key = f"k, {psycopg.sql.Identifier(name).as_string()}" if "odd" in columns else "k"
    write.run(
        "create type mood as enum ('ok', 'so so')",
        "create domain price as numeric(10,2)",
        f'create table "T %" ({columns}, "x %" float8, y numeric, primary key ({key}))',
    )
    quoted = psycopg.sql.Identifier(name).as_string().replace("%", "%%")
    for value, x in zip(KEYS[columns], (None, "-Infinity"), strict=True):
        insert = f'insert into "T %%" ({quoted}, "x %%") values (%s, %s)'
        write.connection.execute(insert.encode(), [value, x])
    with closing(connect(write.dsn)) as source:
        schema = describe(source, [TableName("public", "T %")])
    relation = Relations(schema).known(TableName("public", "T %"))
    keys = {("5", value) if "odd" in columns else (value,): 1 for value in KEYS[columns]}
    with closing(CurrentRows(lambda: connect(write.dsn), schema)) as rows:
        found = rows.find(relation, keys, ["x %", "y"])
    assert {row.key: row.not_numbers for row in found} == dict(
        zip(keys, ([], ["x %"]), strict=True)
    )


def test_rows_of_a_table_that_is_gone_are_not_found(write: Database) -> None:
    write.run(TABLE.format("float8", ""))
    with closing(connect(write.dsn)) as source:
        schema = describe(source, [TableName("public", "t")])
    relation = Relations(schema).known(TableName("public", "t"))
    changes = ("alter table t alter id type text", "alter table t rename x to z", "drop table t")
    for change in changes:
        write.run(change)
        with closing(CurrentRows(lambda: connect(write.dsn), schema)) as rows:
            assert rows.find(relation, {("1",): 1}, ["x"]) == []


def test_a_table_that_is_locked_is_waited_for_a_few_seconds_and_tried_again(
    write: Database,
) -> None:
    """The stream's feedback must not wait as long as the server waits for it."""
    write.run(TABLE.format("float8", ""))
    with closing(connect(write.dsn)) as source:
        schema = describe(source, [TableName("public", "t")])
    relation = Relations(schema).known(TableName("public", "t"))
    with write.connect(autocommit=False) as other:
        other.execute("lock table t in access exclusive mode")
        with closing(CurrentRows(lambda: connect(write.dsn), schema)) as rows:
            with pytest.raises(SourceUnavailable):
                rows.find(relation, {("1",): 1}, ["x"])


def test_a_key_that_is_no_number(write: Database, mirrored: Configuration, cdc_run: Run) -> None:
    write.run(
        "create table t (k numeric primary key, v int)",
        "insert into t values ('NaN', 1)",
    )
    cdc_run(mirrored)
    write.run("delete from t")
    refused(cdc_run(mirrored, succeeds=False), '"k"')


def test_no_number_in_a_whole_old_row(
    write: Database, mirrored: Configuration, cdc_run: Run
) -> None:
    write.run(
        "create table t (id int primary key, x float8 not null)",
        "alter table t replica identity full",
        "insert into t values (1, 'NaN')",
    )
    cdc_run(mirrored)
    write.run("delete from t")
    refused(cdc_run(mirrored, succeeds=False), '"x"')


def test_insert_only_tables_are_refused_unless_their_nulls_are_trusted(
    write: Database, read: Database, configuration: Configure, cdc_run: Run
) -> None:
    write.run("create table log (what text, x float8)", "create table other (what text, x int)")
    mirrors = [{"source": f"public.{name}", "insert_only": True} for name in ("log", "other")]
    wanted = configuration("wal2json", mirrors=mirrors)
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 2
    for part in ("public.log", '"x"', "trust_nulls"):
        assert part in ran.stderr
    assert any(f.blocks and "public.log" in f.what for f in check(wanted.settings()))
    trusting = wanted.with_(source={"trust_nulls": ["public.l*"]})
    assert not [f for f in check(trusting.settings()) if f.blocks]
    cdc_run(trusting)
    write.run("insert into log values ('a', null), ('b', 1)", "insert into other values ('c')")
    cdc_run(trusting)
    assert read.texts("log") == write.texts("log")


@pytest.fixture
def reader(write: Database) -> Iterator[str]:
    role = f"role_{write.name}"
    write.run(f"create role {role} login replication")
    yield role
    write.run(f"drop owned by {role}", f"drop role {role}")


def test_a_role_that_may_not_look_rows_up_is_refused_with_what_to_grant(
    write: Database, mirrored: Configuration, cdc_run: Run, reader: str
) -> None:
    write.run(TABLE.format("float8", ""))
    dsn = psycopg.conninfo.make_conninfo(write.dsn, user=reader)
    wanted = mirrored.with_(source={"dsn": dsn})
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 3
    assert "grant select on public.t" in ran.stderr
    assert any(f.blocks and "grant select" in f.remedy for f in check(wanted.settings()))
    write.run(f"grant select on t to {reader}")
    cdc_run(wanted)
    write.run("alter table t enable row level security")
    assert cdc_run(wanted, succeeds=False).returncode == 3


@pytest.fixture
def stuck_commits(write: Database) -> Iterator[None]:
    """Have commits wait for a standby that does not exist."""
    write.run(
        "set synchronous_commit = local",
        "alter system set synchronous_standby_names = 'nobody'",
        "select pg_reload_conf()",
    )
    until(lambda: write.value("show synchronous_standby_names") == "nobody")
    yield
    write.run("alter system reset synchronous_standby_names", "select pg_reload_conf()")
    until(lambda: write.value("show synchronous_standby_names") == "")


WAITING = "select pid from pg_stat_activity where wait_event = 'SyncRep'"


@pytest.mark.usefixtures("stuck_commits")
def test_a_commit_that_is_streamed_before_it_is_visible_is_waited_for(
    write: Database,
    read: Database,
    mirrored: Configuration,
    cdc_start: Callable[..., RunningDaemon],
) -> None:
    write.run(TABLE.format("float8", ""))
    daemon = cdc_start(mirrored)
    daemon.wait_started()
    with write.connect() as other, ThreadPoolExecutor() as pool:
        insert = pool.submit(other.execute, "insert into t values (1, 'NaN')")
        daemon.wait_until(lambda: write.rows(WAITING))
        sees = "select 1 from pg_stat_activity where query like '%%pg_visible_in_snapshot%%'"
        daemon.wait_until(lambda: write.rows(f"{sees} and pid <> pg_backend_pid()"))
        assert read.rows("select * from t") == []
        until(lambda: unstuck(write) or insert.done())
        with suppress(psycopg.Error):
            insert.result()
    assert daemon.ends() == 6
    assert read.rows("select * from t") == []


def unstuck(write: Database) -> bool:
    return bool(write.rows(f"select pg_cancel_backend(pid) from ({WAITING}) w"))


# What `cdc check` tells.


def told(configuration: Configuration, table: str) -> list[Finding]:
    return [f for f in check(configuration.settings()) if table in f.what and "null" in f.what]


def test_check_tells_which_nulls_are_looked_up(write: Database, mirrored: Configuration) -> None:
    write.run(
        TABLE.format("float8", ""),
        "create table safe (id int primary key, n bigint, x float8 not null)",
    )
    (finding,) = told(mirrored, "public.t")
    assert not finding.blocks
    assert "wal2json 2.6" in finding.remedy
    assert not told(mirrored, "public.safe")
    assert not told(mirrored.with_(source={"trust_nulls": ["*.*"]}), "public.t")
    assert not told(mirrored.with_(source={"plugin": "pgoutput"}), "public.t")


def test_the_plugin_is_asked_whether_it_knows_an_option(write: Database) -> None:
    with closing(connect_replication(write.dsn)) as replication:
        try_plugin(replication, "wal2json", milliseconds=2000)
        assert knows_options(replication, {"include-lsn": "1"})
        assert not knows_options(replication, {"include-lsn": "1", "no-such-option": "1"})


@pytest.mark.parametrize("required", ["", "not null"])
def test_check_finds_rows_that_hold_no_number_now(
    write: Database, mirrored: Configuration, required: str
) -> None:
    write.run(TABLE.format("numeric", required), "insert into t values (1, 1), (2, 'NaN')")
    found = [f for f in check(mirrored.settings()) if f.blocks]
    assert len(found) == 1
    assert "public.t" in found[0].what
    assert '"x"' in found[0].what

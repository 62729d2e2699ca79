"""Source tables that change: followed, or a stop that says what mends it, and nothing is lost."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from cdc.operate.check import check
from tests.conftest import Configuration, Database, RunningDaemon
from tests.integration.test_verify import verify

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
Run = Callable[..., Any]
MIRROR = [{"source": "public.t"}]
FOLLOW = {"follow_schema": True}
EXIT = 8


def equal(write: Database, read: Database, table: str = "t", target: str | None = None) -> None:
    assert read.texts(target or table) == write.texts(table)


def stops(ran: Any, *said: str) -> str:
    """Expect a stop for a changed schema; give what it says."""
    assert ran.returncode == EXIT, ran.stderr
    assert "Traceback" not in ran.stderr
    for words in said:
        assert words in ran.stderr
    return str(ran.stderr)


def advice(told: str) -> list[str]:
    """Give the statements that the hint of a stop offers."""
    return re.findall(r"(?:alter table|delete from) .*?;|alter table \S+ rename .*?(?=;)", told)


@pytest.fixture
def begun(write: Database, configuration: Configure, cdc_run: Run, plugin: str) -> Configuration:
    """A mirror of t (id, v), of which row 1 has come."""
    write.run("create table t (id int primary key, v text)")
    wanted = configuration(plugin, mirrors=MIRROR)
    cdc_run(wanted)
    write.run("insert into t values (1, 'a')")
    cdc_run(wanted)
    return wanted


# A column is added.

DEFAULTS = [
    ("int", ""),
    ("int", "default 7"),
    ("numeric(10,3)", "not null default 1.5"),
    ("text", "default 'it''s \\ 100%'"),
    ("timestamptz", "default now()"),
    ("int[]", "default '{1,NULL}'"),
    ("text[]", """default '{"a,b","{c}"}'"""),
    ("jsonb", """default '{"a": [1]}'"""),
    ("bytea", "default '\\x00ff'"),
    ('"Odd Type"', "default 'so so'"),
]


def test_added_columns_are_followed_with_what_their_defaults_gave_the_rows_from_before(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run("create type \"Odd Type\" as enum ('ok', 'so so')", "insert into t values (2, 'b')")
    for number, (kind, default) in enumerate(DEFAULTS):
        write.run(
            f"alter table t add column c{number} {kind} {default}",
            f"insert into t (id, v) values ({10 + number}, 'between')",
        )
    write.run("update t set v = 'moved', id = 4 where id = 1")
    cdc_run(begun.with_(projection=FOLLOW))
    equal(write, read)


def test_a_column_added_while_streaming_and_inside_a_transaction_is_followed(
    begun: Configuration, write: Database, read: Database, cdc_start: Start
) -> None:
    daemon = cdc_start(begun.with_(projection=FOLLOW))
    daemon.wait_for(write.run("insert into t values (2, 'b')"))
    daemon.wait_for(
        write.commit(
            "insert into t values (3, 'c')",
            "alter table t add column w int default 7",
            "insert into t values (4, 'd', 8)",
            'alter table t add column "X y" text',
            "update t set \"X y\" = 'e' where id < 3",
        )
    )
    equal(write, read)
    daemon.wait_for(write.run("insert into t values (5, 'f', 9, 'g')"))
    equal(write, read)
    assert daemon.stop() == 0


def test_masks_and_new_names_and_exclusions_hold_for_a_column_that_is_followed(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table t (id int primary key)")
    mirror = {
        "source": "public.*",
        "rename": {"w": "renamed"},
        "mask": {"s": "hash", "n": "null"},
        "exclude": ["x"],
    }
    wanted = configuration(plugin, mirrors=[mirror]).with_(projection=FOLLOW)
    cdc_run(wanted)
    write.run("insert into t values (1)")
    cdc_run(wanted)
    for name in "wsnx":
        write.run(f"alter table t add column {name} text default 'secret'")
    write.run("insert into t values (2)")
    cdc_run(wanted)
    (one, two) = read.rows("select to_jsonb(t) - 'id' from t order by id")
    assert one == two
    assert one[0].keys() == {"renamed", "s", "n"}
    assert one[0]["renamed"] == "secret"
    assert len(one[0]["s"]) == 64
    assert one[0]["n"] is None


def test_an_added_column_that_is_not_followed_stops_with_the_ddl_and_goes_on_after_it(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(
        "insert into t values (2, 'b')",
        "alter table t add column w int default 7, add column x text",
        "insert into t values (3, 'c', 8, 'x')",
    )
    told = stops(cdc_run(begun, succeeds=False), "public.t", '"w", "x"', "follow_schema")
    read.run(*advice(told))
    cdc_run(begun)
    equal(write, read)


def test_an_added_column_stops_a_running_daemon_at_the_transaction_that_has_it(
    begun: Configuration, write: Database, read: Database, cdc_start: Start, cdc_run: Run
) -> None:
    daemon = cdc_start(begun)
    before = write.run("insert into t values (2, 'b')")
    daemon.wait_for(before)
    write.run("alter table t add column w int default 7", "insert into t values (3, 'c', 8)")
    assert daemon.ends() == EXIT
    assert re.search(r"public\.t: new columns.*\"w\".*in the transaction committed at", daemon.log)
    assert "Traceback" not in daemon.log
    equal_but_for = read.rows("select id from t order by id")
    assert equal_but_for == [(1,), (2,)]
    read.run(*advice(daemon.log))
    cdc_run(begun)
    equal(write, read)


@pytest.mark.parametrize(
    "added",
    [
        "add w uuid default gen_random_uuid()",
        "add w int generated always as identity",
        "add w serial",
    ],
)
def test_a_column_whose_past_is_not_known_is_not_followed(
    begun: Configuration, write: Database, read: Database, cdc_run: Run, added: str
) -> None:
    write.run(f"alter table t {added}", "insert into t (id, v) values (2, 'b')")
    told = stops(cdc_run(begun.with_(projection=FOLLOW), succeeds=False), '"w"', "from before")
    read.run(*advice(told))
    read.connection.execute("update t set w = %s", write.rows("select w from t where id = 1")[0])
    cdc_run(begun.with_(projection=FOLLOW))
    equal(write, read)


def test_a_generated_column_that_is_added_stops_nothing_and_is_left_out(
    begun: Configuration, write: Database, read: Database, cdc_start: Start
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_for(write.run("insert into t values (2, 'b')"))
    daemon.wait_for(
        write.run(
            "alter table t add column g int generated always as (id * 2) stored",
            "insert into t values (3, 'c')",
            "update t set v = 'd'",
        )
    )
    assert read.rows("select * from t order by id") == [(1, "d"), (2, "d"), (3, "d")]


def test_what_happens_to_a_column_that_is_left_out_stops_nothing(
    begun: Configuration, write: Database, read: Database, cdc_start: Start, cdc_run: Run
) -> None:
    write.run("alter table t add column x int default 1")
    wanted = begun.with_(projection={"mirrors": [{"source": "public.t", "exclude": ["x"]}]})
    daemon = cdc_start(wanted)
    daemon.wait_for(write.run("insert into t values (2, 'b', 5)"))
    write.run("alter table t alter column x type text", "update t set x = 'y', v = 'c'")
    daemon.wait_for(write.run())
    assert daemon.stop() == 0
    assert read.rows("select * from t order by id") == [(1, "c"), (2, "c")]
    cdc_run(wanted)


def test_check_says_before_the_start_what_would_stop_it(
    begun: Configuration, write: Database, read: Database
) -> None:
    write.run("alter table t add column w int default 7")
    assert [f.what for f in check(begun.settings()) if f.blocks] == [
        'public.t: new columns, which the read table t lacks: "w" (found at start)'
    ]
    followed = begun.with_(projection=FOLLOW).settings()
    assert [f.what for f in check(followed) if f.blocks] == []
    assert read.rows("select * from t") == [(1, "a")]
    write.run("alter table t rename column v to x")
    (found,) = [f for f in check(followed) if f.blocks]
    assert 'column "v" was renamed to "x"' in found.what
    assert 'rename column "v" to "x"' in found.remedy


# A column is dropped.


def test_a_column_dropped_while_rows_that_have_it_are_pending_stops_nothing(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(
        "insert into t values (2, 'b')",
        "update t set v = 'c' where id = 1",
        "alter table t drop column v",
        "insert into t values (3)",
    )
    cdc_run(begun)
    assert read.rows("select id from t order by id") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("follow", [True, False])
def test_a_column_that_came_and_went_meanwhile_stops_nothing(
    begun: Configuration, write: Database, read: Database, cdc_run: Run, follow: bool
) -> None:
    write.run(
        "alter table t add column w int default 7",
        "insert into t values (2, 'b', 8)",
        "update t set w = 9, id = 5 where id = 1",
        "delete from t where id = 2",
        "alter table t drop column w",
        "insert into t values (3, 'c')",
    )
    cdc_run(begun.with_(projection={"follow_schema": follow}))
    equal(write, read)


def test_a_column_dropped_and_made_again_is_refused_until_its_past_is_right(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(
        "alter table t drop column v",
        "alter table t add column v text default 'new'",
        "insert into t values (2, 'b')",
    )
    told = stops(cdc_run(begun.with_(projection=FOLLOW), succeeds=False), '"v"', "another one")
    read.run("update t set v = 'new'", *advice(told))
    cdc_run(begun.with_(projection=FOLLOW))
    equal(write, read)


# A column is renamed.


@pytest.mark.parametrize("follow", [True, False])
def test_a_renamed_column_stops_with_the_ddl_and_pending_rows_go_where_they_belong(
    begun: Configuration, write: Database, read: Database, cdc_run: Run, follow: bool
) -> None:
    wanted = begun.with_(projection={"follow_schema": follow})
    write.run(
        "insert into t values (2, 'b')",
        'alter table t rename column v to "V 2"',
        "insert into t values (3, 'c')",
        "update t set \"V 2\" = 'd' where id = 1",
    )
    told = stops(cdc_run(wanted, succeeds=False), 'column "v" was renamed to "V 2"')
    read.run(*advice(told))
    cdc_run(wanted)
    equal(write, read)


def test_a_renamed_column_may_keep_the_read_columns_name(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(
        "insert into t values (2, 'b')",
        "alter table t rename column v to w",
        "insert into t values (3, 'c')",
    )
    renaming = [{"source": "public.t", "rename": {"w": "v"}}]
    stops(cdc_run(begun, succeeds=False), 'rename = { "w" = "v" }')
    cdc_run(begun.with_(projection={"mirrors": renaming}))
    assert read.rows("select * from t order by id") == [(1, "a"), (2, "b"), (3, "c")]


def test_a_column_renamed_while_streaming_stops_and_goes_on(
    begun: Configuration, write: Database, read: Database, cdc_start: Start, cdc_run: Run
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_started()
    write.commit(
        "insert into t values (2, 'b')",
        "alter table t rename column v to w",
        "insert into t values (3, 'c')",
    )
    assert daemon.ends() == EXIT
    read.run(*advice(daemon.log))
    cdc_run(begun)
    equal(write, read)


@pytest.mark.parametrize("streaming", [True, False])
def test_columns_that_exchange_their_names_stop_until_their_rows_are_put_right(
    begun: Configuration,
    write: Database,
    read: Database,
    cdc_start: Start,
    cdc_run: Run,
    streaming: bool,
) -> None:
    """They are told by nothing in the stream: each has a name and a type that there was before."""
    write.run("alter table t add w text default 'w'")
    cdc_run(begun.with_(projection=FOLLOW))
    rename = "alter table t rename"
    exchange = (f"{rename} v to x", f"{rename} w to v", f"{rename} x to w")
    if streaming:
        daemon = cdc_start(begun)
        daemon.wait_for(write.run("insert into t (id, v, w) values (2, 'before', 'b')"))
        write.commit(*exchange)
        assert daemon.ends() == EXIT
        assert "another one given its name" in daemon.log
    else:
        write.commit("insert into t (id, v, w) values (2, 'before', 'b')", *exchange)
    write.run("insert into t (id, v, w) values (3, 'after', 'a')")
    told = stops(cdc_run(begun, succeeds=False), "holds the values of the one before")
    read.run(*advice(told))
    daemon = cdc_start(begun)
    daemon.wait_started()
    daemon.wait_for(write.run("select 1"))  # what was pending, by the names of before
    verify(begun, daemon, repair=True)
    equal(write, read)


def test_a_key_column_is_renamed(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(
        "insert into t values (2, 'b')",
        "update t set id = 5 where id = 1",
        "alter table t rename column id to key",
        "update t set key = 6 where key = 5",
        "insert into t values (3, 'c')",
    )
    told = stops(cdc_run(begun, succeeds=False), '"id" was renamed to "key"')
    read.run(*advice(told))
    cdc_run(begun)
    equal(write, read)
    write.run("update t set v = 'd'", "delete from t where key = 2")
    cdc_run(begun)
    equal(write, read)


# A column gets another type.


@pytest.mark.parametrize(
    "change",
    ["type bigint", "type text", "type numeric(20,2)"],
)
def test_another_type_stops_with_the_ddl_and_goes_on_after_it(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    cdc_run: Run,
    plugin: str,
    change: str,
) -> None:
    write.run("create table t (id int primary key, v int)")
    wanted = configuration(plugin, mirrors=MIRROR)
    daemon = cdc_start(wanted)
    daemon.wait_started()
    daemon.wait_for(write.run("insert into t values (1, 1)"))
    write.commit(
        "insert into t values (2, 2)",
        f"alter table t alter column v {change}",
        "insert into t values (3, 3)",
    )
    assert daemon.ends() in {4, EXIT}
    told = daemon.log
    if "start again to be told what mends it" in told:  # it looked just then
        told = stops(cdc_run(wanted, succeeds=False))
    assert 'column "v" is integer, not' in told
    assert "Traceback" not in told
    read.run(re.search(r"alter table .*?;", told.replace("\n", " "))[0])
    cdc_run(wanted)
    equal(write, read)


# The table itself.


def test_a_renamed_table_goes_on_under_its_new_name_with_its_pending_rows(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(
        "insert into t values (2, 'b')",
        "alter table t rename to t2",
        "insert into t2 values (3, 'c')",
    )
    assert cdc_run(begun, succeeds=False).returncode == 2
    renamed = begun.with_(projection={"mirrors": [{"source": "public.t2", "target": "t"}]})
    cdc_run(renamed)
    equal(write, read, "t2", "t")
    write.run("update t2 set v = 'd'")
    cdc_run(renamed)
    equal(write, read, "t2", "t")


def test_a_table_replaced_during_downtime_is_refused_until_it_is_filled_anew(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(
        "drop table t",
        "create table t (id int primary key, v text)",
    )
    told = stops(cdc_run(begun, succeeds=False), "dropped and made anew")
    read.run("truncate t", *advice(told))
    cdc_run(begun)
    write.run("insert into t values (5, 'e')")
    cdc_run(begun)
    equal(write, read)


def test_a_start_that_is_refused_changes_no_read_table(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run("alter table t add column w int default 7")
    read.run("update cdc_checkpoint set system_identifier = '1'")
    assert cdc_run(begun.with_(projection=FOLLOW), succeeds=False).returncode == 11
    assert read.rows("select * from t") == [(1, "a")]


# Projectors.

PROJECTOR = """
import sqlalchemy as sa
from cdc import Delete, Deleted, Upsert, projector

read = sa.Table("r", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("v", sa.Text))

@projector("public.t", into=read)
def carried(change):
    if isinstance(change, Deleted):
        return Delete(read, id=change.key["id"])
    return Upsert(read, id=change.row["id"], v=change.row["v"])
"""


def test_a_projector_goes_on_while_the_columns_it_uses_exist(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table t (id int primary key, v text, u int)")
    wanted = configuration(plugin, modules=["carrying"])
    (wanted.folder / "carrying.py").write_text(PROJECTOR)
    cdc_run(wanted)
    write.run(
        "insert into t values (1, 'a', 1)",
        "alter table t add column w int default 7",
        "insert into t values (2, 'b', 2, 2)",
        "alter table t drop column u",
        "alter table t alter column w type text",
        "update t set v = v || w, id = id + 10",
    )
    cdc_run(wanted)
    assert read.rows("select * from r order by id") == [(11, "a7"), (12, "b2")]
    write.run("insert into t values (3, 'c')", "alter table t drop column v")
    write.run("insert into t values (4)")
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 5
    assert 'public.t has no column "v"' in ran.stderr

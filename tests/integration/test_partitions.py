"""Partitioned tables: their rows are one table's, whatever is attached, detached or renamed."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.conftest import Configuration, Database, RunningDaemon, require

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
Run = Callable[..., Any]
MIRROR = [{"source": "public.p"}]
ROOT = (
    "create table p (id int, v text, primary key (id)) partition by range (id)",
    "create table p1 partition of p for values from (0) to (10)",
)


def equal(write: Database, read: Database, table: str = "p") -> None:
    assert read.texts(table) == write.texts(table)


@pytest.fixture
def begun(write: Database, configuration: Configure, cdc_run: Run, plugin: str) -> Configuration:
    """A mirror of p, whose one partition is p1."""
    write.run(*ROOT, "create schema app")
    wanted = configuration(plugin, mirrors=MIRROR)
    cdc_run(wanted)
    return wanted


NEW_PARTITIONS = {
    "made as one": ["create table p2 partition of p for values from (10) to (20)"],
    "attached": [
        "create table p2 (v text, id int not null)",
        "alter table p attach partition p2 for values from (10) to (20)",
    ],
    "of another schema": ["create table app.p2 partition of p for values from (10) to (20)"],
    "with a strange name": [
        'create table app."P ""2"".ü" partition of p for values from (10) to (20)'
    ],
    "of its own partitions": [
        "create table p2 partition of p for values from (10) to (20) partition by list (id)",
        "create table p2a partition of p2 for values in (10, 11, 12)",
        "create table p2b partition of p2 default",
    ],
}
ROWS = [
    "insert into p values (1, 'a'), (2, 'b'), (11, 'c'), (12, 'd')",
    "update p set v = v || '!'",
    "update p set id = 13 where id = 1",
    "update p set id = 3 where id = 11",
    "delete from p where id = 12",
]


@pytest.mark.parametrize("made", NEW_PARTITIONS)
@pytest.mark.parametrize("one_transaction", [True, False])
def test_rows_of_a_partition_that_is_new_are_mirrored(
    begun: Configuration,
    write: Database,
    read: Database,
    cdc_start: Start,
    made: str,
    one_transaction: bool,
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_for(write.run("insert into p values (5, 'before')"))
    (write.commit if one_transaction else write.run)(*NEW_PARTITIONS[made], *ROWS)
    daemon.wait_for(write.run())
    assert read.value("select count(*) from p") == 4
    equal(write, read)
    assert daemon.stop() == 0


def test_partitions_that_were_new_during_downtime_are_mirrored(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    for made in ("made as one", "of its own partitions"):
        write.run(*NEW_PARTITIONS[made], *ROWS)
        cdc_run(begun)
        equal(write, read)
        write.run("delete from p", "drop table p2")


def test_a_partition_renamed_during_downtime_stops_until_the_operator_tells_what_it_was(
    begun: Configuration, write: Database, read: Database, cdc_run: Run, plugin: str
) -> None:
    write.run(*NEW_PARTITIONS["made as one"], *ROWS, "alter table p2 rename to p3")
    write.run("insert into p values (14, 'e')", "update p set v = 'f' where id = 13")
    if plugin == "wal2json":  # pgoutput tells the root alone
        ran = cdc_run(begun, succeeds=False)
        assert ran.returncode == 8
        assert "public.p2 has changes" in ran.stderr
        assert "create table public.p2 partition of public.p for" in ran.stderr
        write.run("create table p2 partition of p for values from (90) to (91)")
    cdc_run(begun)
    equal(write, read)


def test_a_partition_that_is_renamed_while_streaming_stays_one(
    begun: Configuration, write: Database, read: Database, cdc_start: Start
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_for(write.run("insert into p values (1, 'a')"))
    daemon.wait_for(
        write.run(
            "insert into p values (2, 'b')",
            "alter table p1 rename to old",
            "insert into p values (3, 'c')",
        )
    )
    # A name that a partition had for a moment only cannot be looked up any more.
    daemon.wait_for(
        write.run("alter table old set schema app", "update p set v = 'd' where id < 3")
    )
    equal(write, read)


def test_changes_of_a_detached_partition_are_its_own_from_then_on(
    begun: Configuration, write: Database, read: Database, cdc_start: Start
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_for(write.run("insert into p values (1, 'a')"))
    daemon.wait_for(
        write.run(
            "insert into p values (2, 'b')",
            "alter table p detach partition p1",
            "insert into p1 values (3, 'c')",
            "update p1 set v = 'd'",
            "delete from p1 where id = 1",
            "create table p0 partition of p for values from (0) to (10)",
            "insert into p values (4, 'e')",
        )
    )
    assert read.rows("select * from p order by id") == [(1, "a"), (2, "b"), (4, "e")]


def test_a_partition_that_is_dropped_stops_nothing(
    begun: Configuration, write: Database, read: Database, cdc_start: Start, cdc_run: Run
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_for(
        write.run(
            *NEW_PARTITIONS["made as one"],
            "insert into p values (1, 'a'), (11, 'b')",
        )
    )
    assert daemon.stop() == 0
    write.run("insert into p values (12, 'c')", "drop table p2", "insert into p values (2, 'd')")
    cdc_run(begun)
    assert read.rows("select * from p where id < 10 order by id") == [(1, "a"), (2, "d")]


def test_tables_that_nobody_mirrors_stop_nothing_and_are_not_mirrored(
    begun: Configuration, write: Database, read: Database, cdc_start: Start, cdc_run: Run
) -> None:
    daemon = cdc_start(begun)
    strange = 'app."P ""1"".ü"'
    statements = [
        "create table scratch (n int)",
        "insert into scratch select generate_series(1, 100)",
        "update scratch set n = n + 1",
        "delete from scratch where n = 5",
        "truncate scratch",
        f"create table {strange} (id int primary key, v text)",
        f"insert into {strange} values (1, 'x')",
        "insert into p values (1, 'a')",
    ]
    daemon.wait_for(write.run(*statements))
    assert read.rows("select * from p") == [(1, "a")]
    assert daemon.stop() == 0
    write.run("insert into scratch values (7)", "drop table scratch", "delete from p")
    cdc_run(begun)
    assert read.rows("select * from p") == []


FILLED = (
    "create table p2 (id int primary key, v text)",
    "insert into p2 values (11, 'there before')",
    "alter table p attach partition p2 for values from (10) to (20)",
)


def mend(write: Database, read: Database, told: str) -> None:
    """Do what the error says: bring the rows over, and note that they were."""
    assert "public.p2 was attached to public.p and has rows" in told
    for row in write.rows("select id, v from p2"):
        read.connection.execute("insert into p values (%s, %s) on conflict do nothing", row)
    read.run(re.search(r"insert into cdc_source_column .*?\);", told.replace("\n", " "))[0])


def test_a_partition_attached_with_rows_stops_the_daemon_until_they_were_brought_over(
    begun: Configuration, write: Database, read: Database, cdc_start: Start, cdc_run: Run
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_for(write.run("insert into p values (1, 'a')"))
    write.run(*FILLED)
    assert daemon.ends() == 8
    mend(write, read, daemon.log)
    write.run("update p set v = v || '!'", "insert into p values (12, 'b')")
    cdc_run(begun)
    equal(write, read)


def test_a_partition_attached_with_rows_during_downtime_is_refused_until_they_were_brought_over(
    begun: Configuration, write: Database, read: Database, cdc_run: Run
) -> None:
    write.run(*FILLED, "update p set v = v || '!' where id > 11", "insert into p values (12, 'b')")
    ran = cdc_run(begun, succeeds=False)
    assert ran.returncode == 8
    mend(write, read, ran.stderr)
    cdc_run(begun)
    equal(write, read)


def look_after(moment: datetime, daemon: RunningDaemon, write: Database) -> datetime:
    """Wait for a look at the partitions, or at the publications, which follows; say when it was."""
    looked = (
        "select query_start from pg_stat_activity "
        "where query ~ 'relfilenode|pg_publication' and query_start > %s "
        "and datname = current_database() and pid <> pg_backend_pid()"
    )
    seen: list[datetime] = []

    def look() -> list[datetime]:
        seen.extend(start for (start,) in write.rows(looked, moment))
        return seen

    daemon.wait_until(look)
    return max(seen)


def test_a_partition_truncated_alone_stops_the_daemon(
    begun: Configuration, write: Database, cdc_start: Start, cdc_run: Run
) -> None:
    """wal2json tells of it; pgoutput leaves it out, and it is found by looking."""
    write.run(*NEW_PARTITIONS["made as one"])
    cdc_run(begun)
    daemon = cdc_start(begun)
    daemon.wait_for(write.run("insert into p values (1, 'a'), (11, 'b')"))
    write.run("truncate p", "insert into p values (1, 'a'), (11, 'b')")
    now = write.value("select clock_timestamp()")
    # What is seen first may be the end of a round that began before the truncate.
    look_after(look_after(now, daemon, write), daemon, write)
    write.run("truncate p1")
    assert daemon.ends() in {6, 8}
    assert "truncated alone" in daemon.log


def test_a_partition_that_leaves_is_told(
    begun: Configuration, write: Database, cdc_start: Start
) -> None:
    daemon = cdc_start(begun)
    daemon.wait_started()
    write.run("alter table p detach partition p1")
    daemon.wait_until(lambda: "partitions were detached or dropped" in daemon.log)
    assert daemon.stop() == 0


@pytest.mark.parametrize("key", ["primary key (k, id)", "primary key (id, k)"])
def test_random_moves_between_partitions(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str, key: str
) -> None:
    write.run(
        f"create table p (id int, k int, v text, {key}) partition by list (k)",
        *(f"create table p{k} partition of p for values in ({k})" for k in range(4)),
    )
    wanted = configuration(plugin, mirrors=MIRROR)
    cdc_run(wanted)
    write.run("insert into p select i, i % 4, 'v' || i from generate_series(1, 40) i")
    write.run(
        *(f"update p set k = (k + {n}) % 4, v = v || {n} where id % {n} = 0" for n in (1, 2, 3))
    )
    write.run("delete from p where id > 30", "truncate p", "insert into p values (1, 1, 'z')")
    cdc_run(wanted)
    equal(write, read)


def test_updates_of_a_partition_without_identity_stop_the_daemon(
    begun: Configuration, write: Database, cdc_run: Run, plugin: str
) -> None:
    if plugin == "pgoutput":
        return  # the server refuses such an update
    write.run("insert into p values (1, 'a')", "alter table p1 replica identity nothing")
    write.run("update p set v = 'b'")
    ran = cdc_run(begun, succeeds=False)
    assert ran.returncode == 6
    assert '"p1"' in ran.stderr


def test_what_is_made_unlogged_stops_the_daemon_for_its_changes_are_not_streamed(
    begun: Configuration, write: Database, read: Database, cdc_start: Start, cdc_run: Run
) -> None:
    """The server refuses it of a table that a publication names, and of partitions it does not."""
    daemon = cdc_start(begun)
    daemon.wait_started()
    write.run(
        "create unlogged table p2 partition of p for values from (10) to (20)",
        "insert into p values (11, 'not streamed')",
    )
    assert daemon.ends() == 8
    assert "public.p2 is unlogged" in daemon.log
    assert cdc_run(begun, succeeds=False).returncode == 8
    write.run("alter table p2 set logged", "insert into p values (12, 'streamed')")
    cdc_run(begun)
    assert read.texts("p") == [("12", "streamed")]


def test_a_table_made_unlogged_stops_the_daemon(
    write: Database, configuration: Configure, cdc_start: Start
) -> None:
    require(write.server.installation.wal2json, "wal2json")
    write.run("create table t (id int primary key)")
    daemon = cdc_start(configuration("wal2json", mirrors=[{"source": "public.t"}]))
    daemon.wait_started()
    write.run("alter table t set unlogged", "insert into t values (1)")
    assert daemon.ends() == 8
    assert "public.t is unlogged" in daemon.log

"""`cdc resync`: a slot that is really lost, and read tables that are right again, read meanwhile."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cdc.servers import Server
from tests import roles
from tests.acceptance.conftest import FAST, SECONDS, Pipeline, until
from tests.acceptance.test_copy_command import start, stop
from tests.acceptance.test_stuck import waits_for_lock
from tests.conftest import installation

ROWS = 5000
TABLES = ("a", "b")


@pytest.fixture(scope="module")
def small_write() -> Iterator[Server]:
    """A write database that keeps little WAL for a slot."""
    small = {"max_slot_wal_keep_size": "16MB", "max_wal_size": "64MB"}
    with Server(installation(), {**FAST, **small}) as server:
        roles.prepare_write(server)
        yield server


@pytest.fixture
def behind(small_write: Server, read: Server, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline that was copied, whose daemon is gone while its source changes."""
    plugin = "wal2json" if small_write.installation.wal2json else "pgoutput"
    made = Pipeline(small_write, read, tmp_path, plugin)
    made.source("create table a (id int primary key, v text)")
    made.source("create table b (id text primary key, v text)")
    made.source("create table log (line text)")
    for table in TABLES:
        made.source(f"insert into {table} select i, 'v' from generate_series(1, {ROWS}) i")
    made.source("insert into log select 'line ' || i from generate_series(1, 10) i")
    made.mirror("public.a", "public.b", insert_only="public.log")
    process = start(made)
    made.caught_up()
    stop(process)
    for table in TABLES:
        made.source(f"delete from {table} where id::int % 7 = 0")
        made.source(f"update {table} set v = 'new' where id::int % 5 = 0")
        made.source(f"insert into {table} select i, 'v' from generate_series(-9, 0) i")
    made.source("insert into log values ('lost')")
    yield made
    made.close()


def lose_slot(pipeline: Pipeline) -> None:
    def lost() -> bool:
        pipeline.source("select pg_logical_emit_message(true, 'other', repeat('x', 1000000))")
        with pipeline.write.connect(pipeline.name) as connection:
            connection.execute("select pg_switch_wal()")
            connection.execute("checkpoint")
        query = "select wal_status from pg_replication_slots where slot_name = '{}'"
        return pipeline.source(query.format(pipeline.name)) == [("lost",)]

    until(lost, what="the slot is lost")


def endanger_slot(pipeline: Pipeline) -> None:
    """Write until more WAL is kept than may be; it is removed by the next checkpoint."""

    def unreserved() -> bool:
        pipeline.source("select pg_logical_emit_message(true, 'other', 'x')")
        with pipeline.write.connect(pipeline.name) as connection:
            connection.execute("select pg_switch_wal()")
        query = "select wal_status from pg_replication_slots where slot_name = '{}'"
        return pipeline.source(query.format(pipeline.name)) == [("unreserved",)]

    until(unreserved, what="the slot is in danger")


def drop_slot(pipeline: Pipeline) -> None:
    pipeline.source(f"select pg_drop_replication_slot('{pipeline.name}')")


def equal(pipeline: Pipeline) -> bool:
    return all(pipeline.same(table) for table in (*TABLES, "log"))


@contextmanager
def read_meanwhile(pipeline: Pipeline) -> Iterator[list[int]]:
    """Count the rows of the read tables again and again; give the least there were."""
    least: list[int] = []
    stop_reading = threading.Event()

    def work() -> None:
        with psycopg.connect(pipeline.read.dsn(pipeline.name), autocommit=True) as connection:
            while not stop_reading.is_set():
                for table in (*TABLES, "log"):
                    row = connection.execute(f"select count(*) from {table}").fetchone()
                    least.append(row[0])

    thread = threading.Thread(target=work)
    thread.start()
    yield least
    stop_reading.set()
    thread.join()


@pytest.mark.parametrize("lose", [lose_slot, drop_slot])
def test_a_slot_that_is_gone_is_made_anew_and_the_read_tables_are_right_again(behind, lose):
    lose(behind)
    refused = behind.cdc("run")
    assert refused.returncode == (14 if lose is lose_slot else 13)
    assert "`cdc resync`" in refused.stderr
    assert not equal(behind)
    with read_meanwhile(behind) as least:
        done = behind.cdc("resync", "--yes")
    assert done.returncode == 0, done.stderr
    assert min(least) >= 10
    assert equal(behind)
    gone = ROWS // 7
    assert "rows compared, 0 missing" in done.stdout
    assert f"mirror:public.b: {ROWS - gone + 10:,} rows compared" in done.stdout
    verified = behind.cdc("verify")
    assert verified.returncode == 0, verified.stdout
    assert "not compared" in verified.stdout  # the log
    process = start(behind)
    behind.source("insert into a values (-100, 'streamed')")
    behind.caught_up()
    assert equal(behind)
    stop(process)


def test_a_slot_lost_while_the_read_database_is_locked_ends_the_daemon_and_resync_heals(behind):
    process = start(behind)
    behind.caught_up()
    with psycopg.connect(behind.read.dsn(behind.name)) as other:
        other.execute("lock table a in access exclusive mode")
        behind.source("update a set v = 'locked' where id % 3 = 0")
        until(lambda: waits_for_lock(behind), what="the write waits for the lock")
        endanger_slot(behind)
        until(lambda: "slot in danger" in behind.log(process), what="it says so")
        assert "unreserved" in behind.cdc("check").stdout
        lose_slot(behind)
        assert process.wait(SECONDS) == 14, behind.log(process)
        assert "`cdc resync`" in behind.log(process)
    assert "the slot is lost" in behind.cdc("status").stdout
    assert not equal(behind)
    done = behind.cdc("resync", "--yes")
    assert done.returncode == 0, done.stderr
    assert equal(behind)


def test_it_asks_first_and_does_nothing_while_a_daemon_streams(behind):
    answered = subprocess.run(
        behind._command(("resync",)),
        input="n\n",
        capture_output=True,
        text=True,
        check=False,
        cwd=behind.folder,
        env=behind.environment(),
        timeout=SECONDS,
    )
    assert answered.returncode == 1
    assert "Go on?" in answered.stderr
    process = start(behind)
    behind.caught_up()
    refused = behind.cdc("resync", "--yes")
    assert (refused.returncode, "error:" in refused.stderr) == (4, True), refused.stderr
    assert equal(behind)
    stop(process)


@pytest.mark.parametrize("again", ["run", "resync"])
def test_killed_in_the_middle_it_is_finished_afterwards(behind, again):
    drop_slot(behind)
    with psycopg.connect(behind.read.dsn(behind.name)) as other:
        other.execute("lock table b in exclusive mode")
        command = subprocess.Popen(
            behind._command(("resync", "--yes")),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=behind.folder,
            env=behind.environment(),
        )
        behind.processes.append(command)
        done = "select count(*) from cdc_copy where purpose = 'resync' and state <> 'waiting'"
        until(lambda: behind.target(done)[0][0], what="it copies")
        command.kill()
        command.wait()
    if again == "resync":
        assert behind.cdc("resync", "--yes").returncode == 0
    else:
        start(behind)
        behind.caught_up()
        due = "select count(*) from cdc_verify where phase <> 'done'"
        until(lambda: behind.target(due) == [(0,)], what="what is gone was looked for")
    assert equal(behind)

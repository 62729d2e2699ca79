"""Whatever is killed when, each transaction takes effect once."""

import ctypes
import json
import re
import signal
import sys
import urllib.request
from pathlib import Path

import psycopg
import pytest

from cdc.servers import Server
from tests import roles
from tests.acceptance.conftest import FAST, Pipeline, until
from tests.conftest import installation


def test_a_transaction_of_two_million_rows_is_atomic_and_memory_stays_bounded(pipeline):
    pipeline.source("create table big (id int primary key, a text, b numeric, c timestamptz)")
    pipeline.mirror("public.big")
    process = pipeline.start()
    pipeline.caught_up()
    pipeline.source(
        "insert into big select g, 'some text of row ' || g, g * 1.5, now() "
        "from generate_series(1, 2000000) g"
    )
    mark = pipeline.source("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0]
    seen = set()

    def applied() -> bool:
        seen.add(pipeline.target("select count(*) from (select from big limit 1) t")[0][0])
        return pipeline.checkpoint() >= mark

    until(applied, what="the large transaction is applied", seconds=240)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert int(peak[1]) < 200 * 1024
    assert pipeline.target("select count(*) from big") == [(2_000_000,)]
    assert pipeline.same("big")
    process.terminate()
    assert process.wait(30) == 0


def test_killed_inside_a_large_transaction_it_is_applied_once(pipeline):
    pipeline.source("create table big (id int primary key, a text)")
    pipeline.mirror("public.big")
    process = pipeline.start()
    pipeline.caught_up()
    pipeline.source("insert into big select g, repeat('x', 100) from generate_series(1, 300000) g")
    until(lambda: writing(pipeline), what="pieces of it are being written")
    process.kill()
    process.wait()
    assert pipeline.target("select count(*) from big") == [(0,)]
    assert pipeline.cdc("run", "--until", "now").returncode == 0
    assert pipeline.same("big")


def writing(pipeline: Pipeline) -> bool:
    """Tell whether the daemon's read transaction holds a transaction id: it has written."""
    return bool(
        pipeline.target(
            "select 1 from pg_stat_activity where datname = current_database() "
            "and application_name = 'cdc' and backend_xid is not null"
        )
    )


@pytest.mark.parametrize("side", ["read", "write"])
def test_a_connection_cut_while_writing_loses_nothing(pipeline, side):
    pipeline.source("create table t (id int primary key, n int)")
    pipeline.mirror("public.t")
    process = pipeline.start()
    pipeline.caught_up()
    server = pipeline.read if side == "read" else pipeline.write
    for cut in range(10):
        pipeline.source(
            f"insert into t select g, {cut} from generate_series({cut * 5000}, {cut * 5000 + 4999}) g"
        )
        server.psql(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cdc' "
            f"and datname = '{pipeline.name}'"
        )
        pipeline.source(f"update t set n = n + 1 where id % 7 = {cut % 7}")
    pipeline.caught_up()
    assert pipeline.same("t")
    process.terminate()
    assert process.wait(30) == 0
    assert "Traceback" not in pipeline.log(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_zero(one_pipeline, number):
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    process = one_pipeline.start()
    one_pipeline.caught_up()
    one_pipeline.source("insert into t select generate_series(1, 1000)")
    one_pipeline.caught_up()
    process.send_signal(number)
    assert process.wait(30) == 0
    (confirmed,) = one_pipeline.source(
        "select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots "
        f"where slot_name = '{one_pipeline.name}'"
    )[0]
    assert confirmed == one_pipeline.checkpoint()


@pytest.mark.skipif(sys.platform != "linux", reason="names a thread, which is Linux's tgkill")
def test_a_signal_that_interrupts_no_wait_of_the_main_thread_is_heeded(one_pipeline):
    """As one that comes just before the main thread begins to wait: here another thread gets it."""
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    process = one_pipeline.start()
    one_pipeline.caught_up()
    threads = {int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()}
    other = (threads - {process.pid}).pop()
    assert ctypes.CDLL(None).tgkill(process.pid, other, signal.SIGTERM) == 0
    assert process.wait(30) == 0


def test_a_second_signal_exits_at_once(one_pipeline):
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    process = one_pipeline.start()
    one_pipeline.caught_up()
    with psycopg.connect(one_pipeline.read.dsn(one_pipeline.name)) as reader:
        reader.execute("lock table t in access exclusive mode")
        one_pipeline.source("insert into t values (1)")
        until(
            lambda: one_pipeline.target(
                "select 1 from pg_stat_activity where wait_event_type = 'Lock' "
                "and datname = current_database()"
            ),
            what="the write waits for the lock",
        )
        process.terminate()
        until(lambda: "stopping" in one_pipeline.log(process), what="it drains")
        process.terminate()
        assert process.wait(30) == 130
    assert one_pipeline.cdc("run", "--until", "now").returncode == 0
    assert one_pipeline.same("t")


def test_a_signal_while_the_slot_waits_for_a_transaction_stops_at_once(one_pipeline):
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    with psycopg.connect(one_pipeline.write.dsn(one_pipeline.name)) as writer:
        writer.execute("insert into t values (1)")
        process = one_pipeline.start()
        until(
            lambda: one_pipeline.source(
                f"select 1 from pg_replication_slots where slot_name = '{one_pipeline.name}'"
            ),
            what="slot creation waits",
        )
        process.terminate()
        assert process.wait(15) == 0
    one_pipeline.source("insert into t values (2)")
    assert one_pipeline.cdc("run", "--until", "now").returncode == 0
    one_pipeline.source("insert into t values (3)")
    assert one_pipeline.cdc("run", "--until", "now").returncode == 0
    assert (3,) in one_pipeline.target("select id from t")


def test_a_second_daemon_stands_by_and_takes_over(one_pipeline):
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    first = one_pipeline.start()
    one_pipeline.caught_up()
    broken = one_pipeline.cdc("run", CDC_PROJECTION__MODULES='["nothing_of_that_name"]')
    assert (broken.returncode, "nothing_of_that_name" in broken.stderr) == (2, True)
    second = one_pipeline.start()
    until(lambda: "standby" in one_pipeline.log(second), what="the second stands by")
    first.kill()
    first.wait()
    one_pipeline.source("insert into t values (1)")
    one_pipeline.caught_up()
    assert "streaming" in one_pipeline.log(second)
    assert one_pipeline.same("t")


def test_a_signal_while_the_queue_is_full_drains_and_exits_zero(pipeline):
    pipeline.source("create table t (id int primary key, v text)")
    pipeline.mirror("public.t")
    process = pipeline.start(CDC_SOURCE__QUEUE_BYTES="65536", CDC_READ__BATCH_CHANGES="100")
    pipeline.caught_up()
    with psycopg.connect(pipeline.read.dsn(pipeline.name)) as reader:
        reader.execute("lock table t in access exclusive mode")
        for part in range(50):
            pipeline.source(
                f"insert into t select {part * 1000} + g, 'x' from generate_series(1, 1000) g"
            )
        url = pipeline.url(process)
        until(lambda: queued(url) > 50_000, what="the queue is full")
        process.terminate()
        until(lambda: "stopping" in pipeline.log(process), what="it drains")
    assert process.wait(30) == 0
    assert pipeline.cdc("run", "--until", "now").returncode == 0
    assert pipeline.same("t")


def queued(url: str) -> int:
    with urllib.request.urlopen(f"{url}/status") as answer:
        return int(json.load(answer)["queued_bytes"])


@pytest.mark.parametrize("rows", [1, 300_000])
def test_a_fast_shutdown_of_the_write_server_does_not_hang(tmp_path, read, rows):
    """Not while the read side is blocked, nor with the queue full; and streaming goes on after."""
    with Server(installation(), FAST) as server:
        roles.prepare_write(server)
        pipeline = Pipeline(server, read, tmp_path, "pgoutput")
        pipeline.source("create table t (id int primary key, v text)")
        pipeline.mirror("public.t")
        process = pipeline.start()
        pipeline.caught_up()
        with psycopg.connect(read.dsn(pipeline.name)) as reader:
            reader.execute("lock table t in access exclusive mode")
            pipeline.source(
                f"insert into t select g, 'some text' from generate_series(1, {rows}) g"
            )
            until(
                lambda: pipeline.target(
                    "select 1 from pg_stat_activity where wait_event_type = 'Lock' "
                    "and datname = current_database()"
                ),
                what="the write waits for the lock",
            )
            server.stop("fast", timeout=20)
        server.start()
        pipeline.caught_up()
        assert pipeline.same("t")
        process.terminate()
        assert process.wait(30) == 0
        pipeline.close()

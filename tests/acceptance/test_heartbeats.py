"""What moves the slot while nothing that is wanted is written: keepalives, and heartbeats."""

import pytest

from tests.acceptance.conftest import Pipeline, until
from tests.acceptance.test_stuck import asked, metric
from tests.conftest import require

ROUND_TRIPS = "cdc_heartbeat_round_trip_seconds_count"
LAST = "cdc_last_heartbeat_timestamp_seconds"


@pytest.fixture
def idle(pipeline: Pipeline) -> Pipeline:
    pipeline.source("create table t (id int primary key); create table other (id int)")
    pipeline.mirror("public.t")
    return pipeline


def confirmed(pipeline: Pipeline, position: int) -> bool:
    return bool(
        pipeline.source(
            f"select 1 from pg_replication_slots where slot_name = '{pipeline.name}' "
            f"and confirmed_flush_lsn - '0/0'::pg_lsn >= {position}"
        )
    )


def test_writes_elsewhere_move_slot_and_checkpoint_without_heartbeats(idle):
    idle.start(CDC_SOURCE__HEARTBEAT_SECONDS="0")
    idle.caught_up()
    idle.source("insert into other select generate_series(1, 1000)")
    await_followed(idle)
    idle.write.psql(f"create table {idle.name} as select generate_series(1, 1000)", "postgres")
    idle.write.psql(f"drop table {idle.name}", "postgres")
    await_followed(idle)


def await_followed(idle: Pipeline) -> None:
    """Wait until checkpoint and slot have passed all that is written."""
    here = idle.source("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0]
    until(lambda: idle.checkpoint() >= here, what="the checkpoint follows")
    until(lambda: confirmed(idle, here), what="the slot follows")


def test_heartbeats_go_through_the_wal_to_the_checkpoint_and_back(idle):
    process = idle.start(CDC_SOURCE__HEARTBEAT_SECONDS="1")
    idle.caught_up()
    url = idle.url(process)
    began = float(idle.source("select extract(epoch from now())")[0][0])
    here = idle.source("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0]
    count = metric(url, ROUND_TRIPS)
    until(lambda: metric(url, ROUND_TRIPS) >= count + 2, what="two heartbeats came back")
    until(lambda: metric(url, LAST) > began, what="the last is told")
    until(lambda: confirmed(idle, here), what="the slot follows")


def heartbeats(pipeline: Pipeline) -> int:
    """Count the heartbeats since the slot `counts` was made."""
    return pipeline.source(
        "select count(*) from pg_logical_slot_peek_binary_changes("
        f"'{pipeline.name}_counts', null, null, 'proto_version', '1', 'publication_names', 'none', "
        "'messages', 'true') where position('heartbeat'::bytea in data) > 0"
    )[0][0]


def test_a_daemon_that_stands_by_sends_none_until_it_takes_over(one_pipeline):
    pipeline = one_pipeline
    pipeline.source("create table t (id int primary key)")
    pipeline.mirror("public.t")
    first = pipeline.start(CDC_SOURCE__HEARTBEAT_SECONDS="0", CDC_DAEMON__STUCK_SECONDS="2")
    pipeline.caught_up()
    slot = f"{pipeline.name}_counts"
    pipeline.source(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    second = pipeline.start(CDC_SOURCE__HEARTBEAT_SECONDS="1")
    url = pipeline.url(second)
    retried = 'cdc_retries_total{reason="locked",target="read"}'
    until(lambda: metric(url, retried) >= 5, what="it has stood by for some seconds")
    assert heartbeats(pipeline) == 0
    assert " stuck " not in pipeline.log(first)  # it has been idle for longer than that
    first.kill()
    first.wait()
    until(lambda: metric(url, ROUND_TRIPS) > 0, what="it streams and sends heartbeats")
    assert heartbeats(pipeline) > 0
    pipeline.source(f"select pg_drop_replication_slot('{slot}')")


def test_a_role_that_may_write_no_message_streams_without_and_says_so_once(one_pipeline):
    pipeline, role = one_pipeline, f"beats_{one_pipeline.name}"
    require(pipeline.write.installation.wal2json, "wal2json")
    emit = "function pg_logical_emit_message(boolean, text, text)"
    pipeline.source(f"create role {role} login replication; revoke execute on {emit} from public")
    pipeline.source("create table t (id int primary key)")
    pipeline.mirror("public.t")
    environment = {
        "CDC_SOURCE__DSN": pipeline.write.dsn(pipeline.name, role),
        "CDC_SOURCE__HEARTBEAT_SECONDS": "1",
        "CDC_COPY__ENABLED": "false",
    }
    assert "heartbeats" in pipeline.cdc("check", **environment).stdout
    process = pipeline.start(**environment)
    until(lambda: "no heartbeats" in pipeline.log(process), what="it says so")
    url = pipeline.url(process)
    for row in range(3):  # each time it looks, it would be time for a heartbeat
        seen = asked(url, "/status")[1]["wal_lsn"]
        pipeline.source(f"insert into t values ({row})")
        until(lambda seen=seen: asked(url, "/status")[1]["wal_lsn"] != seen, what="it has looked")
    until(lambda: pipeline.target("select count(*) from t") == [(3,)], what="they are applied")
    assert pipeline.log(process).count("no heartbeats") == 1
    process.terminate()
    assert process.wait(30) == 0
    pipeline.source(f"drop owned by {role}; drop role {role}")

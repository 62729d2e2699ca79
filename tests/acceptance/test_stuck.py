"""The read database locked, or a projector that blocks: seen, bounded, and over when it is over."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import Pipeline, until

SENDER_TIMEOUT = 3
QUEUE_BYTES = 2 * 1024**2
PROJECTOR = """
import time
from pathlib import Path
import sqlalchemy as sa
from cdc import Deleted, Upsert, projector

t = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", sa.Text))

@projector("public.t", into=t)
def slow(change):
    while Path("blocks").exists():
        time.sleep(0.01)
    if not isinstance(change, Deleted):
        return Upsert(t, id=change.row["id"], v=change.row["v"])
"""


def asked(url: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url + path) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def resident(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@contextmanager
def read_locked(pipeline: Pipeline) -> Iterator[None]:
    with psycopg.connect(pipeline.read.dsn(pipeline.name)) as reader:
        reader.execute("lock table t in access exclusive mode")
        yield


@contextmanager
def projector_blocked(pipeline: Pipeline) -> Iterator[None]:
    (pipeline.folder / "blocks").touch()
    yield
    (pipeline.folder / "blocks").unlink()


def sender(pipeline: Pipeline) -> list[tuple]:
    """Give the walsender's process; none where there is no stream."""
    return pipeline.source(
        f"select active_pid from pg_replication_slots where slot_name = '{pipeline.name}'"
    )


@pytest.mark.parametrize("blocked", [read_locked, projector_blocked])
def test_what_blocks_is_seen_loses_no_connection_and_memory_stays_at_its_bound(
    one_pipeline: Pipeline, blocked: Callable[[Pipeline], Any]
) -> None:
    pipeline = one_pipeline
    pipeline.source("create table t (id int primary key, v text)")
    if blocked is read_locked:
        pipeline.mirror("public.t")
    else:
        (pipeline.folder / "projectors_here.py").write_text(PROJECTOR)
        pipeline.configure('[projection]\nmodules = ["projectors_here"]')
    process = pipeline.start(
        CDC_SOURCE__DSN=f"{pipeline.write.dsn(pipeline.name)}"
        f"?options=-c%20wal_sender_timeout%3D{SENDER_TIMEOUT}s",
        CDC_SOURCE__QUEUE_BYTES=str(QUEUE_BYTES),
        CDC_READ__BATCH_BYTES=str(QUEUE_BYTES),
        CDC_DAEMON__STUCK_SECONDS="1",
    )
    url = pipeline.url(process)
    pipeline.caught_up()
    streams, before = sender(pipeline), resident(process)
    with blocked(pipeline):
        for part in range(40):
            pipeline.source(
                f"insert into t select {part * 2000} + g, repeat('x', 500) "
                "from generate_series(1, 2000) g"
            )
        (began,) = pipeline.source("select clock_timestamp()")[0]
        until(lambda: asked(url, "/ready")[0] == 503, what="it is not ready")
        until(lambda: asked(url, "/status")[1]["queued_bytes"] > QUEUE_BYTES / 4, what="it queues")
        answered = (
            "select 1 from pg_stat_replication where pid = {} "
            f"and reply_time > '{began}'::timestamptz + interval '{2 * SENDER_TIMEOUT} s'"
        )
        until(lambda: pipeline.source(answered.format(streams[0][0])), what="it goes on answering")
        _, status = asked(url, "/status")
        assert status["state"] == "stuck"
        what = "writing to the read database" if blocked is read_locked else "projector slow"
        assert re.fullmatch(rf"{what}: no progress for \d+ s", status["because"])
        assert metric(url, 'cdc_state{state="stuck"}') == 1
        assert status["queued_bytes"] <= QUEUE_BYTES
        assert resident(process) - before < 40_000_000  # of 40 MB that were written, 60 as changes
        assert sender(pipeline) == streams
    until(lambda: asked(url, "/ready")[0] == 200, what="it is ready again")
    pipeline.caught_up()
    assert pipeline.same("t")
    assert sender(pipeline) == streams
    assert f" stuck because={what}: no progress for " in pipeline.log(process)


def test_a_session_whose_stream_is_lost_does_not_wait_for_a_lock_in_the_read_database(
    one_pipeline: Pipeline,
) -> None:
    pipeline = one_pipeline
    pipeline.source("create table t (id int primary key)")
    pipeline.mirror("public.t")
    process = pipeline.start()
    pipeline.caught_up()
    (before,) = sender(pipeline)
    with read_locked(pipeline):
        pipeline.source("insert into t values (1)")
        until(lambda: waits_for_lock(pipeline), what="the write waits for the lock")
        pipeline.source(f"select pg_terminate_backend({before[0]})")
        until(lambda: sender(pipeline) not in ([before], [(None,)]), what="it streams again")
    pipeline.caught_up()
    assert pipeline.same("t")
    url = pipeline.url(process)
    assert metric(url, 'cdc_reconnects_total{target="source"}') == 1
    assert metric(url, 'cdc_errors_total{reason="SourceUnavailable",stage="receive"}') == 1
    process.terminate()
    assert process.wait(30) == 0
    assert "Traceback" not in pipeline.log(process)


def waits_for_lock(pipeline: Pipeline) -> bool:
    return bool(
        pipeline.target(
            "select 1 from pg_stat_activity where wait_event_type = 'Lock' "
            "and datname = current_database()"
        )
    )

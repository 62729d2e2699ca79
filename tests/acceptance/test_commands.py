"""The commands and the HTTP answers, as an operator and Prometheus see them."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.conftest import Pipeline, until


@pytest.fixture
def ready(pipeline: Pipeline) -> Pipeline:
    pipeline.source("create table public.t (id int primary key, v text)")
    pipeline.mirror("public.t")
    return pipeline


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def series(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    _, text = get(f"{url}/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(url: str, name: str, **labels: str) -> float:
    return series(url)[name, frozenset(labels.items())]


def test_setup_then_check_then_status_then_run_then_drop(ready):
    before = ready.cdc("status")
    assert (before.returncode, before.stdout.splitlines()[0]) == (1, "stopped           not set up")
    done = ready.cdc("setup")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ready to stream from ")
    assert ready.cdc("setup").stdout == done.stdout
    checked = ready.cdc("check")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] == "ready"
    ready.source("insert into t values (1, 'x')")
    assert ready.cdc("run", "--until", "now").returncode == 0
    assert ready.same("t")
    status = json.loads(ready.cdc("status", "--json").stdout)
    assert status["slot_exists"] is True
    assert status["streaming"] is False
    assert status["checkpoint_lsn"] is not None
    dropped = ready.cdc("drop", "--yes", CDC_READ__URL="mysql+pymysql://u@127.0.0.1:1/gone")
    assert (dropped.returncode, f"dropped slot {ready.name}\n" in dropped.stdout) == (4, True)
    assert "start it, or correct read.url" in dropped.stderr
    dropped = ready.cdc("drop", "--yes")
    assert "dropped checkpoint" in dropped.stdout
    assert ready.source(
        "select (select count(*) from pg_replication_slots "
        f"where slot_name = '{ready.name}'), (select count(*) from pg_publication)"
    ) == [(0, 0)]
    assert ready.target("select count(*) from cdc_checkpoint") == [(0,)]
    assert ready.target("select count(*) from t") == [(1,)]
    assert "nothing" in ready.cdc("drop", "--yes").stdout


def test_the_version_is_the_installed_package_s() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "cdc", "--version"], capture_output=True, check=True
    )
    assert told.stdout.decode() == f"cdc {metadata.version('cdc-daemon')}\n"


def test_check_leaves_nothing_behind_and_changes_nothing(ready):
    assert ready.cdc("check").returncode == 0
    assert ready.source("select 1 from pg_publication") == []
    assert ready.source(f"select 1 from pg_replication_slots where database = '{ready.name}'") == []
    assert ready.target("select 1 from pg_tables where schemaname = 'public'") == []


def test_check_tells_all_that_is_wrong_at_once(ready):
    ready.source("create table public.nokey (v text)")
    ready.mirror("public.t", "public.nokey", "public.gone")
    done = ready.cdc("check", "--json")
    assert done.returncode == 1
    told = " ".join(finding["what"] for finding in json.loads(done.stdout) if finding["blocks"])
    assert "public.nokey has no usable key" in told
    assert "no table public.gone" in told


def test_drop_is_refused_while_a_daemon_streams(ready):
    ready.start()
    ready.caught_up()
    done = ready.cdc("drop", "--yes")
    assert done.returncode == 3
    assert "is active" in done.stderr
    assert ready.checkpoint() > 0


def test_drop_asks_first(ready):
    ready.cdc("setup")
    with Path("/dev/full").open("w") as full:
        broken = ready.cdc("status", output=full)
    assert broken.stderr.splitlines()[0] == "error: cannot write: No space left on device"
    assert broken.returncode == 1
    done = ready.cdc("drop")
    assert done.returncode == 1
    assert ready.checkpoint() > 0


def test_every_series_is_there_from_the_start_and_counts_what_happened(ready):
    process = ready.start()
    ready.caught_up()
    url = ready.url(process)
    for kind in ("inserted", "updated", "deleted", "truncated"):
        labels = {"table": "public.t", "kind": kind}
        assert value(url, "cdc_changes_received_total", **labels) == 0
    ready.source("insert into t values (1, 'a'), (2, 'b')")
    ready.source("update t set v = 'c' where id = 1; delete from t where id = 2")
    ready.caught_up()
    until(lambda: value(url, "cdc_transactions_applied_total") >= 2, what="they are counted")
    assert value(url, "cdc_changes_received_total", table="public.t", kind="inserted") == 2
    assert value(url, "cdc_changes_received_total", table="public.t", kind="deleted") == 1
    applied = {"projector": "mirror:public.t", "kind": "upsert"}
    assert value(url, "cdc_operations_applied_total", **applied) == 3
    assert value(url, "cdc_commit_to_apply_seconds_count") >= 2
    until(lambda: value(url, "cdc_replication_lag_bytes") == 0, what="no lag in bytes")
    assert value(url, "cdc_replication_lag_seconds") == 0
    until(lambda: get(f"{url}/ready")[0] == 200, what="it is ready")
    states = {
        dict(labels)["state"]: at
        for (name, labels), at in series(url).items()
        if name == "cdc_state"
    }
    assert states == {
        "starting": 0,
        "streaming": 1,
        "stuck": 0,
        "standby": 0,
        "retrying": 0,
        "stopping": 0,
    }
    assert [name for name, _ in series(url) if name == "cdc_build_info"]


def test_lag_grows_while_the_read_database_is_stuck_and_readiness_says_so(ready):
    process = ready.start()
    ready.caught_up()
    url = ready.url(process)
    until(lambda: get(f"{url}/ready")[0] == 200, what="it is ready")
    with ready.read.connect(ready.name) as reader, reader.transaction():
        reader.execute("lock table t in access exclusive mode")
        ready.source("insert into t values (1, 'x')")
        until(lambda: value(url, "cdc_replication_lag_seconds") > 1, what="lag in seconds grows")
        assert value(url, "cdc_replication_lag_bytes") > 0
        assert get(f"{url}/live")[0] == 200
    ready.caught_up()
    until(lambda: value(url, "cdc_replication_lag_seconds") == 0, what="the lag is gone")


def test_status_shows_positions_and_no_secrets(ready):
    process = ready.start()
    ready.caught_up()
    until(lambda: get(f"{ready.url(process)}/ready")[0] == 200, what="it is ready")
    code, text = get(f"{ready.url(process)}/status")
    now = json.loads(text)
    assert code == 200
    assert now["state"] == "streaming"
    assert now["slot"] == ready.name
    assert "postgresql" not in text
    assert get(f"{ready.url(process)}/nothing")[0] == 404


def test_the_status_command_asks_the_daemon_and_goes_without_a_database(one_pipeline):
    one_pipeline.source("create table public.t (id int primary key, v text)")
    one_pipeline.mirror("public.t")
    process = one_pipeline.start()
    one_pipeline.caught_up()
    url = one_pipeline.url(process)
    until(lambda: get(f"{url}/ready")[0] == 200, what="it is ready")
    here = {"CDC_HTTP__LISTEN": url.removeprefix("http://")}
    alone = one_pipeline.cdc("status", "--json")  # of the databases
    asked = one_pipeline.cdc("status", "--json", **here)
    assert (alone.returncode, asked.returncode) == (0, 0)
    alone, asked = json.loads(alone.stdout), json.loads(asked.stdout)
    assert alone.keys() == asked.keys()
    assert (alone["daemon"], alone["lag_seconds"]) == (False, None)
    assert (asked["daemon"], asked["condition"], asked["state"]) == (True, "fine", "streaming")
    assert asked["lag_seconds"] == 0
    nowhere = {"CDC_READ__URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    assert one_pipeline.cdc("status", **nowhere).returncode == 4
    blind = one_pipeline.cdc("status", **here, **nowhere)
    assert blind.stdout.startswith("fine "), blind.stderr
    assert "verification      unknown" in blind.stdout
    other = one_pipeline.read.dsn(one_pipeline.name)
    mistaken = one_pipeline.cdc("status", CDC_SOURCE__DSN=other)
    assert "the write database is not the one" in mistaken.stdout.splitlines()[0]
    assert "correct source.dsn" in mistaken.stdout.splitlines()[-1]
    process.send_signal(signal.SIGSTOP)
    hung = one_pipeline.cdc("status", **here)
    process.send_signal(signal.SIGCONT)
    assert (hung.returncode, hung.stdout.split()[0]) == (1, "stuck")
    assert "the daemon here does not answer" in hung.stdout
    process.terminate()
    assert process.wait(60) == 0
    after = one_pipeline.cdc("status", **here)
    assert (after.returncode, after.stdout.split()[0]) == (1, "stopped")


def test_not_ready_while_retrying(ready):
    process = ready.start(CDC_READ__URL="postgresql+psycopg://nobody@127.0.0.1:1/none")
    url = ready.url(process)
    until(lambda: value(url, "cdc_state", state="retrying") == 1, what="it retries")
    assert get(f"{url}/ready")[0] == 503
    assert value(url, "cdc_retries_total", target="read", reason="unavailable") > 0

"""Poison, as the operator meets it: the daemon goes on, `cdc quarantine` shows and mends."""

import json
import random
import signal
import time

import pytest
from typer.testing import CliRunner, Result

from cdc.cli import app
from cdc.errors import QuarantineError, SettingError
from tests.acceptance.conftest import SECONDS, Pipeline, until
from tests.acceptance.test_commands import get, value
from tests.acceptance.test_copy_command import start, stop, streams

ROWS = 3000
NO_BAD = "alter table t add constraint no_bad check (v <> 'bad')"
MENDED = "alter table t drop constraint no_bad"
MODULE = """
from pathlib import Path
import sqlalchemy as sa
from cdc import Delete, Deleted, Upsert, projector

SEEN = sa.Table("seen", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True),
                sa.Column("v", sa.Text))

@projector("public.t", into=SEEN)
def seen(change):
    if isinstance(change, Deleted):
        return Delete(SEEN, id=change.key["id"])
    if change.row["v"] == "raise" and not Path("mended").exists():
        raise ValueError(change.row["v"])
    return Upsert(SEEN, id=change.row["id"], v=change.row["v"])
"""


@pytest.fixture
def ready(one_pipeline: Pipeline) -> Pipeline:
    """A mirror whose read table refuses some rows, and a projector that raises on others."""
    one_pipeline.source("create table t (id int primary key, v text)")
    one_pipeline.source(f"insert into t select i, 'v' || i from generate_series(1, {ROWS}) i")
    (one_pipeline.folder / "seeing.py").write_text(MODULE)
    one_pipeline.configure(
        '[projection]\nmodules = ["seeing"]\n[[projection.mirrors]]\nsource = "public.t"\n'
    )
    assert one_pipeline.cdc("setup").returncode == 0
    one_pipeline.target(NO_BAD)
    return one_pipeline


def here(pipeline: Pipeline, *arguments: str) -> Result:
    """Run a command that only looks in this process: it is the quicker."""
    return CliRunner().invoke(app, [*arguments, "--config", str(pipeline.config)])


def listed(pipeline: Pipeline) -> dict[tuple[str, str], dict]:
    """Give what is in quarantine, by projector and the first key."""
    found = json.loads(here(pipeline, "quarantine", "list", "--json").stdout)
    return {(one["projector"], one["keys"][0][0]): one for one in found}


def same(pipeline: Pipeline) -> bool:
    source, seen = (
        "select count(*), sum(hashtextextended(v, id)) from t",
        "select count(*), sum(hashtextextended(v, id)) from seen",
    )
    return pipeline.same("t") and pipeline.source(source) == pipeline.target(seen)


def test_poison_is_set_aside_shown_and_replayed(ready):
    ready.source("update t set v = 'bad' where id = 7")
    ready.source("update t set v = 'raise' where id = 8")
    process = start(ready)
    ready.caught_up()  # the copies went on
    assert set(listed(ready)) == {("mirror:public.t", "7"), ("seen", "8")}
    ready.source("insert into t select i, 'w' from generate_series(10001, 20000) i")
    ready.source("update t set v = case id when 10007 then 'bad' else 'x' end where id > 10000")
    ready.source("update t set v = v || '!' where id in (7, 8, 10007)")
    ready.source("delete from t where id = 10007")
    ready.caught_up()
    held = listed(ready)
    assert {key: one["changes"] for key, one in held.items()} == {
        ("mirror:public.t", "7"): 2,
        ("seen", "8"): 2,
        ("mirror:public.t", "10007"): 3,
    }
    assert "no_bad" in held["mirror:public.t", "7"]["error"]
    assert "23514" in held["mirror:public.t", "7"]["error"]
    assert held["seen", "8"]["error"].startswith("ValueError at ")
    assert ready.target("select count(*) from t where v = 'x'") == [(9999,)]
    it_is_told(ready, ready.url(process))
    assert ready.log(process).count("quarantined a key") == 3
    it_is_shown(ready)
    ready.target(MENDED)
    done = ready.cdc("quarantine", "replay", "--all")
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "replayed 2 of 3")
    assert set(listed(ready)) == {("seen", "8")}
    (ready.folder / "mended").touch()
    assert ready.cdc("quarantine", "replay", "8").returncode == 0
    assert same(ready)
    until(
        lambda: value(ready.url(process), "cdc_quarantined_keys", projector="seen") == 0, what="0"
    )
    stop(process)


def it_is_told(pipeline: Pipeline, url: str) -> None:
    assert value(url, "cdc_quarantined_keys", projector="mirror:public.t") == 2
    assert value(url, "cdc_errors_total", stage="write", reason="WriteRefused") == 2
    assert value(url, "cdc_errors_total", stage="project", reason="ProjectionError") == 1
    _, told = get(f"{url}/status")
    assert json.loads(told)["quarantined_keys"] == {"mirror:public.t": 2, "seen": 1}
    said = here(pipeline, "status").stdout
    assert "2 of mirror:public.t, 1 of seen" in said


def it_is_shown(pipeline: Pipeline) -> None:
    shown = here(pipeline, "quarantine", "show", "7").stdout
    assert "inserted at" in shown
    assert "bad!" not in shown
    assert 'v = "bad!"' in here(pipeline, "quarantine", "show", "7", "--values").stdout
    (told,) = json.loads(here(pipeline, "quarantine", "show", "7", "--values", "--json").stdout)
    assert [one["values"]["v"] for one in told["held"]] == ["bad", "bad!"]
    assert isinstance(here(pipeline, "quarantine", "show", "4711").exception, QuarantineError)
    assert isinstance(here(pipeline, "quarantine", "replay").exception, SettingError)


def test_without_a_daemon_it_is_replayed_and_dropped_by_the_command(ready):
    ready.source("update t set v = 'bad' where id in (7, 8)")
    assert ready.cdc("run", "--until", "now").returncode == 0
    ready.source("update t set v = 'good' where id = 7")
    assert ready.cdc("quarantine", "drop", "8", "--yes").returncode == 0
    ready.target(MENDED)
    done = ready.cdc("quarantine", "replay", "7")
    assert done.returncode == 0, done.stderr
    ready.source("update t set v = 'again' where id = 8")
    assert ready.cdc("run", "--until", "now").returncode == 0
    assert same(ready)


def test_a_resync_clears_the_quarantine(ready):
    ready.source("update t set v = 'bad' where id = 7")
    assert ready.cdc("run", "--until", "now").returncode == 0
    assert len(listed(ready)) == 1
    ready.target(MENDED)
    done = ready.cdc("resync", "--yes")
    assert done.returncode == 0, done.stderr
    assert listed(ready) == {}
    assert same(ready)


def test_more_keys_than_the_limit_stop_it_with_nothing_set_aside(ready):
    process = start(ready)
    ready.caught_up()
    ready.source("update t set v = 'bad' where id <= 101")
    assert process.wait(SECONDS) == 18
    assert listed(ready) == {}
    assert "more than 100 keys" in ready.log(process)
    ready.target(MENDED)
    process = start(ready)
    ready.caught_up()
    assert same(ready)
    stop(process)


def test_what_is_in_quarantine_is_no_mismatch(ready):
    process = start(ready)
    ready.caught_up()
    ready.source("update t set v = 'bad' where id = 7")
    ready.source("update t set v = 'raise' where id = 8")
    ready.source("delete from t where id = 8")
    ready.caught_up()
    done = ready.cdc("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 key in quarantine, not compared" in done.stdout
    ready.source("update t set v = 'raise' where id = 10")  # fails still, after it is dropped
    found = """select 1 from cdc_quarantine where row_key = '["10"]'"""
    until(lambda: ready.target(found), what="it is set aside")
    ready.target("""update cdc_quarantine set asked = 'drop' where row_key = '["10"]'""")
    until(lambda: not ready.target(found), what="it is dropped")
    ready.target("delete from t where id = 9")
    ready.target("insert into seen values (-1, 'extra')")
    done = ready.cdc("verify")
    assert "seen: rows on which seen fails were not compared" in done.stdout
    assert "1 missing" in done.stdout
    assert "1 extra" in done.stdout
    assert done.returncode == 1
    stop(process)


def test_whatever_is_killed_nothing_of_poison_is_lost(ready):
    chance = random.Random(5)
    asked = 0
    for round_ in range(8):
        process = start(ready)
        ready.source(writes(chance, round_))
        ready.source(f"update t set v = 'bad' where id = {chance.randrange(1, 40)}")
        ready.source(f"update t set v = 'raise' where id = {chance.randrange(1, 40)}")
        if not round_:
            until(lambda: held(ready), what="something is set aside")
        elif held(ready):
            (ready.folder / "mended").touch()
            if round_ % 2:
                ready.target("alter table t drop constraint if exists no_bad")
            ready.target("update cdc_quarantine set asked = 'replay'")
            asked += 1
        # The fault's moment, not a wait for anything.
        time.sleep(chance.uniform(0.0, 0.8))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        (ready.folder / "mended").unlink(missing_ok=True)
        until(lambda: not streams(ready), what="the server has noticed")
    (ready.folder / "mended").touch()
    ready.target("alter table t drop constraint if exists no_bad")
    process = start(ready)
    ready.caught_up()
    assert ready.cdc("quarantine", "replay", "--all").returncode == 0
    assert listed(ready) == {}
    assert same(ready)
    assert asked
    stop(process)


def writes(chance: random.Random, round_: int) -> str:
    first, last = chance.randrange(1, 40), chance.randrange(1, 40)
    return (
        f"update t set v = 'r{round_}' || id where id between {first} and {first + 20};"
        f"delete from t where id = {last};"
        f"insert into t select i, 'n{round_}' from generate_series(1, 60) i "
        "where not exists (select from t where id = i)"
    )


def held(pipeline: Pipeline) -> bool:
    return pipeline.target("select 1 from cdc_quarantine limit 1") != []

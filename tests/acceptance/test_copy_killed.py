"""A copy that is killed again and again while the application writes ends equal to its source."""

import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import Pipeline, until
from tests.conftest import require

KEYED = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers")
# Every step of every copy, as it was committed.
STEPS = """
create table steps (n serial, projector text, asked int, reached text, copied bigint, state text);
create function note_step() returns trigger language plpgsql as $$ begin
  insert into steps (projector, asked, reached, copied, state)
  values (new.projector, new.asked, new.reached::text, new.copied, new.state);
  return new;
end $$;
create trigger noted after update on cdc_copy for each row execute function note_step();
"""


def pgbench(pipeline: Pipeline, *arguments: str) -> subprocess.Popen[bytes]:
    tool = pipeline.write.installation.bin / "pgbench"
    require(tool.exists(), "pgbench")
    dsn = pipeline.write.dsn(pipeline.name)
    return subprocess.Popen([tool, *arguments, dsn], stdout=-3, stderr=-3)


@pytest.mark.timeout(900)
def test_a_million_rows_are_copied_once_whatever_is_killed(one_pipeline: Pipeline):
    """With one plugin: small copies are killed with both of them in test_chaos.py."""
    pipeline = one_pipeline
    assert pgbench(pipeline, "-i", "-q", "-s", "10").wait() == 0
    pipeline.mirror(*(f"public.{table}" for table in KEYED), insert_only="public.pgbench_history")
    assert pipeline.cdc("setup").returncode == 0
    pipeline.target(STEPS)
    writes = pgbench(pipeline, "-c", "2", "-T", "300", "-n", "-R", "300")
    moments, kills, peak = random.Random(11), 0, 0
    process = pipeline.start()
    while not pipeline.copied():
        had = steps(pipeline)
        until(lambda had=had: steps(pipeline) > had or pipeline.copied(), what="a chunk is placed")
        # The fault's moment, not a wait for anything.
        time.sleep(moments.uniform(0, 2))
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1]) if found else 0)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        kills += 1
        process = pipeline.start()
    writes.terminate()
    writes.wait()
    pipeline.caught_up()
    verified = pipeline.cdc("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    process.terminate()
    assert process.wait(30) == 0
    for table in [*KEYED, "pgbench_history"]:
        assert pipeline.same(table), table
    assert pipeline.source("select count(*) from pgbench_history")[0][0] > 500
    assert kills >= 4
    assert peak < 200 * 1024
    no_step_twice(pipeline)


def steps(pipeline: Pipeline) -> int:
    return pipeline.target("select count(*) from steps")[0][0]


def no_step_twice(pipeline: Pipeline) -> None:
    """Hold that each committed step went on from the one before."""
    steps = pipeline.target("select projector, copied, reached, state from steps order by n")
    for projector in {step[0] for step in steps}:
        mine = [step[1:] for step in steps if step[0] == projector]
        counts = [count for count, _, _ in mine]
        assert counts == sorted(counts), projector
        reached = [key for _, key, state in mine if state == "copying"]
        assert len(reached) == len(set(reached)), projector


def test_a_copy_keeps_to_the_rate_that_it_is_given_and_stops_at_once(pipeline: Pipeline):
    pipeline.source("create table t (id int primary key)")
    pipeline.source("insert into t select generate_series(1, 1000000)")
    pipeline.mirror("public.t")
    with pipeline.config.open("a") as file:
        file.write("\n[copy]\nmax_rows_per_second = 20000\n")
    began = time.monotonic()
    process = pipeline.start()
    exists = "select to_regclass('cdc_copy') is not null"
    until(lambda: pipeline.target(exists) == [(True,)], what="it has begun")
    until(lambda: pipeline.target("select 1 from cdc_copy where copied >= 60000"), what="rows")
    took = time.monotonic() - began
    assert took > 1.5
    process.terminate()
    assert process.wait(30) == 0

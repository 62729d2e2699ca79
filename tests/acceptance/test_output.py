"""Answers go to stdout, exact, for scripts; everything else goes to stderr. Logs are lines of JSON."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter

from typer.testing import CliRunner

from cdc.cli import app
from tests.acceptance.conftest import Pipeline, until

# Command, exit code, the whole of stdout, whether something is said on stderr.
TABLE = [
    (["check"], 0, r"(?:advice .*\n(?:        .*\n)+)*ready\n", False),
    (["status"], 1, r"stopped           not set up\n(?:.*\n)+", False),
    (["setup"], 0, r"ready to stream from [0-9A-F]+/[0-9A-F]+\n", True),
    (["check", "--json"], 0, r"\[(?:.*\n)+\]\n|\[\]\n", False),
    (["run", "--until", "now"], 0, r"", True),
    (["copy", "public.t", "--no-wait"], 0, r"", True),
    (["copy", "--all"], 0, r"copied 2 rows of public\.t\n", True),
    (["verify"], 0, r"mirror:public\.t: 2 rows compared, 0 missing, 0 extra, 0 different\n", True),
    (["quarantine", "list"], 0, r"nothing is in quarantine\n", False),
    (["quarantine", "list", "--json"], 0, r"\[\]\n", False),
    (["quarantine", "show", "7"], 19, r"", True),
    (["quarantine", "replay", "--all"], 0, r"replayed 0 of 0\n", False),
    (["quarantine", "drop", "7", "--yes"], 19, r"", True),
    (["drop"], 1, r" ?", True),  # the library that asks writes a space
    (["status", "--json"], 1, r"\{\n(?:.*\n)+\}\n", False),
    (["drop", "--yes"], 0, r"(?:dropped [a-z]+ .*\n)+", False),
    (["drop", "--yes"], 0, r"dropped nothing: there was nothing to drop\n", False),
    (["run", "--no-such-option"], 2, r"", True),
    (["run", "--until", "nowhere"], 2, r"", True),
]


def test_answers_are_exact_on_stdout_and_the_rest_is_on_stderr(one_pipeline: Pipeline) -> None:
    one_pipeline.source("create table t (id int primary key); insert into t values (1), (2)")
    one_pipeline.mirror("public.t")
    for words, code, answer, says in TABLE:
        if set(words) & {"check", "status", "list"}:  # those that only look: it is the quicker
            done = CliRunner().invoke(app, [*words, "--config", str(one_pipeline.config)])
            assert done.exit_code == code, (words, done.output)
        else:
            done = one_pipeline.cdc(*words)
            assert done.returncode == code, (words, done)
        assert re.fullmatch(answer, done.stdout), (words, done)
        assert bool(done.stderr) is says, (words, done)


def test_lines_of_the_log_are_json_with_constant_messages_and_none_repeats_per_batch(
    one_pipeline: Pipeline,
) -> None:
    """Through start, copy, transactions, poison, a lost database, and drain."""
    one_pipeline.source(
        "create table t (id int primary key, v text); insert into t values (1, 'a')"
    )
    one_pipeline.mirror("public.t")
    process = one_pipeline.start("--log-format", "json")

    def lines() -> list[dict[str, object]]:
        return [
            json.loads(line)
            for line in one_pipeline.log(process).splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def said(message: str, times: int = 1) -> None:
        until(lambda: [li["message"] for li in lines()].count(message) >= times, what=message)

    one_pipeline.caught_up()
    quiet = len(lines())
    for number in range(10, 30):
        one_pipeline.source(f"insert into t values ({number}, 'b')")
    one_pipeline.caught_up()
    assert len(lines()) == quiet
    one_pipeline.target("alter table t add check (v <> 'bad')")
    one_pipeline.source("insert into t values (99, 'bad')")
    said("quarantined a key")
    one_pipeline.read.psql(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        f"where datname = '{one_pipeline.name}' and application_name = 'cdc'"
    )
    one_pipeline.source("insert into t values (100, 'c')")
    said("streaming", times=2)
    one_pipeline.caught_up()
    process.terminate()
    assert process.wait(60) == 0
    found = lines()
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in found)
    assert all(line["level"] in {"info", "warning"} for line in found)
    # What differs is in the fields.
    assert {line["message"] for line in found} <= {
        *(
            "listening",
            "created read table",
            "created slot",
            "prepared publication",
        ),
        *("streaming", "copying", "copied", "retrying", "quarantined a key", "stopping", "stopped"),
        *("the rows that exist will be copied",),
    }
    once = Counter(
        json.dumps({k: v for k, v in line.items() if k != "time"})
        for line in found
        if line["level"] == "info"
    )
    assert max(once.values()) == 1, once
    for line in found:
        if line["message"] == "retrying":
            assert line["because"]


def test_a_command_that_is_interrupted_while_it_starts_says_nothing() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import cdc_command; cdc_command.main()"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr is not None
        while "sqlalchemy" not in (line := starting.stderr.readline()):
            assert line
        starting.send_signal(signal.SIGINT)
        said = starting.stderr.read()
    assert starting.returncode == -signal.SIGINT
    assert "Traceback" not in said

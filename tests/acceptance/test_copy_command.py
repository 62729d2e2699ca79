"""`cdc copy`, as the person who gives it sees it: with a daemon and without, with a terminal and without."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.acceptance.conftest import SECONDS, Pipeline, until
from tests.acceptance.test_commands import get, value

ROWS = 3000
TABLES = ("a", "b")
ASKED = "select source, asked from cdc_copy order by source"
DONE = "select count(*) from cdc_copy where state = 'done'"
DUE = "select count(*) from cdc_copy where state in ('waiting', 'copying')"


class Command:
    """A `cdc copy` in the background."""

    def __init__(self, pipeline: Pipeline, *arguments: str) -> None:
        number = len(list(pipeline.folder.glob("copy-*.out")))
        self._out, self._err = (pipeline.folder / f"copy-{number}.{s}" for s in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                pipeline._command(("copy", *arguments)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=pipeline.folder,
                env=pipeline.environment(),
            )
        pipeline.processes.append(self.process)

    @property
    def said(self) -> str:
        return self._err.read_text()

    def wait_said(self, text: str) -> None:
        until(lambda: text in self.said, what=f"it says {text!r}; so far:\n{self.said}")

    def ends(self) -> tuple[int, str]:
        """Wait for its end; give exit code and answer."""
        return self.process.wait(SECONDS), self._out.read_text()


Begin = Callable[..., Command]


@pytest.fixture
def copied(one_pipeline: Pipeline) -> Pipeline:
    """Two tables whose first copy is done, and no daemon."""
    for table in TABLES:
        one_pipeline.source(f"create table {table} (id int primary key, v text)")
        one_pipeline.source(f"insert into {table} select i, 'v' from generate_series(1, {ROWS}) i")
    one_pipeline.mirror("public.a", "public.b")
    process = one_pipeline.start()
    one_pipeline.caught_up()
    wait_copied(one_pipeline, len(TABLES))
    stop(process)
    return one_pipeline


@pytest.fixture
def streaming(copied: Pipeline) -> Pipeline:
    """The same, and a daemon that streams."""
    start(copied)
    return copied


def wait_copied(pipeline: Pipeline, units: int) -> None:
    def done() -> bool:
        exists = pipeline.target("select to_regclass('cdc_copy') is not null")
        return exists == [(True,)] and pipeline.target(DONE) == [(units,)]

    until(done, what="the first copies are done")


def start(pipeline: Pipeline) -> subprocess.Popen[str]:
    process = pipeline.start()
    until(lambda: streams(pipeline), what="it streams")
    return process


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0


def streams(pipeline: Pipeline) -> bool:
    query = f"select active from pg_replication_slots where slot_name = '{pipeline.name}'"
    return pipeline.source(query) == [(True,)]


def damage(pipeline: Pipeline) -> None:
    for table in TABLES:
        pipeline.target(f"delete from {table} where id % 2 = 0")
        pipeline.target(f"update {table} set v = 'wrong' where id % 3 = 0")


def same(pipeline: Pipeline, *tables: str) -> bool:
    return all(pipeline.same(table) for table in tables)


@contextmanager
def held_up(pipeline: Pipeline, table: str = "a") -> Iterator[None]:
    """Keep the daemon from writing a read table: a copy of it cannot end."""
    with psycopg.connect(pipeline.read.dsn(pipeline.name)) as other:
        other.execute(f"lock table {table} in exclusive mode")
        yield


def test_the_running_daemon_copies_what_is_named(streaming):
    damage(streaming)
    done = streaming.cdc("copy", "public.a")
    assert (done.returncode, done.stdout) == (0, f"copied {ROWS} rows of public.a\n"), done.stderr
    assert done.stderr.splitlines()[0] == "asked for public.a"
    assert done.stderr.splitlines()[-1] == f"public.a: {ROWS:,} rows, done"
    assert same(streaming, "a")
    assert not same(streaming, "b")
    assert streams(streaming)
    log = streaming.log(streaming.processes[-1]).splitlines()
    said = [line.partition("info ")[2].strip() for line in log if " cop" in line]
    named = "table=public.a projector=mirror:public.a"
    assert said[0] == f"copying {named}"
    assert said[1].startswith(f"copied {named} rows={ROWS} seconds=")
    assert len(said) == 2


def test_without_a_daemon_the_command_streams_until_it_is_done(copied):
    damage(copied)
    copied.source("insert into b values (0, 'pending')")
    done = copied.cdc("copy", "--all")
    assert (done.returncode, done.stdout) == (
        0,
        f"copied {ROWS} rows of public.a\ncopied {ROWS + 1} rows of public.b\n",
    ), done.stderr
    assert "no daemon streams: copying here until it is done" in done.stderr
    assert same(copied, "a", "b")
    assert not streams(copied)
    stop(start(copied))


def test_a_daemon_that_stands_by_is_not_one_that_copies(copied):
    first = start(copied)
    second = copied.start()
    until(lambda: "standby" in copied.log(second), what="the second stands by")
    damage(copied)
    assert copied.cdc("copy", "public.a").returncode == 0
    stop(first)
    until(lambda: streams(copied), what="the second takes over")
    done = copied.cdc("copy", "public.b")
    assert done.returncode == 0, done.stderr
    assert "copying here" not in done.stderr
    assert same(copied, "a", "b")


def test_a_projector_is_named_instead_of_tables(streaming):
    damage(streaming)
    done = streaming.cdc("copy", "--projector", "mirror:public.b")
    assert (done.returncode, done.stdout) == (0, f"copied {ROWS} rows of public.b\n"), done.stderr
    assert same(streaming, "b")
    assert not same(streaming, "a")


def test_the_same_command_given_twice_shows_the_same_copy(streaming):
    with held_up(streaming):
        first = Command(streaming, "public.a")
        first.wait_said("asked for public.a")
        second = Command(streaming, "public.a")
        second.wait_said("public.a is being copied already; --restart begins anew")
        third = streaming.cdc("copy", "public.a", "--restart", "--no-wait")
        assert third.returncode == 0
        assert third.stderr.splitlines() == ["asked for public.a", "the daemon copies it"]
        assert first.process.poll() is second.process.poll() is None
    for command in first, second:
        assert command.ends() == (0, f"copied {ROWS} rows of public.a\n"), command.said
    assert streaming.target(ASKED) == [("public.a", 3), ("public.b", 1)]


def test_closing_the_command_leaves_the_daemon_at_it_and_opening_it_shows_it_again(streaming):
    damage(streaming)
    with held_up(streaming):
        command = Command(streaming, "public.a")
        command.wait_said("public.a: waiting")
        command.process.send_signal(signal.SIGINT)
        assert command.ends() == (130, ""), command.said
        assert "the daemon goes on with it" in command.said.splitlines()[-1]
        assert streaming.target(DUE) == [(1,)]
        again = Command(streaming, "public.a")
        again.wait_said("being copied already")
    assert again.ends() == (0, f"copied {ROWS} rows of public.a\n"), again.said
    assert same(streaming, "a")
    assert streaming.target(ASKED)[0] == ("public.a", 2)


def test_a_command_that_copies_itself_can_be_stopped_and_gone_on_with(copied):
    damage(copied)
    with held_up(copied):
        command = Command(copied, "public.a")
        command.wait_said("copying here")
        until(lambda: streams(copied), what="it streams")
    command.process.send_signal(signal.SIGINT)
    code, answer = command.ends()
    assert not streams(copied)
    if code == 0:  # it was quicker
        assert answer == f"copied {ROWS} rows of public.a\n"
        return
    assert (code, answer) == (130, ""), command.said
    assert "`cdc run` goes on with it" in command.said
    process = start(copied)
    until(lambda: copied.target(DUE) == [(0,)], what="the daemon goes on with it")
    stop(process)
    assert same(copied, "a")


def test_two_commands_without_a_daemon_both_get_what_they_asked_for(copied):
    damage(copied)
    commands = [Command(copied, "public.a"), Command(copied, "public.b")]
    for command, table in zip(commands, TABLES, strict=True):
        assert command.ends() == (0, f"copied {ROWS} rows of public.{table}\n"), command.said
        assert same(copied, table)
    assert not streams(copied)


def test_a_daemon_that_is_killed_while_it_is_watched_is_waited_for(copied):
    damage(copied)
    process = start(copied)
    with held_up(copied):
        command = Command(copied, "public.a")
        command.wait_said("public.a: waiting")
        process.kill()
        process.wait()
        command.wait_said("waiting: no daemon streams at the moment")
    start(copied)
    assert command.ends() == (0, f"copied {ROWS} rows of public.a\n"), command.said
    assert same(copied, "a")


def test_what_is_not_copied_here_is_refused(copied):
    for arguments, told in [
        (["public.aa"], "did you mean public.a?"),
        (["--projector", "mirror:public.bb"], "did you mean mirror:public.b?"),
        ([], "nothing named to copy"),
        (["public.a", "--all"], "--all copies everything"),
    ]:
        done = copied.cdc("copy", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
    assert copied.target(ASKED) == [("public.a", 1), ("public.b", 1)]


def test_before_the_first_start_there_is_nothing_to_copy(one_pipeline):
    one_pipeline.source("create table a (id int primary key)")
    one_pipeline.mirror("public.a")
    done = one_pipeline.cdc("copy", "--all")
    assert (done.returncode, done.stdout) == (9, "")
    assert "not set up" in done.stderr
    assert "`cdc run`" in done.stderr


def test_what_is_new_in_the_configuration_wants_a_start(copied):
    copied.source("create table c (id int primary key)")
    copied.mirror("public.a", "public.b", "public.c")
    done = copied.cdc("copy", "public.c")
    assert done.returncode == 9
    assert "new in the configuration" in done.stderr
    assert copied.cdc("copy", "public.a").returncode == 0


def test_rows_without_a_key_are_only_copied_again_when_that_is_meant(one_pipeline):
    one_pipeline.source("create table log (v text)")
    one_pipeline.source("insert into log select 'x' from generate_series(1, 10)")
    one_pipeline.mirror(insert_only="public.log")
    start(one_pipeline)
    wait_copied(one_pipeline, 1)
    refused = one_pipeline.cdc("copy", "public.log")
    assert (refused.returncode, refused.stdout.count("copied")) == (1, 0)
    assert "All rows of log in the read database are deleted" in refused.stdout + refused.stderr
    assert one_pipeline.target(ASKED) == [("public.log", 1)]
    done = one_pipeline.cdc("copy", "public.log", "--yes")
    assert (done.returncode, done.stdout) == (0, "copied 10 rows of public.log\n"), done.stderr
    assert one_pipeline.target("select count(*) from log") == [(10,)]


def test_on_a_terminal_there_are_bars(streaming):
    master, slave = pty.openpty()
    done = subprocess.Popen(
        streaming._command(("copy", "--all")),
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        cwd=streaming.folder,
        env=streaming.environment(TERM="xterm", COLUMNS="120", LINES="30"),
    )
    os.close(slave)
    shown = read_all(master)
    assert done.wait(SECONDS) == 0
    assert done.stdout is not None
    with done.stdout:
        assert done.stdout.read().decode().splitlines() == [
            f"copied {ROWS} rows of public.a",
            f"copied {ROWS} rows of public.b",
        ]
    assert "100.0 %" in shown
    assert "2 of 2 done" in shown


def read_all(master: int) -> str:
    parts = []
    with open(master, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(4096):
                parts.append(part)
        except OSError:  # how a terminal says that nobody writes to it any more
            pass
    return b"".join(parts).decode()


def test_status_and_metrics_say_how_far_copies_are(streaming):
    url = streaming.url(streaming.processes[-1])
    labels = {"table": "public.a"}
    assert value(url, "cdc_copy_progress_ratio", **labels) == 1
    assert value(url, "cdc_copy_rows_total", **labels) == 0
    with held_up(streaming):
        assert streaming.cdc("copy", "public.a", "--no-wait").returncode == 0
        until(lambda: value(url, "cdc_copy_progress_ratio", **labels) < 1, what="it is asked for")
        assert value(url, "cdc_copy_progress_ratio", table="public.b") == 1
        lines = streaming.cdc("status").stdout.splitlines()
        assert "copies            1 of 2 done, 1 waiting" in lines
        assert any("public.a for mirror:public.a: waiting, 0.0 %, 0 rows" in line for line in lines)
    until(lambda: value(url, "cdc_copy_progress_ratio", **labels) == 1, what="it is done")
    assert value(url, "cdc_copy_rows_total", **labels) == ROWS
    by_http = json.loads(get(f"{url}/status")[1])["copies"]
    by_command = json.loads(streaming.cdc("status", "--json").stdout)["copies"]
    for told in by_http, by_command:
        assert [(c["table"], c["state"], c["rows"], c["percent"]) for c in told] == [
            (f"public.{table}", "done", ROWS, 100.0) for table in TABLES
        ]

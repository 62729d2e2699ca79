"""`cdc verify`, as the person who gives it sees it."""

import json
import signal
import subprocess

import psycopg

from tests.acceptance.conftest import SECONDS, Pipeline, until
from tests.acceptance.test_commands import value
from tests.acceptance.test_copy_command import copied, start, stop, streaming  # noqa: F401

ROWS = 3000
DAMAGE = (
    "delete from a where id = 5",
    "insert into a values (9001, 'x'), (9002, 'x')",
    "update b set v = 'other' where id = 7",
)


def damage(pipeline: Pipeline) -> None:
    for statement in DAMAGE:
        pipeline.target(statement)


def test_without_a_daemon_it_compares_by_itself(copied):  # noqa: F811
    copied.source("delete from a where id = 1")  # not streamed yet: no mismatch
    done = copied.cdc("verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"mirror:public.a: {ROWS - 1:,} rows compared, 0 missing, 0 extra, 0 different",
        f"mirror:public.b: {ROWS:,} rows compared, 0 missing, 0 extra, 0 different",
    ]
    assert "no daemon streams: comparing here until it is done" in done.stderr


def test_what_is_wrong_is_listed_by_key_and_told_by_the_exit_code(streaming):  # noqa: F811
    url = streaming.url(streaming.processes[-1])
    labels = {"projector": "mirror:public.a"}
    assert value(url, "cdc_verify_mismatched_rows", **labels) == 0
    damage(streaming)
    done = streaming.cdc("verify")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"mirror:public.a: {ROWS:,} rows compared, 1 missing, 2 extra, 0 different",
        "  missing   a (5)",
        "  extra     a (9001)",
        "  extra     a (9002)",
        f"mirror:public.b: {ROWS:,} rows compared, 0 missing, 0 extra, 1 different",
        "  different b (7)",
    ]
    until(
        lambda: value(url, "cdc_verify_mismatched_rows", **labels) == 3, what="the metric tells it"
    )
    told = json.loads(streaming.cdc("verify", "--projector", "mirror:public.b", "--json").stdout)
    assert [(one["projector"], one["different"], one["keys"]) for one in told] == [
        ("mirror:public.b", 1, [{"table": "b", "verdict": "different", "key": ["7"]}])
    ]
    mended = streaming.cdc("verify", "--repair")
    assert mended.returncode == 0, mended.stdout
    assert "1 missing, 2 extra, 0 different, 3 mended" in mended.stdout
    assert all(streaming.same(table) for table in ("a", "b"))
    until(lambda: value(url, "cdc_verify_mismatched_rows", **labels) == 0, what="it is mended")


def test_an_unknown_projector_and_no_share_are_refused(copied):  # noqa: F811
    for arguments in (("--projector", "nobody"), ("--sample", "0"), ("--sample", "101")):
        refused = copied.cdc("verify", *arguments)
        assert refused.returncode == 2, refused.stderr


def test_closed_it_goes_on_and_given_again_it_is_the_same(streaming):  # noqa: F811
    asked = "select distinct asked from cdc_verify"
    with psycopg.connect(streaming.read.dsn(streaming.name)) as other:
        other.execute("lock table a in access exclusive mode")
        first = begin(streaming, "verify")
        until(lambda: streaming.target(asked) == [(1,)], what="it is asked for")
        waits = "select 1 from pg_locks where not granted"
        until(lambda: streaming.target(waits), what="it compares")
        first.send_signal(signal.SIGINT)
        assert first.wait(SECONDS) == 130
        second = begin(streaming, "verify")
        shown = streaming.folder / "err1"
        until(lambda: "public.a" in shown.read_text(), what="it is shown again")
    assert second.wait(SECONDS) == 0
    assert streaming.target(asked) == [(1,)]


def begin(pipeline: Pipeline, *arguments: str) -> subprocess.Popen[bytes]:
    number = len(list(pipeline.folder.glob("err*")))
    with (pipeline.folder / f"err{number}").open("w") as err:
        process = subprocess.Popen(
            pipeline._command(arguments),
            stdout=subprocess.DEVNULL,
            stderr=err,
            cwd=pipeline.folder,
            env=pipeline.environment(),
        )
    pipeline.processes.append(process)
    return process

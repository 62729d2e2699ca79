"""What the daemon writes holds no password and no value of a row; what it is sent does no harm."""

import re
import signal
import urllib.request
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdc.names import TableName
from tests import roles
from tests.acceptance.conftest import Pipeline, until

PASSWORD = "pa55-hush"
VALUES = ("hush-7f3a", "90817263.5", "2031-07-09", "sssh")
ROW = f"'{VALUES[0]}', {VALUES[1]}, '{VALUES[2]}', array['{VALUES[3]}']"
TABLE = "create table public.t (id int primary key, v text, n numeric, d date, a text[])"
PROJECTOR = """
import sqlalchemy as sa
from cdc import Upsert, projector

T = sa.Table("t_read", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))

@projector("public.t", into=T)
def fails(change):
    raise RuntimeError(f"cannot take {change!r} {change.row!r} {dict(change.row)}")
"""
FAULT = """
from cdc.sink.writer import Writer

def apply(self, batch):
    raise KeyError([change.values for one in batch.transactions for change in one.changes], batch)

Writer.apply = apply
"""


STOPS = {"CDC_PROJECTION__ON_ERROR": "stop"}
MANY = {"CDC_PROJECTION__QUARANTINE_LIMIT": "1000"}


def get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except HTTPError as error:
        with error:
            return error.read().decode()


def with_passwords(pipeline: Pipeline) -> dict[str, str]:
    dsn = pipeline.write.dsn(pipeline.name, roles.write_role(pipeline.plugin))
    url = pipeline.read.url(pipeline.name, roles.DAEMON)
    given = {"CDC_SOURCE__DSN": dsn, "CDC_READ__URL": url, "CDC_PROJECTION__HASH_KEY": PASSWORD}
    return {name: text.replace("@", f":{PASSWORD}@") for name, text in given.items()}


def told(pipeline: Pipeline, *arguments: str, code: int, **environment: str) -> str:
    """Run a command to its end; give all that it wrote."""
    done = pipeline.cdc(*arguments, **with_passwords(pipeline) | environment)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def streamed(pipeline: Pipeline, form: str) -> str:
    """Stream, lose both databases' sessions, and end by a signal; give all that was written."""
    process = pipeline.start(
        *("--log-level", "DEBUG", "--log-format", form), **with_passwords(pipeline)
    )
    pipeline.caught_up()
    url = re.findall(r"http://[\d.:]+", str(until(lambda: pipeline.log(process), what="a log")))[0]
    pipeline.source(f"insert into t select max(id) + 1, {ROW} from t")
    pipeline.source("update t set id = -id where id = 1; delete from t where id = 2")
    sessions = (
        f"from pg_stat_activity where application_name = 'cdc' and datname = '{pipeline.name}'"
    )
    for server in (pipeline.write, pipeline.read):
        server.psql(f"select pg_terminate_backend(pid) {sessions}")
    pipeline.caught_up()
    pages = [get(f"{url}/{page}") for page in ("status", "metrics", "ready", "live", "nothing", "")]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    return "\n".join([pipeline.log(process), *pages])


def test_no_password_and_no_value_is_written_whatever_fails(one_pipeline: Pipeline) -> None:
    pipeline = one_pipeline
    pipeline.source(TABLE)
    pipeline.source(f"insert into t select g, {ROW} from generate_series(1, 300) g")
    pipeline.mirror("public.t")
    written = [streamed(pipeline, form) for form in ("text", "json")]
    pipeline.target("update t set v = 'other' where id = 3")
    written.append(told(pipeline, "verify", "--json", code=1))
    written.append(told(pipeline, "status", "--json", code=1))  # nobody streams
    written.append(told(pipeline, "check", code=0))
    unreachable = f"postgresql://cdc:{PASSWORD}@127.0.0.1:1/{pipeline.name}"
    written.append(told(pipeline, "check", code=1, CDC_SOURCE__DSN=unreachable))
    malformed = f"postgresql://cdc:{PASSWORD}@[127.0.0.1/x"
    written.append(told(pipeline, "run", code=2, CDC_SOURCE__DSN=malformed))
    written.append(told(pipeline, "run", code=2, CDC_READ__URL=f"oracle://c:{PASSWORD}@h/x"))

    pipeline.target("delete from t; alter table t add constraint short check (length(v) < 3)")
    pipeline.source(f"insert into t select g, {ROW} from generate_series(400, 402) g")
    written.append(told(pipeline, "run", code=4, **STOPS))
    pipeline.target("alter table t drop constraint short; alter table t add unique (v)")
    written.append(told(pipeline, "run", code=4, **STOPS))
    pipeline.target("alter table t alter n type int using null, alter d type int using null")
    written.append(told(pipeline, "run", "--log-level", "debug", code=4, **STOPS))
    (pipeline.folder / "fails.py").write_text(PROJECTOR)
    pipeline.configure('[projection]\nmodules = ["fails"]')
    written.append(told(pipeline, "run", code=5, **STOPS))
    written.append(told(pipeline, "run", "--until", "now", "--log-level", "debug", code=0, **MANY))
    written += [
        told(pipeline, "quarantine", *words, code=0) for words in (["list"], ["show", "400"])
    ]
    (pipeline.folder / "fault.py").write_text(FAULT + PROJECTOR.replace("raise", "return None #"))
    pipeline.configure('[projection]\nmodules = ["fault"]')
    written.append(told(pipeline, "run", code=1))
    assert "KeyError" in written[-1]

    for text in written:
        for secret in (PASSWORD, *VALUES):
            assert secret not in text, text


NAMES = (
    "x'; drop table kept; --",
    'a"b""c',
    "%s %(x)s {0} {x} $1 :name \\N",
    "[red]bold[/] [/nothing]",
    "\x1b[2J\x1b]0;owned\x07",
    "new\nline\r\ttab",
    "<script>alert(1)</script>&amp;",
    "\u202eright to left\u2028",
    "Ünï.*,co\\dé",
)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_hostile_names_and_values_are_carried_over_and_do_no_harm(pipeline: Pipeline) -> None:
    pipeline.source("create table kept (id int primary key)")
    for name in NAMES:
        columns = ", ".join(f"{quoted(other)} text" for other in NAMES)
        pipeline.source(f"create table {quoted(name)} ({columns}, primary key ({quoted(name)}))")
        row = ", ".join(literal(other) for other in NAMES)
        pipeline.source(f"insert into {quoted(name)} values ({row})")
    pipeline.mirror("public.*")
    process = pipeline.start("--log-level", "DEBUG")
    pipeline.caught_up()
    for name in NAMES:
        row = ", ".join(literal(f"{other} again") for other in NAMES)
        pipeline.source(f"insert into {quoted(name)} values ({row})")
        pipeline.source(
            f"update {quoted(name)} set {quoted(name)} = {literal(name + ' moved')} "
            f"where {quoted(name)} = {literal(name)}"
        )
    pipeline.caught_up()
    for name in NAMES:
        assert pipeline.same(quoted(name)), name
        assert pipeline.target(f"select count(*) from {quoted(name)}") == [(2,)]
    assert pipeline.target("select count(*) from kept") == [(0,)]

    metrics = get(f"{pipeline.url(process)}/metrics")
    labels = {
        sample.labels.get("projector")
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }
    assert {f"mirror:{TableName('public', name)}" for name in NAMES} <= labels
    assert "<script>" not in get(f"{pipeline.url(process)}/<script>")
    commands = (["copy", "--all"], ["verify"], ["status", "--json"], ["check"])
    for words in commands if pipeline.plugin == "pgoutput" else ():  # to them it is all one
        done = pipeline.cdc(*words)
        assert done.returncode == 0, done.stderr
        assert printable(done.stdout), done.stdout
        assert printable(done.stderr), done.stderr
    process.terminate()
    assert process.wait(60) == 0
    assert printable(pipeline.log(process))


@pytest.mark.parametrize("name", ["\x1b[31m[red]", "a\nerror: b"])
def test_an_error_that_names_what_is_hostile_is_one_harmless_line(
    one_pipeline: Pipeline, name: str
) -> None:
    one_pipeline.source(f"create table {quoted(name)} (id int)")
    one_pipeline.mirror("public.*")
    done = one_pipeline.cdc("run")
    assert done.returncode == 2
    assert printable(done.stderr)
    assert [line[:5] for line in done.stderr.splitlines() if "public" in line][:1] == ["error"]

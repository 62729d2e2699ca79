"""Every mistake gets one clear message, an exit code from the list, and no traceback."""

import socket
import textwrap

import pytest

from cdc.servers import Server, find
from tests.acceptance.conftest import FAST, Pipeline, until
from tests.conftest import installation

STOPS = {"CDC_PROJECTION__ON_ERROR": "stop"}


def refuses(pipeline: Pipeline, code: int, *words: str, **environment: str) -> str:
    """Run the daemon, expecting a refusal whose message holds these words."""
    done = pipeline.cdc("run", **environment)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr


@pytest.fixture
def ready(one_pipeline: Pipeline) -> Pipeline:
    one_pipeline.source("create table public.t (id int primary key, v text)")
    one_pipeline.mirror("public.t")
    return one_pipeline


def module(pipeline: Pipeline, source: str) -> None:
    (pipeline.folder / "models.py").write_text(textwrap.dedent(source))
    pipeline.configure('[projection]\nmodules = ["models"]')


def test_no_configuration_file(ready):
    ready.config.unlink()
    refuses(ready, 2, "there is no configuration file", "--config")


def test_an_unknown_key_names_the_nearest_right_one(ready):
    ready.config.write_text(ready.config.read_text().replace("slot =", "slto ="))
    refuses(ready, 2, "source.slto", "did you mean source.slot?")


def test_a_misspelt_environment_variable(ready):
    refuses(ready, 2, "CDC_SORUCE__DSN", CDC_SORUCE__DSN="x")


def test_a_bad_value(ready):
    refuses(ready, 2, "source.slot", CDC_SOURCE__SLOT="Bad-Slot")


def test_a_dsn_that_is_none_is_not_printed(ready):
    told = refuses(ready, 2, "source.dsn", CDC_SOURCE__DSN="secret word = nothing")
    assert "secret" not in told


def test_the_configuration_is_not_toml(ready):
    ready.config.write_text("[source\n")
    refuses(ready, 2, "is not TOML")


def test_a_bad_until(ready):
    done = ready.cdc("run", "--until", "tomorrow")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "--until tomorrow" in done.stderr


@pytest.mark.parametrize("side", ["SOURCE__DSN", "READ__URL"])
def test_an_unreachable_database_is_retried_and_said_once(ready, side):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        scheme = "postgresql" if side == "SOURCE__DSN" else "postgresql+psycopg"
        process = ready.start(**{f"CDC_{side}": f"{scheme}://u:hush@127.0.0.1:{port}/x"})
        until(lambda: "retrying" in ready.log(process), what="it says that it retries")
        url = ready.url(process)
        until(lambda: retries(url) > 2, what="it tries again and again")
        process.terminate()
        assert process.wait(15) == 0
    told = ready.log(process)
    assert told.count("retrying") == 1
    assert "hush" not in told
    assert "Traceback" not in told


def retries(url: str) -> float:
    import urllib.request

    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("cdc_retries_total{"))


@pytest.mark.parametrize("side", ["source", "read"])
def test_a_wrong_password(ready, side):
    with Server(installation(), FAST, auth="scram-sha-256") as locked:
        wrong = locked.dsn().replace(str(locked.password), "hush-hush")
        if side == "source":
            told = refuses(ready, 3, "password authentication failed", CDC_SOURCE__DSN=wrong)
        else:
            url = wrong.replace("postgresql:", "postgresql+psycopg:")
            told = refuses(ready, 4, "password authentication failed", CDC_READ__URL=url)
    assert "hush-hush" not in told


def test_wal_level_replica(ready):
    with Server(installation(), {**FAST, "wal_level": "replica"}) as server:
        server.psql("create table t (id int primary key)")
        refuses(ready, 3, "wal_level", "cdc check", CDC_SOURCE__DSN=server.dsn())
        done = ready.cdc("check", CDC_SOURCE__DSN=server.dsn())
        assert done.returncode == 1
        assert "alter system set wal_level = 'logical';" in done.stdout


def test_a_plugin_that_is_not_installed(ready):
    wheel = find("wheel")
    with Server(wheel, {**FAST, "output_plugin_libraries": "pgoutput, wal2json"}) as server:
        server.psql("create table t (id int primary key)")
        refuses(ready, 3, "wal2json", "install wal2json", CDC_SOURCE__DSN=server.dsn())


def test_a_plugin_that_the_server_does_not_allow(ready):
    wheel = find("wheel")  # the one release at hand that has the allow-list whatever Debian ships
    with Server(wheel, {**FAST, "output_plugin_libraries": None}) as server:
        server.psql("create table t (id int primary key)")
        told = refuses(ready, 3, "wal2json", CDC_SOURCE__DSN=server.dsn())
    assert "output_plugin_libraries" in told


def test_a_role_without_the_replication_attribute(ready):
    ready.source(f"create role {ready.name} login")
    dsn = ready.write.dsn(ready.name, user=ready.name)
    refuses(ready, 3, "replication", "alter role", CDC_SOURCE__DSN=dsn)


def test_no_free_slot(ready):
    with Server(installation(), {**FAST, "max_replication_slots": 1}) as server:
        server.psql("create table t (id int primary key)")
        server.psql("select pg_create_logical_replication_slot('other', 'test_decoding')")
        refuses(ready, 3, "all replication slots are in use", CDC_SOURCE__DSN=server.dsn())


def test_a_mirrored_table_that_does_not_exist(ready):
    ready.mirror("public.nothing")
    refuses(ready, 2, "public.nothing")


def test_a_mirrored_table_without_key(ready):
    ready.source("create table public.nokey (v text)")
    ready.mirror("public.nokey")
    refuses(ready, 2, "public.nokey", "no usable key", "insert_only")


def test_a_projector_module_that_does_not_import(ready):
    module(ready, "import nothing_of_that_name")
    refuses(ready, 2, "models", "nothing_of_that_name")


def test_a_projector_module_that_leaves_is_no_success(ready):
    module(ready, "import sys\nsys.exit(0)")
    refuses(ready, 2, "models", "SystemExit: 0")
    done = ready.cdc("check")
    assert (done.returncode, "SystemExit: 0" in done.stdout) == (1, True)


def test_a_projector_module_that_does_not_exist(ready):
    ready.configure('[projection]\nmodules = ["no.such.module"]')
    refuses(ready, 2, "no.such.module")


MODEL = """
import sqlalchemy as sa
from cdc import *
T = sa.Table("t_read", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True),
             sa.Column("v", sa.Text))
"""


def test_a_projector_of_a_table_that_is_not_there(ready):
    module(ready, MODEL + '@projector("public.gone", into=T)\ndef gone(change): return None\n')
    refuses(ready, 2, "gone", "public.gone")


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ('Upsert(T, id=1, w="x")', 'no column "w"'),
        ('Upsert(T, v="hush")', 'key column "id"'),
        ('Upsert("t", id=1)', "no read model"),
        ("Upsert(U, id=1)", "not in its `into`"),
        ('change.row["nope"]', 'no column "nope"'),
        ('int(change.row["v"])', "ValueError at"),
        ("exit(0)", "SystemExit at"),
        ("42", "returned"),
    ],
)
def test_a_projector_that_is_wrong_names_itself_and_no_values(ready, operation, words):
    other = 'U = sa.Table("u", T.metadata, sa.Column("id", sa.Integer, primary_key=True))\n'
    body = f'@projector("public.t", into=T)\ndef wrong(change):\n    return {operation}\n'
    module(ready, MODEL + other + body)
    ready.cdc("setup")
    ready.source("insert into t values (7, 'hush')")
    told = refuses(ready, 5, "projector wrong", "public.t", "id='7'", words, **STOPS)
    assert "hush" not in told
    assert ready.source("select count(*) from pg_replication_slots where slot_name like 't_%'")


def test_a_read_table_of_another_shape(ready):
    ready.target("create table t (id int primary key, v int, w int not null)")
    told = refuses(ready, 4, "read table t does not fit", '"v" is integer, not text', '"w"')
    assert "alter table" in told


def test_the_http_port_is_taken(ready):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = f"127.0.0.1:{port}"
        refuses(ready, 2, listen, "http.listen", CDC_HTTP__LISTEN=listen)
        done = ready.cdc("check", CDC_HTTP__LISTEN=listen)
        assert (done.returncode, "PortTaken" in done.stdout) == (1, True)
    assert ready.cdc("check", CDC_HTTP__LISTEN=listen).returncode == 0
    process = ready.start(CDC_HTTP__LISTEN=listen)
    ready.url(process)
    assert "PortTaken" not in ready.cdc("check", CDC_HTTP__LISTEN=listen).stdout


def test_a_write_that_the_read_database_refuses_names_key_and_loses_nothing(ready):
    ready.cdc("setup")
    ready.target("alter table t add constraint short check (length(v) < 5)")
    ready.source("insert into t values (1, 'ok'), (2, 'hush-hush'), (3, 'ok')")
    told = refuses(ready, 4, "mirror:public.t", "id='2'", "constraint short", **STOPS)
    assert "hush" not in told
    assert ready.target("select * from t") == []
    ready.target("alter table t drop constraint short")
    assert ready.cdc("run", "--until", "now").returncode == 0
    assert ready.same("t")


@pytest.mark.parametrize(
    ("ddl", "told"),
    [
        ("drop table t", "public.t was dropped while"),
        (
            "drop table t; create table t (id int primary key, v text)",
            "public.t was dropped and made anew while",
        ),
        ("alter table t rename to t2", "public.t was renamed to public.t2 while"),
        (
            "create table tn (like t including all); alter table t rename to told; "
            "alter table tn rename to t",
            "public.t was renamed to public.told, and another table given its name, while",
        ),
        (
            "alter table t drop column v; alter table t add column v text",
            'column "v" of public.t was dropped and made again while',
        ),
        (
            "alter table t alter v type varchar(5)",
            'column "v" of public.t is now character varying(5), and was text, while',
        ),
    ],
)
def test_a_table_that_is_replaced_while_streaming_stops_the_daemon(pipeline, ddl, told):
    pipeline.source("create table public.t (id int primary key, v text)")
    pipeline.mirror("public.t")
    process = pipeline.start()
    pipeline.caught_up()
    pipeline.source(ddl)
    assert process.wait(20) == 8
    log = pipeline.log(process)
    assert told in log
    assert "Traceback" not in log


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("expression", ['"hush" + chr(0xD800)', '"hush" + chr(0)', "[object()]"])
def test_a_value_that_cannot_be_sent_is_told_by_its_type(ready, rows, expression):
    body = (
        '@projector("public.t", into=T)\n'
        f'def wrong(change):\n    return Upsert(T, id=change.row["id"], v={expression})\n'
    )
    module(ready, MODEL + body)
    ready.cdc("setup")
    ready.source(f"insert into t select g, 'x' from generate_series(1, {rows}) g")
    told = refuses(ready, 4, "projector wrong", "t_read (id=", **STOPS)
    assert "hush" not in told

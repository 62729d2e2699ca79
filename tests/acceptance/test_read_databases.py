"""MariaDB and SQLite as read databases: the installed command, killed, and compared."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from cdc.demo import application
from cdc.lsn import Lsn
from cdc.operate import setup
from cdc.operate.compare import TableComparison, compare
from cdc.servers import Server
from cdc.settings import Settings
from cdc.settings import load as load_settings
from cdc.sink.engine import create_engine
from cdc.source.connection import connect
from tests import roles
from tests.acceptance.conftest import SECONDS, until
from tests.conftest import ROOT, nursery, require, toml
from tests.mariadb import MariaDB
from tests.mariadb import find as find_mariadb
from tests.nursery import Child
from tests.read_databases import MariaRead, ReadDatabase, SQLiteRead

KILLS = 8
TABLES = """
create type mood as enum ('ok', 'Ok');
create domain amount as numeric(12, 4);
create table kinds (
    id int, region text, primary key (region, id), n bigint default 0, big text,
    flag boolean, code char(5), v varchar(10), address inet, total numeric, price amount,
    ratio float8, single real, raw bytea, day date, at timestamptz, naive timestamp,
    daily time, span interval, document jsonb, verbatim json, tags text[], feeling mood,
    uuid uuid, spread int4range
);
alter table kinds alter big set storage external;
create table small (name text primary key, n int);
create table logged (i int, line text);
create function work(i int, op int) returns void language plpgsql as $$
declare place text := (array['north', 'North', 'north ', 'nörth'])[1 + i % 4];
begin
    insert into logged values (i, format('%s of %s', op, i));
    if op <= 4 then
        insert into kinds values (
            i, place, i, repeat(md5(i::text), 200), i % 2 = 0, 'ab', 'x' || op, '10.0.0.1',
            i / 7.0, 1.5, i / 3.0, 0.1, decode(md5(i::text), 'hex'), '2024-02-29',
            now() - i * interval '1 microsecond', 'infinity', '24:00:00', '1 year 2 days 3 hours',
            '{"a": 1.50}', '{"a" :  1, "a": 2}', array['x', null, E'tab\\t and \\\\ backslash'],
            'Ok', md5(i::text)::uuid, '[1,5)'
        ) on conflict (region, id) do update set n = kinds.n + 1, day = '0044-03-15 BC';
    elsif op = 5 then
        update kinds set big = repeat(md5(n::text), 300) where id = i;
    elsif op = 6 then
        delete from kinds where id = i;
    elsif op = 7 then
        update kinds set id = id + 10000 where id = i and n % 3 = 0;
    elsif op = 8 then
        insert into small select place || g, op from generate_series(1, 40) g
            on conflict (name) do update set n = small.n + 1;
    elsif op = 9 and i % 10 = 0 then
        truncate small;
    elsif op = 10 then
        update kinds set flag = not flag, v = null where id between i and i + 30;
    end if;
exception when unique_violation or deadlock_detected then
    null;
end $$;
"""
SCRIPT = """
\\set i random(1, 400)
\\set op random(1, 10)
select work(:i, :op);
"""


class Pipeline:
    """A write database, a read database of another dialect, and the command."""

    def __init__(self, write: Server, store: ReadDatabase, folder: Path, plugin: str) -> None:
        self.write, self.store, self.folder = write, store, folder
        self.name = f"t_{os.urandom(5).hex()}"
        self.processes: list[Child | subprocess.Popen[bytes]] = []
        roles.prepare_write(write)
        write.create_database(self.name)
        write.psql(f"alter database {self.name} owner to {roles.OWNER}")
        sections = {
            "source": {
                "dsn": write.dsn(self.name, roles.write_role(plugin)),
                "slot": self.name,
                "plugin": plugin,
                "publication": self.name,
            },
            "read": {"url": store.url},
            "http": {"listen": "127.0.0.1:0"},
        }
        lines = [
            f"[{section}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items())
            for section, keys in sections.items()
        ]
        self.config = folder / "cdc.toml"
        self.config.write_text("\n".join(lines))

    def mirror(self, *tables: str, insert_only: str | None = None) -> None:
        with self.config.open("a") as file:
            for table in tables:
                file.write(f'[[projection.mirrors]]\nsource = "{table}"\n')
            if insert_only:
                file.write(
                    f'[[projection.mirrors]]\nsource = "{insert_only}"\ninsert_only = true\n'
                )

    def source(self, statements: str) -> list[tuple]:
        return self.write.psql(statements, self.name)

    @property
    def settings(self) -> Settings:
        return load_settings(self.config)

    def cdc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments),
            capture_output=True,
            text=True,
            timeout=2 * SECONDS,
            check=False,
            cwd=self.folder,
            env=_environment(),
        )

    def start(self, **environment: str) -> Child:
        process = nursery().start(
            ["run", "--config", str(self.config)],
            folder=self.folder,
            environment=_environment() | environment,
            output=Path(os.devnull),
            errors=self.folder / "log",
        )
        self.processes.append(process)
        return process

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        command, *rest = arguments
        return [sys.executable, "-m", "cdc", command, "--config", str(self.config), *rest]

    def checkpoint(self) -> Lsn:
        try:
            rows = self.store.query("select lsn from cdc_checkpoint where lsn is not null")
        except Exception:  # noqa: BLE001  the table is not there yet
            return Lsn(0)
        return Lsn(rows[0][0]) if rows else Lsn(0)

    def caught_up(self) -> None:
        """Wait until everything committed before now is applied, and every copy is done."""
        mark = self.source("select pg_logical_emit_message(true, 'cdc', 'mark') - '0/0'::pg_lsn")
        until(lambda: self.checkpoint() >= mark[0][0], what="the checkpoint reaches the mark")
        due = "select count(*) from cdc_copy where state in ('waiting', 'copying')"
        until(lambda: self.store.query(due) == [(0,)], what="every copy is done")

    def compared(self) -> dict[str, TableComparison]:
        """Compare all that is mirrored, as `compare` does between any two dialects."""
        engine = create_engine(self.store.url, reading=True)
        with closing(connect(self.write.dsn(self.name))) as source, engine.connect() as read:
            plan = setup.plan(self.settings, source)
            found = compare(plan.registry, plan.schema, source=source, read=read)
        return {one.table: one for one in found}

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        drop = (
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
            f"where slot_name = '{self.name}' and not active"
        )
        left = f"select 1 from pg_replication_slots where slot_name = '{self.name}'"
        until(lambda: (self.source(drop), not self.source(left))[1], what="the slot can be dropped")


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
    return {**kept, "COLUMNS": "500", "PYTHONPATH": str(ROOT)}


@pytest.fixture(params=["mariadb", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ReadDatabase:
    if request.param == "mariadb":
        return MariaRead(request.getfixturevalue("mariadb"))
    return SQLiteRead(tmp_path / "read.db")


@pytest.fixture(params=["wal2json", "pgoutput"])
def plugin(request: pytest.FixtureRequest, write: Server) -> str:
    if request.param == "wal2json":
        require(write.installation.wal2json, "wal2json")
    return str(request.param)


@pytest.fixture
def pipeline(write: Server, store: ReadDatabase, tmp_path: Path, plugin: str) -> Iterator[Pipeline]:
    made = Pipeline(write, store, tmp_path, plugin)
    yield made
    made.close()


@pytest.fixture
def one_pipeline(write: Server, store: ReadDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline where the plugin makes no difference."""
    made = Pipeline(write, store, tmp_path, "pgoutput")
    yield made
    made.close()


@pytest.mark.timeout(900)
def test_killed_at_random_under_writes_the_mirrors_are_equal_afterwards(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.source(TABLES)
    pipeline.mirror("public.kinds", "public.small", insert_only="public.logged")
    done = pipeline.cdc("setup")
    assert done.returncode == 0, done.stderr
    writes = workload(pipeline, tmp_path)
    moments = random.Random(7)
    applied_at_kill = set()
    for _ in range(KILLS):
        process, before = pipeline.start(), pipeline.checkpoint()
        until(lambda before=before: pipeline.checkpoint() > before, what="it applies something")
        time.sleep(moments.uniform(0, 0.3))  # the fault's moment, not a wait for anything
        process.kill()
        assert process.wait() == -signal.SIGKILL
        applied_at_kill.add(pipeline.checkpoint())
    writes.terminate()
    writes.wait()
    assert len(applied_at_kill) == KILLS
    done = pipeline.cdc("run", "--until", "now")
    assert done.returncode == 0, done.stderr
    found = pipeline.compared()
    assert found["kinds"].rows > 100
    for name in ("kinds", "small"):
        assert found[name].equal, found[name]
    lines = "select count(*), count(distinct line), sum(i) from logged"
    assert [tuple(map(int, row)) for row in pipeline.store.query(lines)] == pipeline.source(lines)
    assert pipeline.source("select count(*) from logged")[0][0] > 500


def workload(pipeline: Pipeline, folder: Path) -> subprocess.Popen[bytes]:
    tool = pipeline.write.installation.bin / "pgbench"
    require(tool.exists(), "pgbench")
    script = folder / "work.sql"
    script.write_text(SCRIPT)
    options = ["-c", "2", "-T", "120", "-n", "-R", "300", "-f", str(script)]
    return subprocess.Popen(
        [tool, *options, pipeline.write.dsn(pipeline.name)], stdout=-3, stderr=-3
    )


BLOG = Path(application.__file__)


def serve(pipeline: Pipeline) -> subprocess.Popen[bytes]:
    """Let the demo's application make its tables and write to them."""
    url = pipeline.write.url(pipeline.name)
    subprocess.run([sys.executable, BLOG, "migrate", url], check=True)
    assert pipeline.cdc("setup").returncode == 0
    started = subprocess.Popen([sys.executable, BLOG, "serve", url], stdout=-3, stderr=-3)
    pipeline.processes.append(started)
    return started


def test_projectors_write_their_read_models_to_it(one_pipeline: Pipeline) -> None:
    with one_pipeline.config.open("a") as file:
        file.write('[projection]\nmodules = ["projectors.blog"]\n')
    one_pipeline.mirror("public.authors")
    blog = serve(one_pipeline)
    process = one_pipeline.start()
    count = "select count(*) from comment_read"
    until(lambda: one_pipeline.store.query(count)[0][0] > 500, what="comments are read")
    blog.terminate()
    blog.wait()
    one_pipeline.caught_up()
    found = one_pipeline.compared()
    assert set(found) == {"authors", "comment_read", "post_read"}
    for comparison in found.values():
        assert comparison.equal, comparison
        assert comparison.rows
    process.terminate()
    assert process.wait(SECONDS) == 0


def test_a_mariadb_server_that_is_killed_and_restarted_under_writes_loses_nothing(
    write: Server, tmp_path: Path
) -> None:
    require(find_mariadb(), "a MariaDB server")
    with MariaDB() as server:
        pipeline = Pipeline(write, MariaRead(server), tmp_path, "pgoutput")
        pipeline.source(TABLES)
        pipeline.mirror("public.kinds", "public.small", insert_only="public.logged")
        assert pipeline.cdc("setup").returncode == 0
        process = pipeline.start()
        writes = workload(pipeline, tmp_path)
        for _ in range(3):
            before = pipeline.checkpoint()
            until(lambda before=before: pipeline.checkpoint() > before, what="it applies something")
            server.kill()
            server.start()
        writes.terminate()
        writes.wait()
        pipeline.caught_up()
        found = pipeline.compared()
        for name in ("kinds", "small"):
            assert found[name].equal, found[name]
        count = "select count(*) from logged"
        assert pipeline.store.query(count) == pipeline.source(count)
        assert process.poll() is None
        pipeline.close()


def test_setup_then_check_then_status_then_run_then_drop(one_pipeline: Pipeline) -> None:
    one_pipeline.source("create table t (id int primary key, v text)")
    one_pipeline.mirror("public.t")
    assert "not set up" in one_pipeline.cdc("status").stdout
    checked = one_pipeline.cdc("check")
    assert checked.returncode == 0, checked.stdout
    done = one_pipeline.cdc("setup")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ready to stream from ")
    assert one_pipeline.cdc("setup").stdout == done.stdout
    checked = one_pipeline.cdc("check")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] == "ready"
    one_pipeline.source("insert into t values (1, 'x')")
    done = one_pipeline.cdc("run", "--until", "now")
    assert done.returncode == 0, done.stderr
    assert one_pipeline.store.query("select id, v from t") == [(1, "x")]
    status = json.loads(one_pipeline.cdc("status", "--json").stdout)
    assert status["checkpoint_lsn"] is not None
    assert status["last_commit_time"].endswith("+00:00")
    dropped = one_pipeline.cdc("drop", "--yes")
    assert f"checkpoint of slot {one_pipeline.name}" in dropped.stdout
    assert one_pipeline.store.query("select count(*) from cdc_checkpoint") == [(0,)]
    assert one_pipeline.store.query("select count(*) from t") == [(1,)]
    assert "nothing" in one_pipeline.cdc("drop", "--yes").stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_second_daemon_stands_by_and_takes_over(
    one_pipeline: Pipeline, tmp_path: Path, number: signal.Signals
) -> None:
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    first = one_pipeline.start()
    one_pipeline.caught_up()
    second = one_pipeline.start(CDC_READ__TAKEOVER_SECONDS="1")
    until(lambda: "standby" in (tmp_path / "log").read_text(), what="the second stands by")
    first.send_signal(number)
    one_pipeline.source("insert into t values (1)")
    one_pipeline.caught_up()
    if number == signal.SIGSTOP:
        log = len((tmp_path / "log").read_bytes())
        first.send_signal(signal.SIGCONT)
        told = (b"standby", b"another daemon wrote")  # by what had arrived when it was paused
        until(
            lambda: any(text in (tmp_path / "log").read_bytes()[log:] for text in told),
            what="it stands by, or says why it stops",
        )
        one_pipeline.source("insert into t values (2)")
        one_pipeline.caught_up()
    assert one_pipeline.compared()["t"].equal
    second.terminate()
    assert second.wait(SECONDS) == 0


def test_a_transaction_larger_than_a_batch_is_seen_whole_or_not_at_all(
    one_pipeline: Pipeline,
) -> None:
    one_pipeline.source("create table big (id int primary key, v text)")
    one_pipeline.mirror("public.big")
    process = one_pipeline.start()
    one_pipeline.caught_up()
    one_pipeline.source(
        "insert into big select g, repeat('x', 100) from generate_series(1, 60000) g"
    )
    mark = one_pipeline.source("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0]
    seen = set()

    def applied() -> bool:
        seen.update(one_pipeline.store.query("select count(*) from big"))
        return one_pipeline.checkpoint() >= mark

    until(applied, what="the large transaction is applied")
    assert seen <= {(0,), (60000,)}
    assert one_pipeline.compared()["big"].equal
    process.terminate()
    assert process.wait(SECONDS) == 0


def test_a_comparison_finds_what_is_missing_extra_and_different(one_pipeline: Pipeline) -> None:
    one_pipeline.source("create table t (id int, k text, v text, b bytea, primary key (id, k))")
    one_pipeline.mirror("public.t")
    assert one_pipeline.cdc("setup").returncode == 0
    one_pipeline.source("insert into t select g, 'k', 'v', '\\xff' from generate_series(1, 20) g")
    assert one_pipeline.cdc("run", "--until", "now").returncode == 0
    assert one_pipeline.compared()["t"] == TableComparison("t", ("id", "k"), rows=20)
    for statement in (
        "delete from t where id = 3",
        "update t set v = 'V' where id = 4",
        "update t set b = x'fe' where id = 5",
        "update t set v = null where id = 6",
        "update t set k = 'K' where id = 7",
    ):
        one_pipeline.store.query(statement)
    found = one_pipeline.compared()["t"]
    assert (found.rows, found.missing, found.extra, found.different) == (21, 2, 1, 3)
    assert found.keys == {
        "missing": (("3", "k"), ("7", "k")),
        "extra": (("7", "K"),),
        "different": (("4", "k"), ("5", "k"), ("6", "k")),
    }


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)
def test_check_tells_what_a_user_of_mariadb_lacks_and_what_would_lose_commits(
    one_pipeline: Pipeline,
) -> None:
    store = one_pipeline.store
    assert isinstance(store, MariaRead)
    database = store.url.rpartition("/")[2]
    store.query("create or replace user poor@'%' identified by 'pw'")
    store.query(f"grant select on {database}.* to poor@'%'")
    store.query("set global innodb_flush_log_at_trx_commit = 2")
    one_pipeline.config.write_text(one_pipeline.config.read_text().replace("cdc:pw", "poor:pw"))
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    try:
        done = one_pipeline.cdc("check")
        assert one_pipeline.cdc("run").returncode == 4
    finally:
        store.query("set global innodb_flush_log_at_trx_commit = 1")
    assert done.returncode == 1
    for said in ("innodb_flush_log_at_trx_commit is 2, not 1", "create temporary tables", "grant "):
        assert said in done.stdout
    mend = next(li.strip() for li in done.stdout.splitlines() if li.strip().startswith("grant "))
    store.query(mend.rstrip(";"))
    checked = one_pipeline.cdc("check")
    assert checked.returncode == 0, checked.stdout
    done = one_pipeline.cdc("run", "--until", "now")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_looking_at_an_sqlite_database_that_is_not_there_does_not_make_it(
    one_pipeline: Pipeline,
) -> None:
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    for command, code in ((["status"], 1), (["check"], 0), (["drop", "--yes"], 0)):
        assert one_pipeline.cdc(*command).returncode == code
    assert list(one_pipeline.folder.glob("read.db*")) == []


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_folder_that_is_missing_is_named_before_the_daemon_needs_it(
    one_pipeline: Pipeline,
) -> None:
    text = one_pipeline.config.read_text().replace("/read.db", "/none/read.db")
    one_pipeline.config.write_text(text)
    one_pipeline.source("create table t (id int primary key)")
    one_pipeline.mirror("public.t")
    checked = one_pipeline.cdc("check")
    assert checked.returncode == 1
    assert f"the folder {one_pipeline.folder}/none is missing" in checked.stdout
    done = one_pipeline.cdc("run")
    assert done.returncode == 4
    assert "make the folder that read.url names" in done.stderr


def test_the_kinds_of_a_mirror_are_found_in_the_read_database_by_plain_sql(
    one_pipeline: Pipeline,
) -> None:
    """What a reader of the read database sees, without SQLAlchemy or us."""
    one_pipeline.source(TABLES)
    one_pipeline.mirror("public.kinds")
    assert one_pipeline.cdc("setup").returncode == 0
    with psycopg.connect(one_pipeline.write.dsn(one_pipeline.name)) as writer:
        writer.execute("select work(1, 1)")
        writer.execute("update kinds set total = 'NaN', at = '-infinity'")
    assert one_pipeline.cdc("run", "--until", "now").returncode == 0
    columns = "id, region, n, total, price, day, at, naive, verbatim, tags, feeling"
    assert one_pipeline.store.query(f"select {columns} from kinds") == [
        (
            *(1, "North", 1, "NaN", "1.5000", "2024-02-29", "-infinity", "infinity"),
            *('{"a" :  1, "a": 2}', '{x,NULL,"tab\t and \\\\ backslash"}', "Ok"),
        )
    ]

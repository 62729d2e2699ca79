"""Throwaway servers, a fresh database for each test, the daemon as a subprocess."""

import gc
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from psycopg import sql

from cdc.lsn import Lsn
from cdc.servers import Installation, Server, find_installed, find_wheel
from cdc.settings import Settings
from cdc.source.connection import connect_replication
from cdc.source.slot import knows_options, mark_now, try_plugin
from cdc.source.wal2json import AS_STRINGS
from tests import memory, roles
from tests.mariadb import MariaDB
from tests.mariadb import find as mariadb_program
from tests.nursery import Nursery

ROOT = Path(__file__).parents[1]
IN_CI = os.environ.get("CI") == "true"
# Nobody waits for ever: a fact that does not come about within this many seconds is a failure.
PATIENCE = 30.0

hypothesis.settings.register_profile("cdc", deadline=None, derandomize=IN_CI)
# For a long look: pytest --hypothesis-profile=long
hypothesis.settings.register_profile("long", deadline=None, max_examples=10_000)
hypothesis.settings.load_profile("cdc")
_LONG_FACTOR = 50


def examples(usual: int) -> int:
    """Give how many examples a property is tried with that takes servers."""
    return usual * (_LONG_FACTOR if hypothesis.settings().max_examples > 100 else 1)


# Skips.


def require(component: object, name: str) -> None:
    """Skip the test where a component is missing; fail it in CI, which has them all."""
    if not component:
        (pytest.fail if IN_CI else pytest.skip)(f"needs {name}, which is not here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """In CI, fail what was skipped, unless a `skipif` says that it is not for this platform."""
    report = yield
    by_mark = any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and not by_mark:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


# In which order, and how many at once.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take so long that they have a timeout of their own.

    Else one of them may be the last, with all other processes idle.
    """
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Give one process more than there are cores: a test waits a quarter of its time."""
    return (os.cpu_count() or 1) + 1


# Servers and databases.

memory.settle()
FAST = {
    "fsync": False,
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_prepared_transactions": 10,
    "autovacuum": False,
}
_names = count(1)


def installation() -> Installation:
    """Give the installed server, else the wheel's."""
    found = find_installed() or find_wheel()
    require(found, "a Postgres server")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def write_server() -> Iterator[Server]:
    with Server(installation(), FAST) as server:
        roles.prepare_write(server)
        yield server


@pytest.fixture(scope="session")
def read_server() -> Iterator[Server]:
    with Server(installation(), FAST) as server:
        roles.prepare_read(server)
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    require(mariadb_program(), "a MariaDB server")
    with MariaDB() as server:
        yield server


class Database:
    """A database of a test's own, with a superuser's connection in autocommit mode."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"test_{next(_names)}"
        server.create_database(self.name)
        self.connection = server.connect(self.name)

    @property
    def dsn(self) -> str:
        """A superuser's, for what tests prepare and look at."""
        return self.server.dsn(self.name)

    @property
    def url(self) -> str:
        """The daemon's, of a read database."""
        return self.server.url(self.name, self._role(roles.DAEMON))

    def daemon_dsn(self, plugin: str) -> str:
        """The daemon's, of a write database."""
        return self.server.dsn(self.name, self._role(roles.write_role(plugin)))

    def _role(self, name: str) -> str:
        """Of a server that a test has made for itself, the superuser."""
        return name if roles.has(self.server, name) else "postgres"

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=autocommit)

    def run(self, *statements: str) -> Lsn:
        """Execute statements, each its own transaction; give a position after all of them."""
        for statement in statements:
            self.connection.execute(statement.encode())
        return mark_now(self.connection)

    def commit(self, *statements: str) -> Lsn:
        """Execute statements as one transaction; give a position after it."""
        with self.connection.transaction():
            for statement in statements:
                self.connection.execute(statement.encode())
        return mark_now(self.connection)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Give a query's rows."""
        return self.connection.execute(query.encode(), parameters or None).fetchall()

    def value(self, query: str, *parameters: object) -> Any:
        """Give the one value of a query."""
        return self.rows(query, *parameters)[0][0]

    def texts(self, table: str) -> list[tuple[Any, ...]]:
        """Give all rows of a table as the server prints them, in the order of their text."""
        columns = self.rows(
            "select quote_ident(attname) from pg_attribute where attrelid = %s::regclass "
            "and attnum > 0 and not attisdropped order by attname",
            table,
        )
        listed = ", ".join(f"{name}::text" for (name,) in columns)
        return sorted(self.rows(f"select {listed} from {table}"), key=repr)

    def slots(self) -> list[str]:
        query = "select slot_name from pg_replication_slots where database = %s"
        return [name for (name,) in self.rows(query, self.name)]

    def close(self) -> None:
        """Drop it, its slots, and whatever still uses them."""
        if not self.server.running:
            self.server.start()
        self.connection.close()
        with self.server.connect() as admin:
            others = "from pg_stat_activity where datname = %s and pid <> pg_backend_pid()"
            admin.execute(f"select pg_terminate_backend(pid) {others}", [self.name])
            until(lambda: not admin.execute(f"select 1 {others}", [self.name]).fetchone())
            admin.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
                "where database = %s",
                [self.name],
            )
            admin.execute(
                sql.SQL("drop database {} with (force)").format(sql.Identifier(self.name))
            )


@pytest.fixture
def write(write_server: Server) -> Iterator[Database]:
    database = Database(write_server)
    database.run(f"alter database {database.name} owner to {roles.OWNER}")
    yield database
    database.close()


@pytest.fixture
def read(read_server: Server) -> Iterator[Database]:
    database = Database(read_server)
    yield database
    database.close()


@pytest.fixture(params=[pytest.param("wal2json", marks=pytest.mark.wal2json), "pgoutput"])
def plugin(request: pytest.FixtureRequest, write_server: Server) -> str:
    if request.param == "wal2json":
        require(write_server.installation.wal2json, "wal2json")
    return str(request.param)


def tells_not_numbers(database: Database, plugin: str) -> bool:
    """Tell whether the plugin sends NaN and infinities, which wal2json does since 2.6."""
    if plugin == "pgoutput":
        return True
    with closing(connect_replication(database.dsn)) as replication:
        try_plugin(replication, plugin, milliseconds=2000)
        return knows_options(replication, AS_STRINGS)


def until(fact: Callable[[], object], *, seconds: float = PATIENCE) -> None:
    """Wait for a fact; fail where it does not come about in time."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


# The configuration and the daemon.


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from collecting by itself what refers to itself."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive(kind: type) -> list[Any]:
    """Give the objects of a type that are in memory."""
    return [one for one in gc.get_objects() if isinstance(one, kind)]


def toml(value: object) -> str:
    """Write a value as TOML: an inline table for a mapping."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items())
        return "{" + pairs + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture
def slot_name() -> str:
    return f"cdc_{next(_names)}"


class Configuration:
    """The keys of a configuration, as an object, a file or settings."""

    def __init__(self, folder: Path, sections: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.sections = sections

    def with_(self, **sections: Mapping[str, object]) -> "Configuration":
        """Give another one, where these keys are set over the others."""
        merged = {name: dict(keys) for name, keys in self.sections.items()}
        for name, keys in sections.items():
            merged.setdefault(name, {}).update(keys)
        return Configuration(self.folder, merged)

    @property
    def slot(self) -> str:
        return str(self.sections["source"]["slot"])

    def settings(self) -> Settings:
        return Settings(**self.sections)

    def file(self) -> Path:
        path = self.folder / f"cdc-{next(_names)}.toml"
        lines = []
        for section, keys in self.sections.items():
            lines += [f"[{section}]", *(f"{name} = {toml(value)}" for name, value in keys.items())]
        path.write_text("\n".join(lines))
        return path


@pytest.fixture
def configuration(
    tmp_path: Path, write: Database, read: Database, slot_name: str
) -> Callable[..., Configuration]:
    """Make configurations for this test's databases; mirrors and modules as asked."""

    def make(
        plugin: str = "pgoutput",
        *,
        mirrors: list[dict[str, Any]] | None = None,
        modules: list[str] | None = None,
    ) -> Configuration:
        dsn = write.daemon_dsn(plugin)
        source = {"dsn": dsn, "slot": slot_name, "plugin": plugin, "publication": slot_name}
        projection = {"mirrors": mirrors or [], "modules": modules or []}
        sections = {
            "source": source,
            "read": {"url": read.url},
            "projection": projection,
            "http": {"listen": "127.0.0.1:0"},
        }
        return Configuration(tmp_path, sections)

    return make


def command(configuration: Configuration, *arguments: str) -> list[str]:
    """Give the command line of the daemon."""
    return ["run", "--config", str(configuration.file()), *arguments]


def environment() -> dict[str, str]:
    """Give our environment without what would win over the configuration file."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
    return ours | {"COLUMNS": "500"}


@cache
def nursery() -> Nursery:
    """Give the process that daemons are forked from; it ends with the tests."""
    return Nursery(environment())


def pytest_unconfigure() -> None:
    if nursery.cache_info().currsize:
        nursery().close()


class RunningDaemon:
    """A daemon in the background, in a process of its own."""

    def __init__(self, configuration: Configuration, read: Database, *arguments: str) -> None:
        self._slot = configuration.slot
        self._read = read
        self.log_file = configuration.folder / f"daemon-{next(_names)}.log"
        self.process = nursery().start(
            command(configuration, *arguments),
            folder=configuration.folder,
            environment=environment(),
            output=self.log_file,
            errors=self.log_file,
        )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def checkpoint(self) -> Lsn | None:
        """Give the stored checkpoint; None before the first one."""
        if not self._read.value("select to_regclass('cdc_checkpoint') is not null"):
            return None
        found = self._read.rows("select lsn from cdc_checkpoint where slot = %s", self._slot)
        return Lsn(found[0][0]) if found and found[0][0] is not None else None

    def wait_until(self, fact: Callable[[], object]) -> None:
        """Wait for a fact while the daemon runs; fail with its log where it ends before."""

        def fact_or_end() -> object:
            return fact() or self.process.poll() is not None

        until(fact_or_end)
        assert fact(), f"the daemon ended with {self.process.returncode}:\n{self.log}"

    def copied(self) -> bool:
        """Tell whether every table's rows from before have been copied."""
        if not self._read.value("select to_regclass('cdc_copy') is not null"):
            return False
        due = "select state in ('waiting', 'copying') from cdc_copy where slot = %s"
        copies = self._read.rows(due, self._slot)
        return bool(copies) and (True,) not in copies

    def wait_started(self) -> None:
        """Wait until the rows from before are there: what is committed from now on is streamed."""
        self.wait_until(lambda: self.checkpoint() and self.copied())

    def wait_for(self, lsn: Lsn) -> None:
        """Wait until the checkpoint has passed a position, and the rows from before are there."""
        self.wait_until(lambda: (self.checkpoint() or 0) >= lsn and self.copied())

    def ends(self) -> int:
        """Wait for its end; give the exit code."""
        return self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; give the exit code."""
        self.process.send_signal(number)
        return self.ends()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def cdc_start(read: Database) -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons in the background; end them with the test."""
    started: list[RunningDaemon] = []

    def start(configuration: Configuration, *arguments: str) -> RunningDaemon:
        started.append(RunningDaemon(configuration, read, *arguments))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.kill()


@pytest.fixture
def cdc_run() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a daemon to a position, by default to what is committed now."""

    def run(
        configuration: Configuration, *arguments: str, until: str = "now", succeeds: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        output, errors = (
            configuration.folder / f"{next(_names)}.{what}" for what in ("out", "err")
        )
        line = [*command(configuration, *arguments), "--until", until]
        child = nursery().start(
            line,
            folder=configuration.folder,
            environment=environment(),
            output=output,
            errors=errors,
        )
        try:
            code = child.wait(2 * PATIENCE)
        finally:
            child.kill()
        ran = subprocess.CompletedProcess(line, code, output.read_text(), errors.read_text())
        if succeeds:
            assert ran.returncode == 0, ran.stderr
        return ran

    return run

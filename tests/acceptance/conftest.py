"""The installed command, run as a subprocess against real servers."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from cdc.lsn import Lsn
from cdc.servers import Server
from tests import roles
from tests.conftest import installation, nursery, require
from tests.nursery import Child

SECONDS = 60
FAST = {"fsync": False, "max_connections": 60}


@pytest.fixture(scope="session")
def write() -> Iterator[Server]:
    with Server(installation(), {**FAST, "wal_sender_timeout": "5s"}) as server:
        yield server


@pytest.fixture(scope="session")
def read() -> Iterator[Server]:
    with Server(installation(), FAST) as server:
        yield server


def until(fact: Callable[[], object], *, what: str, seconds: float = SECONDS) -> object:
    """Wait for a fact; fail naming it where it does not come true."""
    deadline, pause = time.monotonic() + seconds, 0.01
    while time.monotonic() < deadline:
        if found := fact():
            return found
        time.sleep(pause)
        pause = min(1.5 * pause, 0.05)  # most facts take a connection of their own to look at
    pytest.fail(f"not within {seconds} s: {what}")


class Pipeline:
    """A write and a read database, a configuration between them, and the command."""

    def __init__(self, write: Server, read: Server, folder: Path, plugin: str) -> None:
        self.write, self.read, self.plugin = write, read, plugin
        self.name = f"t_{uuid.uuid4().hex[:10]}"
        self.folder = folder
        self.config = folder / "cdc.toml"
        self.processes: list[Child | subprocess.Popen[Any]] = []
        roles.prepare_write(write)
        roles.prepare_read(read)
        write.create_database(self.name)
        write.psql(f"alter database {self.name} owner to {roles.OWNER}")
        read.create_database(self.name)

    def configure(self, projection: str, **source: object) -> None:
        extra = "\n".join(f"{name} = {value!r}" for name, value in source.items())
        self.config.write_text(
            f"""
[source]
dsn = "{self.write.dsn(self.name, roles.write_role(self.plugin))}"
slot = "{self.name}"
plugin = "{self.plugin}"
publication = "{self.name}"
{extra}
[read]
url = "{self.read.url(self.name, roles.DAEMON)}"
[http]
listen = "127.0.0.1:0"
{projection}
"""
        )

    def mirror(self, *tables: str, insert_only: str | None = None) -> None:
        parts = [f'[[projection.mirrors]]\nsource = "{table}"' for table in tables]
        if insert_only:
            parts.append(f'[[projection.mirrors]]\nsource = "{insert_only}"\ninsert_only = true')
        self.configure("\n".join(parts))

    def source(self, sql: str) -> list[tuple]:
        return self.write.psql(sql, self.name)

    def target(self, sql: str) -> list[tuple]:
        return self.read.psql(sql, self.name)

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CDC_")}
        return {**kept, "PYTHONUNBUFFERED": "1", **variables}

    def cdc(
        self, *arguments: str, output: TextIO | int = subprocess.PIPE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
            cwd=self.folder,
            env=self.environment(**environment),
        )

    def start(self, *arguments: str, **environment: str) -> Child:
        process = nursery().start(
            ["run", "--config", str(self.config), *arguments],
            folder=self.folder,
            environment=self.environment(**environment),
            output=Path(os.devnull),
            errors=self.folder / f"log{len(self.processes)}",
        )
        self.processes.append(process)
        return process

    def log(self, process: Child) -> str:
        return (self.folder / f"log{self.processes.index(process)}").read_text()

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        words = 2 if arguments[0] == "quarantine" else 1
        command, rest = arguments[:words], arguments[words:]
        return [sys.executable, "-m", "cdc", *command, "--config", str(self.config), *rest]

    def url(self, process: Child) -> str:
        def listening() -> str | None:
            for line in self.log(process).splitlines():
                if "listening url=" in line:
                    return line.partition("url=")[2].strip()
            return None

        return str(until(listening, what="the HTTP port is bound"))

    def checkpoint(self) -> Lsn:
        try:
            rows = self.target("select lsn from cdc_checkpoint where lsn is not null")
        except Exception:  # noqa: BLE001  the table, or the server, is not there yet
            return Lsn(0)
        return Lsn(rows[0][0]) if rows else Lsn(0)

    def copied(self) -> bool:
        """Tell whether every table's rows from before have been copied."""
        try:
            states = self.target("select state from cdc_copy")
        except Exception:  # noqa: BLE001  likewise
            return False
        return bool(states) and not {("waiting",), ("copying",)} & set(states)

    def caught_up(self, seconds: float = SECONDS) -> None:
        """Wait until everything committed before now is applied, and what was there is copied."""
        mark = self.source("select pg_logical_emit_message(true, 'cdc', 'mark') - '0/0'::pg_lsn")
        until(
            lambda: self.checkpoint() >= mark[0][0] and self.copied(),
            what=f"the checkpoint reaches {Lsn(mark[0][0])}",
            seconds=seconds,
        )

    def same(self, table: str, columns: str = "*") -> bool:
        query = f"select count(*), sum(hashtextextended(t::text, 0)) from (select {columns} from {table}) t"
        return self.source(query) == self.target(query)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        for server in (self.write, self.read):
            if not server.running:
                continue
            server.psql(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                f"where datname = '{self.name}' and pid <> pg_backend_pid()"
            )
        if self.write.running:
            until(self._slot_dropped, what="the slot can be dropped")

    def _slot_dropped(self) -> bool:
        self.write.psql(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
            f"where slot_name = '{self.name}' and not active"
        )
        return not self.write.psql(
            f"select 1 from pg_replication_slots where slot_name = '{self.name}'"
        )


@pytest.fixture(params=["wal2json", "pgoutput"])
def pipeline(
    request: pytest.FixtureRequest, write: Server, read: Server, tmp_path: Path
) -> Iterator[Pipeline]:
    if request.param == "wal2json":
        require(write.installation.wal2json, "wal2json")
    made = Pipeline(write, read, tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def one_pipeline(write: Server, read: Server, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline where the plugin makes no difference."""
    plugin = "wal2json" if write.installation.wal2json else "pgoutput"
    made = Pipeline(write, read, tmp_path, plugin)
    yield made
    made.close()

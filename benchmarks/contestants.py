"""Who consumes the backlog: native replication, this daemon, and the ceiling (a reader alone)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

import psycopg

from benchmarks.arena import END_TABLE, SOURCE_DB, Arena
from benchmarks.compared import NATIVE
from benchmarks.errors import BenchError, Unequal
from benchmarks.workloads import Backlog, Workload
from cdc.names import TableName
from cdc.source import pgoutput, wal2json

Plugin = Literal["wal2json", "pgoutput"]

PUBLICATION: Final = "bench_all"
_ROOT: Final = Path(__file__).parents[1]
_STOP_SECONDS: Final = 60
_SETUP_SECONDS: Final = 120


@dataclass
class Contestant(ABC):
    """One who consumes the backlog from a slot of its own, into a database of its own."""

    arena: Arena
    workload: Workload
    label: str
    name: str = field(init=False)
    has_database: bool = field(default=True, init=False)
    streams: bool = field(default=True, init=False)  # from a slot of the contestant's name alone

    @property
    def key(self) -> str:
        """What its slot, database and files are called."""
        return f"bench_{self.name}_{self.label}".replace("-", "_").replace(" ", "_")

    @abstractmethod
    def prepare(self) -> None:
        """Create slot and database, before the backlog."""

    @abstractmethod
    def start(self, backlog: Backlog) -> None:
        """Begin to stream."""

    @abstractmethod
    def require_alive(self) -> None:
        """Raise BenchError where it has ended."""

    @abstractmethod
    def done(self) -> bool:
        """Tell whether all of the backlog is applied; raise BenchError where it never will be."""

    @abstractmethod
    def pids(self) -> Mapping[str, int]:
        """Name its processes by role; the walsender is found by whoever measures."""

    def ended_seconds(self) -> Mapping[str, float]:
        """Give the CPU seconds, by role, of its processes that have ended."""
        return {}

    @abstractmethod
    def stop(self) -> None:
        """Stop streaming, in an orderly way."""

    def verify(self, backlog: Backlog) -> None:
        """Raise Unequal where the result differs from the source."""
        self.arena.verify(self.key, backlog.expected)

    def stream_bytes(self) -> int | None:
        """Give how many bytes the plugin sent, where that was counted."""
        return None

    def remove(self) -> None:
        """Drop what `prepare` made, so that the next one has the machine to itself."""
        self.arena.drop_slot(self.key)
        if self.has_database:
            self.arena.drop_read_database(self.key)


class Watcher:
    """A connection to the read database that sees what its readers see."""

    def __init__(self, arena: Arena, dbname: str) -> None:
        self._connection = psycopg.connect(
            arena.read.dsn(dbname), autocommit=True, application_name="bench-watcher"
        )

    @property
    def pid(self) -> int:
        return self._connection.info.backend_pid

    def sees_end(self) -> bool:
        row = self._connection.execute(f"select exists(select from {END_TABLE})").fetchone()
        return bool(row and row[0])

    def one(self, statement: str) -> Any:
        row = self._connection.execute(statement.encode()).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self._connection.close()


@dataclass
class Native(Contestant):
    """CREATE SUBSCRIPTION with its default options, and a slot made beforehand."""

    def __post_init__(self) -> None:
        self.name = NATIVE

    def prepare(self) -> None:
        self.arena.create_read_database(self.key)
        create_slot(self.arena, self.key, "pgoutput")
        self._psql(
            f"create subscription {self.key} connection '{self.arena.source.dsn(SOURCE_DB)}' "
            f"publication {PUBLICATION} with (slot_name = '{self.key}', create_slot = false, "
            "enabled = false, copy_data = false, binary = false)"
        )

    def start(self, backlog: Backlog) -> None:  # noqa: ARG002  the interface's
        self._watcher = Watcher(self.arena, self.key)
        self._psql(f"alter subscription {self.key} enable")

    def require_alive(self) -> None:
        """Trust the server to start the worker again."""

    def done(self) -> bool:
        return self._watcher.sees_end()

    def pids(self) -> Mapping[str, int]:
        statement = f"select pid from pg_stat_subscription where subname = '{self.key}'"
        apply = self._watcher.one(statement)
        return {"read": apply or 0, "watcher": self._watcher.pid}

    def stop(self) -> None:
        self._watcher.close()
        self._psql(f"alter subscription {self.key} disable")

    def remove(self) -> None:
        with suppress(psycopg.Error):
            self._psql(f"alter subscription {self.key} disable")
        self._psql(f"alter subscription {self.key} set (slot_name = none)")
        self._psql(f"drop subscription {self.key}")
        super().remove()

    def _psql(self, statement: str) -> None:
        self.arena.read.psql(statement, self.key)


@dataclass
class Ours(Contestant):
    """This daemon, as its command starts it."""

    plugin: Plugin
    copying: str = field(default="enabled = false\n", init=False)  # the rows are there already
    reading: str = field(default="", init=False)  # lines of [read]: its defaults

    def __post_init__(self) -> None:
        self.name = f"cdc-{self.plugin}"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Let the first start make the slot and the checkpoint over tables that hold the rows."""
        self.arena.create_read_database(self.key)
        self._configure(self.workload.tables)
        self.run_once()

    def run_once(self) -> None:
        """Let it make what it needs, and stop."""
        with self.log_path.open("ab") as log:
            ran = subprocess.run(
                [*self._command, "--until", "now"],
                check=False,
                stdout=log,
                stderr=log,
                timeout=_SETUP_SECONDS,
                **self._surroundings,
            )
        if ran.returncode != 0:
            raise BenchError(f"the first start ended with {ran.returncode}: {self._log_end()}")

    def _configure(self, tables: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cdc-bench-")
        self._config.write_text(self._settings(tables))

    @property
    def _config(self) -> Path:
        return Path(self._folder.name) / "cdc.toml"

    @property
    def log_path(self) -> Path:
        return Path(self._folder.name) / "log"

    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-m", "cdc", "run", "--config", str(self._config)]

    @property
    def _surroundings(self) -> dict[str, Any]:
        """Give where it starts, to find the modules, and the environment."""
        return {"cwd": _ROOT, "env": os.environ | self.workload.environment}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _settings(self, tables: Sequence[str]) -> str:
        mirrored = () if self.workload.modules else tables
        mirrors = "".join(
            f'[[projection.mirrors]]\nsource = "public.{table}"\n'
            + ("insert_only = true\n" if table in self.workload.keyless else "")
            for table in (*mirrored, END_TABLE)
        )
        return (
            f'[source]\ndsn = "{self.arena.source.dsn(SOURCE_DB)}"\nslot = "{self.key}"\n'
            f'plugin = "{self.plugin}"\npublication = "{self.key}"\n'
            f'[read]\nurl = "{self.arena.read.url(self.key)}"\n{self.reading}'
            f'[http]\nlisten = "127.0.0.1:0"\n[copy]\n{self.copying}'
            f"[projection]\nmodules = {list(self.workload.modules)}\n{mirrors}"
        )

    def start(self, backlog: Backlog) -> None:  # noqa: ARG002  the interface's
        self._watcher = Watcher(self.arena, self.key)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, **self._surroundings
            )

    def require_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise BenchError(f"it ended with {self._process.returncode}: {self._log_end()}")

    def done(self) -> bool:
        self.require_alive()
        return self._watcher.sees_end()

    def pids(self) -> Mapping[str, int]:
        writer = self._watcher.one(
            "select pid from pg_stat_activity where datname = current_database() "
            "and pid <> pg_backend_pid() and application_name = 'cdc'"
        )
        return {"daemon": self.pid, "read": writer or 0, "watcher": self._watcher.pid}

    def stop(self) -> None:
        self._watcher.close()
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise BenchError(f"it did not stop within {_STOP_SECONDS} s of SIGTERM") from None
        if code != 0:
            raise BenchError(f"it ended with {code} after SIGTERM: {self._log_end()}")

    def remove(self) -> None:
        super().remove()
        self._folder.cleanup()

    def _log_end(self) -> str:
        return self.log_path.read_text(errors="replace").strip()[-2000:]


@dataclass
class Ceiling(Contestant):
    """The slot read to nowhere: what the walsender and a reader that does nothing else reach.

    No strict bound: a slower reader, by pushing back, can make the walsender's work cheaper.
    """

    plugin: Plugin

    def __post_init__(self) -> None:
        self.name = f"ceiling-{self.plugin}"
        self.has_database = False

    def prepare(self) -> None:
        create_slot(self.arena, self.key, self.plugin)

    def start(self, backlog: Backlog) -> None:
        tables = [TableName("public", t) for t in (*self.workload.tables, END_TABLE)]
        options = (
            wal2json.options(tables)
            if self.plugin == "wal2json"
            else pgoutput.options([PUBLICATION])
        )
        arguments = [self.arena.source.dsn(SOURCE_DB), self.key, str(backlog.end_lsn)]
        self._read: dict[str, Any] | None = None
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.drain", *arguments),
                json.dumps(options | {"plugin": self.plugin}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def require_alive(self) -> None:
        if self._process.poll() is not None:
            raise BenchError(f"the reader ended with {self._process.returncode}")

    def done(self) -> bool:
        """Wait for the line that it prints at the end."""
        line = _given(self._process.stdout).readline()
        if not line:
            raise BenchError(f"the reader ended with {self._process.wait()}")
        self._read = json.loads(line)
        return True

    def pids(self) -> Mapping[str, int]:
        return {"daemon": self._process.pid}

    def stream_bytes(self) -> int | None:
        return self._read["bytes"] if self._read else None

    def stop(self) -> None:
        self._process.communicate(timeout=_STOP_SECONDS)

    def verify(self, backlog: Backlog) -> None:
        """Count: nothing was applied that could be compared."""
        wanted = Counter(backlog.workload.changes) + Counter({"I": 1})
        kinds: Mapping[str, int] = self._read["kinds"] if self._read else {}
        found = {kind: kinds.get(kind, 0) for kind in wanted}
        if found != wanted:
            raise Unequal(f"read {found}, the source wrote {dict(wanted)}")


def _given(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def wait_for_stream(
    arena: Arena,
    contestant: Contestant,
    *,
    seconds: float = _SETUP_SECONDS,
    poll_seconds: float = 0.05,
) -> int:
    """Wait until the slot is in use; give the walsender's pid."""
    query = "select active_pid from pg_replication_slots where slot_name = %s and active"
    deadline = time.monotonic() + seconds
    with arena.source.connect() as source:
        while (row := source.execute(query, [contestant.key]).fetchone()) is None:
            contestant.require_alive()
            if time.monotonic() > deadline:
                raise BenchError("it never started to stream")
            time.sleep(poll_seconds)
    return int(row[0])


def create_slot(arena: Arena, name: str, plugin: str) -> None:
    arena.source.psql(f"select pg_create_logical_replication_slot('{name}', '{plugin}')", SOURCE_DB)


def publish(arena: Arena, tables: Sequence[str]) -> None:
    """Publish the tables for native replication and the ceiling; the daemon makes its own."""
    listed = ", ".join([*tables, END_TABLE])
    arena.source.psql(f"create publication {PUBLICATION} for table {listed}", SOURCE_DB)

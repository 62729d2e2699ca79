"""Debezium as contestants: a slot and a publication made beforehand, no snapshot."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from psycopg.conninfo import conninfo_to_dict

from benchmarks.arena import END_TABLE, SOURCE_DB
from benchmarks.contestants import PUBLICATION, Contestant, Watcher, create_slot
from benchmarks.errors import BenchError, Unequal
from benchmarks.peers.environments import program
from benchmarks.workloads import Backlog

_STOP_SECONDS: Final = 60
_ENGINE: Final = Path(__file__).with_name("engine.py")


@dataclass
class Debezium(Contestant):
    """Changes as JSON, counted within the Java machine: Debezium's own speed."""

    title: ClassVar[str] = "debezium-count"
    writes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.name = self.title
        self.has_database = self.writes
        self._counted: int | None = None

    def prepare(self) -> None:
        self._python = program("debezium", "python")
        self._folder = tempfile.TemporaryDirectory(prefix="cdc-bench-")
        create_slot(self.arena, self.key, "pgoutput")
        if self.has_database:
            self.arena.create_read_database(self.key)

    def start(self, backlog: Backlog) -> None:
        options = {
            "properties": self._properties(),
            "folder": self._folder.name,
            "changes": backlog.total + 1,  # the end table's row, too
            "read_dsn": self.arena.read.dsn(self.key) if self.writes else None,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, str(_ENGINE), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def _properties(self) -> dict[str, str]:
        source = conninfo_to_dict(self.arena.source.dsn(SOURCE_DB))
        tables = [f"public.{table}" for table in (*self.workload.tables, END_TABLE)]
        return {
            "name": self.key,
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "plugin.name": "pgoutput",
            "topic.prefix": "bench",
            "slot.name": self.key,
            "publication.name": PUBLICATION,
            "publication.autocreate.mode": "disabled",
            "database.hostname": str(source["host"]),
            "database.port": str(source["port"]),
            "database.user": str(source["user"]),
            "database.password": str(source.get("password", "none")),
            "database.dbname": SOURCE_DB,
            "table.include.list": ",".join(tables),
            "snapshot.mode": "no_data",  # 3.6 refuses its older name, never
            "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
            "offset.storage.file.filename": f"{self._folder.name}/offsets",
            "poll.interval.ms": "50",
            "tombstones.on.delete": "false",
            "key.converter.schemas.enable": "false",
            "value.converter.schemas.enable": "false",
            "decimal.handling.mode": "string",
        }

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "log"

    def require_alive(self) -> None:
        if self._process.poll() is not None:
            end = self._log.read_text(errors="replace").strip()[-1000:]
            raise BenchError(f"it ended with {self._process.returncode}: {end}")

    def done(self) -> bool:
        """Wait for the line that it prints at the end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self.require_alive()
        self._counted = json.loads(line)["changes"]
        return True

    def pids(self) -> Mapping[str, int]:
        return {"daemon": self._process.pid}

    def stop(self) -> None:
        """Let it end: what it waits for is the end of its input."""
        try:
            self._process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def verify(self, backlog: Backlog) -> None:
        """Count: nothing was applied that could be compared."""
        if self._counted != backlog.total + 1:
            raise Unequal(f"counted {self._counted}, the source wrote {backlog.total + 1}")

    def remove(self) -> None:
        super().remove()
        self._folder.cleanup()


@dataclass
class DebeziumWriter(Debezium):
    """The same, with each batch handed to Python and written to the read database."""

    title: ClassVar[str] = "debezium-psycopg"
    writes: ClassVar[bool] = True

    def start(self, backlog: Backlog) -> None:
        self._watcher = Watcher(self.arena, self.key)
        super().start(backlog)

    def done(self) -> bool:
        self.require_alive()
        return self._watcher.sees_end()

    def pids(self) -> Mapping[str, int]:
        statement = "select pid from pg_stat_activity where application_name = 'debezium-writer'"
        writer: Any = self._watcher.one(statement)
        return {"daemon": self._process.pid, "read": writer or 0, "watcher": self._watcher.pid}

    def stop(self) -> None:
        self._watcher.close()
        super().stop()

    def verify(self, backlog: Backlog) -> None:
        self.arena.verify(self.key, backlog.expected)

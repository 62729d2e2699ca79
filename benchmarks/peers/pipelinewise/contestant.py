"""PipelineWise as a contestant: one run over the empty tables beforehand, one over the backlog.

The target makes tables of its own, with types of its own. To be compared with the source they are
shown through views of the source's names and types.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict

from benchmarks.arena import END_TABLE, SOURCE_DB
from benchmarks.contestants import Contestant, Watcher, create_slot
from benchmarks.errors import BenchError
from benchmarks.peers.environments import program
from benchmarks.workloads import Backlog

_SCHEMA: Final = "piped"
_SECONDS: Final = 120
_IDLE_SECONDS: Final = 2  # without it the tap waits for more for hours
_COLUMNS: Final = """
select string_agg(format('%I::%s', attname, format_type(atttypid, atttypmod)), ', ' order by attnum)
from pg_attribute where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped
"""


@dataclass
class PipelineWise(Contestant):
    """tap-postgres | target-postgres."""

    def __post_init__(self) -> None:
        self.name = "pipelinewise"
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def key(self) -> str:
        """What the tap calls its slot."""
        return f"pipelinewise_{SOURCE_DB}_{self.label}"

    def prepare(self) -> None:
        self._tap, self._target = (
            program("pipelinewise-tap", "tap-postgres"),
            program("pipelinewise-target", "target-postgres"),
        )
        self._temporary = tempfile.TemporaryDirectory(prefix="cdc-bench-")
        self._folder = Path(self._temporary.name)
        self.arena.create_read_database(self.key)
        self.arena.read.psql(f"create schema {_SCHEMA}", self.key)
        create_slot(self.arena, self.key, "wal2json")
        self._configure()
        self._begin(state=None)
        self._wait()
        last = self._state.read_text().strip().splitlines()[-1:]
        (self._folder / "state.json").write_text(last[0] if last else "{}")

    def _configure(self) -> None:
        tap = self._login(self.arena.source.dsn(SOURCE_DB)) | {
            "tap_id": self.label,
            "filter_schemas": "public",
            "default_replication_method": "LOG_BASED",
            "break_at_end_lsn": True,
            "max_run_seconds": _SECONDS,
            "logical_poll_total_seconds": _IDLE_SECONDS,
        }
        target = self._login(self.arena.read.dsn(self.key)) | {
            "default_target_schema": _SCHEMA,
            "hard_delete": True,
            "batch_size_rows": 100_000,
            "flush_all_streams": True,
        }
        (self._folder / "tap.json").write_text(json.dumps(tap))
        (self._folder / "target.json").write_text(json.dumps(target))
        (self._folder / "catalog.json").write_text(json.dumps(self._catalog()))

    def _login(self, dsn: str) -> dict[str, Any]:
        known = conninfo_to_dict(dsn)
        given = {name: known[name] for name in ("host", "user", "dbname")}
        return given | {"port": int(str(known["port"])), "password": known.get("password", "none")}

    def _catalog(self) -> dict[str, Any]:
        """Let the tap discover the tables; select those of the workload."""
        command = [self._tap, "--config", str(self._folder / "tap.json"), "--discover"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise BenchError(f"the tap cannot discover: {ran.stderr.strip()[-500:]}")
        wanted = {*self.workload.tables, END_TABLE}
        streams = [s for s in json.loads(ran.stdout)["streams"] if s["table_name"] in wanted]
        for stream in streams:
            for described in stream["metadata"]:
                described["metadata"]["selected"] = True
                if not described["breadcrumb"]:
                    described["metadata"]["replication-method"] = "LOG_BASED"
        return {"streams": streams}

    @property
    def _state(self) -> Path:
        return self._folder / "printed"

    def _log(self, program: str) -> Path:
        return self._folder / f"{program}.log"

    def start(self, backlog: Backlog) -> None:
        self._rows = {table: rows for table, (rows, _) in backlog.expected.items()}
        self._watcher = Watcher(self.arena, self.key)
        self._begin(state=self._folder / "state.json")

    def _begin(self, state: Path | None) -> None:
        catalog = ["--properties", str(self._folder / "catalog.json")]
        since = [] if state is None else ["--state", str(state)]
        config = self._folder / "tap.json"
        with (
            self._log("tap").open("ab") as tap_log,
            self._log("target").open("ab") as target_log,
            self._state.open("wb") as printed,
        ):
            tap = subprocess.Popen(
                [self._tap, "--config", str(config), *catalog, *since],
                stdout=subprocess.PIPE,
                stderr=tap_log,
            )
            target = subprocess.Popen(
                [self._target, "--config", str(self._folder / "target.json")],
                stdin=tap.stdout,
                stdout=printed,
                stderr=target_log,
            )
        if tap.stdout is not None:
            tap.stdout.close()  # else the tap would not notice that the target has gone
        self._running = [tap, target]

    def _wait(self) -> None:
        for running in self._running:
            running.wait(_SECONDS)
        self.require_alive()

    def require_alive(self) -> None:
        for name, running in zip(("tap", "target"), self._running, strict=True):
            if code := running.poll():
                end = self._log(name).read_text(errors="replace").strip()[-1000:]
                raise BenchError(f"the {name} ended with {code}: {end}")

    def done(self) -> bool:
        self.require_alive()
        return all(self._has(table, rows) for table, rows in self._rows.items())

    def _has(self, table: str, rows: int) -> bool:
        """Count only once there are some: it is asked a hundred times a second."""
        table = f"{_SCHEMA}.{table}"
        some = self._watcher.one(f"select exists (select from {table})")
        return bool(some and self._watcher.one(f"select count(*) from {table}") == rows)

    def pids(self) -> Mapping[str, int]:
        tap, target = self._running
        return {"daemon": target.pid, "tap": tap.pid, "watcher": self._watcher.pid}

    def stop(self) -> None:
        self._watcher.close()
        self._wait()

    def verify(self, backlog: Backlog) -> None:
        for table in backlog.expected:
            columns = self.arena.source.psql(_COLUMNS.format(table=table), SOURCE_DB)[0][0]
            self.arena.read.psql(
                f"drop table {table}; "
                f"create view {table} as select {columns} from {_SCHEMA}.{table}",
                self.key,
            )
        super().verify(backlog)

    def remove(self) -> None:
        for running in self._running:
            if running.poll() is None:
                running.kill()
                running.wait()
        super().remove()
        self._temporary.cleanup()

"""This daemon, as a contestant."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.arena import END_TABLE, SOURCE_DB
from benchmarks.contestants import Contestant, Plugin, Watcher
from benchmarks.errors import BenchError
from benchmarks.workloads import Backlog

_ROOT: Final = Path(__file__).parents[1]
_CDC: Final = str(Path(sys.executable).with_name("cdc"))
_STOP_SECONDS: Final = 60
_SETUP_SECONDS: Final = 120


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
        return [_CDC, "run", "--config", str(self._config)]

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

"""The slot read to nowhere, as a contestant: what walsender and network allow."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from benchmarks.arena import END_TABLE, SOURCE_DB
from benchmarks.contestants import PUBLICATION, Contestant, Plugin, create_slot
from benchmarks.errors import BenchError, Unequal
from benchmarks.workloads import Backlog
from cdc.names import TableName
from cdc.source import pgoutput, wal2json

_STOP_SECONDS: Final = 60


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

"""What a contestant is, and what several of them need: see native, ours, ceiling, and peers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import psycopg

from benchmarks.arena import END_TABLE, SOURCE_DB, Arena
from benchmarks.errors import BenchError
from benchmarks.workloads import Backlog, Workload

Plugin = Literal["wal2json", "pgoutput"]

PUBLICATION: Final = "bench_all"
_START_SECONDS: Final = 120


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


def wait_for_stream(
    arena: Arena,
    contestant: Contestant,
    *,
    seconds: float = _START_SECONDS,
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

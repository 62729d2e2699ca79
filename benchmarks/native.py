"""Native logical replication, as a contestant."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from benchmarks.arena import SOURCE_DB
from benchmarks.compared import NATIVE
from benchmarks.contestants import PUBLICATION, Contestant, Watcher, create_slot
from benchmarks.workloads import Backlog


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

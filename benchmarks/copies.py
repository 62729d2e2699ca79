"""Who copies a table that was there before: native's initial synchronisation, a pipe, this daemon.

Each begins with an empty read table that has its primary key, and is done when it says so itself:
native by `pg_subscription_rel`, the daemon by `cdc_copy`, the pipe by ending.
"""

import resource
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks import backlogs, report
from benchmarks.arena import SOURCE_DB, Arena, fresh
from benchmarks.contestants import PUBLICATION, Contestant, Watcher, publish
from benchmarks.errors import BenchError
from benchmarks.figures import Result
from benchmarks.native import Native
from benchmarks.ours import Ours
from benchmarks.run import Run, in_turn
from benchmarks.workloads import (
    INSERT_ITEMS,
    Backlog,
    Changes,
    Workload,
    make_items,
    statement,
)
from cdc.settings import CopySettings

ROWS: Final = 5_000_000
CHUNK_BYTES: Final = CopySettings().chunk_bytes
_COPIED_BY_NATIVE: Final = """
select exists (
    select from pg_subscription_rel where srsubstate = 'r' and srrelid = '{table}'::regclass
)
"""
_COPIES_NATIVE: Final = """
select exists (
    select from pg_stat_progress_copy where relid = '{table}'::regclass and tuples_processed > 0
)
"""
_WE_COPY: Final = """
select exists (select from cdc_copy where source = 'public.{table}' and state = 'copying')
"""
_COPIED_BY_US: Final = """
select exists (select from cdc_copy where source = 'public.{table}' and state = 'done')
"""


@dataclass(frozen=True)
class Table(Workload):
    """A table of seven columns, full at the source and empty at the read database."""

    rows: int
    name: str = "copy"
    tables: tuple[str, ...] = ("items",)

    @property
    def title(self) -> str:
        return f"copy of {self.rows:,} rows, 7 columns"

    @property
    def changes(self) -> Changes:
        return {"I": self.rows, "U": 0, "D": 0}

    def prepare(self, arena: Arena) -> None:
        make_items(arena, ["items"])

    def generate(self, arena: Arena) -> None:
        """Fill the table; vacuum it, so that whoever reads it first has no hint bits to set."""
        with arena.connect_source() as connection:
            connection.execute(statement(INSERT_ITEMS, first=1, last=self.rows).encode())
            connection.execute("vacuum (analyze, freeze) items")


def filled(arena: Arena, workload: Workload) -> Backlog:
    """Fill the source; give what all copies are to be compared with."""
    workload.generate(arena)
    return Backlog(workload, 0, 0, arena.fingerprints(["items"]))


class NativeCopy(Native):
    """CREATE SUBSCRIPTION with its default options: all that it does, from the slot on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.streams = False

    def prepare(self) -> None:
        self.arena.create_read_database(self.key)

    def start(self, backlog: Backlog) -> None:  # noqa: ARG002  the interface's
        self._watcher = Watcher(self.arena, self.key)
        self._psql(
            f"create subscription {self.key} connection '{self.arena.source.dsn(SOURCE_DB)}' "
            f"publication {PUBLICATION} with (copy_data = true)"
        )

    def copied(self, table: str) -> bool:
        """Tell whether it has copied a table, and streams it."""
        return bool(self._watcher.one(_COPIED_BY_NATIVE.format(table=table)))

    def copies(self, table: str) -> bool:
        """Tell whether rows of a table are being copied."""
        return bool(self._watcher.one(_COPIES_NATIVE.format(table=table)))

    def pids(self) -> Mapping[str, int]:
        return {"watcher": self._watcher.pid}

    def sees_end(self) -> bool:
        """Tell whether the end table's row has arrived."""
        return self._watcher.sees_end()

    def done(self) -> bool:
        return all(map(self.copied, self.workload.tables))


@dataclass
class OursCopy(Ours):
    """This daemon, from the start of its process on: its first start, where it streams nothing yet.

    What it copies of several tables is the last; the others it streams already.
    """

    chunk_bytes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.streams = False
        self.copying = f"chunk_bytes = {self.chunk_bytes}\n"

    def prepare(self) -> None:
        self.arena.create_read_database(self.key)
        *streamed, _ = self.workload.tables
        self._configure(streamed)
        if streamed:
            self.run_once()
        self._config.write_text(self._settings(self.workload.tables))

    def copied(self, table: str) -> bool:
        """Tell whether it has copied a table, and streams it."""
        self.require_alive()
        begun = self._watcher.one("select to_regclass('cdc_copy') is not null")
        return bool(begun and self._watcher.one(_COPIED_BY_US.format(table=table)))

    def copies(self, table: str) -> bool:
        """Tell whether rows of a table are being copied."""
        self.require_alive()
        return bool(self._watcher.one(_WE_COPY.format(table=table)))

    def pids(self) -> Mapping[str, int]:
        return {"daemon": self.pid, "watcher": self._watcher.pid}

    def sees_end(self) -> bool:
        """Tell whether the end table's row has arrived."""
        self.require_alive()
        return self._watcher.sees_end()

    def done(self) -> bool:
        return all(map(self.copied, self.workload.tables))


Copying = NativeCopy | OursCopy
"""Who streams beside the copy."""


def streaming(run: Run, arena: Arena, workload: Workload, label: str) -> list[Copying]:
    """Give those that stream beside the copy."""
    natives = [NativeCopy(arena, workload, label)] if run.native else []
    chunk_bytes = run.copy_chunk_bytes
    return [*natives, *(OursCopy(arena, workload, label, p, chunk_bytes) for p in run.plugins)]


@dataclass
class Pipe(Contestant):
    """COPY ... TO STDOUT | COPY ... FROM STDIN, by two psql: nothing but the copy."""

    def __post_init__(self) -> None:
        self.name = "pipe"
        self.streams = False
        self._running: list[subprocess.Popen[bytes]] = []

    def prepare(self) -> None:
        self.arena.create_read_database(self.key)

    def start(self, backlog: Backlog) -> None:  # noqa: ARG002  the interface's
        self._seconds = _children_seconds()
        (table,) = self.workload.tables
        out = subprocess.Popen(
            self._psql(self.arena.source.dsn(SOURCE_DB), f"copy {table} to stdout"),
            stdout=subprocess.PIPE,
        )
        into = subprocess.Popen(
            self._psql(self.arena.read.dsn(self.key), f"copy {table} from stdin"),
            stdin=out.stdout,
            stdout=subprocess.DEVNULL,
        )
        if out.stdout is not None:
            out.stdout.close()  # else the first would not notice that the second has gone
        self._running = [out, into]

    def _psql(self, dsn: str, statement: str) -> list[str]:
        return [str(self.arena.installation.bin / "psql"), "-X", "-d", dsn, "-c", statement]

    def require_alive(self) -> None:
        """Let `done` tell."""

    def done(self) -> bool:
        codes = [running.poll() for running in self._running]
        if any(codes):
            raise BenchError(f"psql ended with {codes}")
        return codes == [0, 0]

    def pids(self) -> Mapping[str, int]:
        return {}

    def ended_seconds(self) -> Mapping[str, float]:
        return {"daemon": round(_children_seconds() - self._seconds, 2)}

    def stop(self) -> None:
        for running in self._running:
            if running.poll() is None:
                running.kill()
            running.wait()


def compare(run: Run) -> list[Result]:
    """Let each copy the same table into a fresh database, each round in another order."""
    workload, results = Table(run.rows_to_copy), []
    with fresh(run.installation) as place:
        workload.prepare(place)
        publish(place, workload.tables)
        backlog = filled(place, workload)
        run.say(f"{workload.title}: table made")
        for number in run.numbers:
            label = f"r{number}"
            line_up: list[Contestant] = [*streaming(run, place, workload, label)]
            for contestant in in_turn([*line_up, Pipe(place, workload, label)], number):
                contestant.prepare()
                results.append(backlogs.measured(run, contestant, backlog, number))
    report.print_results(run.console, backlog, results)
    return results


def _children_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime

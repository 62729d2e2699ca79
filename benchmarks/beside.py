"""Commit to visible, of single-row transactions on one table while another one is copied.

The times are those of `benchmarks.latency`; the rows those that the source committed between the
moments at which rows were seen to be copied, and the copy to be done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks import copies, latency, report
from benchmarks.arena import END_TABLE, SOURCE_DB, Arena, fresh
from benchmarks.contestants import publish
from benchmarks.copies import Copying, Table
from benchmarks.errors import BenchError
from benchmarks.figures import Latency
from benchmarks.latency import RATE
from benchmarks.run import Run, in_turn
from benchmarks.workloads import Backlog

_POLL_SECONDS: Final = 0.02
_LONGEST_SECONDS: Final = 900
_DRAIN_SECONDS: Final = 120
_FEWEST: Final = 500  # a 99th percentile of fewer means nothing

TITLE: Final = f"commit to visible while a table is copied, milliseconds, {RATE} transactions/s"


@dataclass(frozen=True)
class Beside(Table):
    """The table to be copied, and one that is written meanwhile."""

    name: str = "copy-latency"
    tables: tuple[str, ...] = ("ticks", "items")

    def prepare(self, arena: Arena) -> None:
        latency.prepare_ticks(arena)
        super().prepare(arena)

    def clear(self, arena: Arena) -> None:
        """Leave nothing of the contestant before."""
        arena.source.psql(f"truncate ticks, {END_TABLE}", SOURCE_DB)


def compare(run: Run) -> list[Latency]:
    """Let each copy while it follows a writer, each round in another order."""
    workload, found = Beside(run.rows_to_copy), []
    with fresh(run.installation) as place:
        latency.require_waldump(place)
        workload.prepare(place)
        publish(place, workload.tables)
        backlog = copies.filled(place, workload)
        for number in run.numbers:
            line_up = copies.streaming(run, place, workload, f"r{number}")
            for contestant in in_turn(line_up, number):
                found.append(measure(place, contestant, backlog, number))
                run.say(f"latency beside a copy, round {number}: {contestant.name}")
    report.print_latencies(run.console, found, TITLE)
    return found


def measure(arena: Arena, contestant: Copying, backlog: Backlog, number: int) -> Latency:
    """Let one contestant copy and follow the writer; it is set up, and removed, here."""
    found = Latency(contestant.name, number, RATE)
    assert isinstance(backlog.workload, Beside)
    backlog.workload.clear(arena)
    contestant.prepare()
    arena.settle()
    begun = latency.positions(arena)
    try:
        first, last = _follow(arena, contestant, backlog)
        expected = {**backlog.expected, **arena.fingerprints(["ticks"])}
        arena.verify(contestant.key, expected)
        source, read = latency.commit_times(arena, contestant.key, begun)
        seconds = [read[row] - when for row, when in source.items() if first <= when <= last]
        if len(seconds) < _FEWEST:
            raise BenchError(
                f"only {len(seconds)} rows were written while it copied: a larger table"
            )
        found.written_rate = len(seconds) / (last - first)
        latency.summarise(found, seconds)
    except BenchError as error:
        found.void = str(error)
    finally:
        contestant.remove()
    return found


def _wait(fact: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise BenchError(f"it was not done after {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


def _follow(arena: Arena, contestant: Copying, backlog: Backlog) -> tuple[float, float]:
    """Write while it copies; give when that began and ended, in Unix seconds."""
    contestant.start(backlog)
    try:
        _wait(lambda: contestant.copied("ticks"), _LONGEST_SECONDS)
        _wait(lambda: contestant.copies("items"), _LONGEST_SECONDS)
        with arena.pgbench_meanwhile(*latency.writer(arena), "-T", str(_LONGEST_SECONDS)):
            first = time.time()
            if contestant.copied("items"):
                raise BenchError("the copy was done before the writer began: a larger table")
            _wait(lambda: contestant.copied("items"), _LONGEST_SECONDS)
            last = time.time()
        arena.source.psql(f"insert into {END_TABLE} values (1)", SOURCE_DB)
        _wait(contestant.sees_end, _DRAIN_SECONDS)
    finally:
        contestant.stop()
    return first, last

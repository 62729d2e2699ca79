"""From the start of the process until it streams: in a small database, and in a crowded one."""

import time
from dataclasses import dataclass
from typing import Final

from benchmarks import report
from benchmarks.arena import END_TABLE, SOURCE_DB, Arena, fresh
from benchmarks.contestants import publish, wait_for_stream
from benchmarks.errors import BenchError
from benchmarks.figures import Start
from benchmarks.ours import Ours
from benchmarks.run import Run, in_turn
from benchmarks.workloads import Backlog, Changes, Workload, make_items

MIRRORED: Final = 3
TABLES: Final = 10_000
_TIMES: Final = 3
_SECONDS: Final = 60
_FILL: Final = """
do $$ begin
    for k in {first}..{last} loop
        execute format('create table other_%s (id bigint primary key, owner int not null, '
                       'name text, amount numeric(12, 2), made_at timestamptz)', k);
        if k % 100 = 0 then commit; end if;
    end loop;
end $$
"""


@dataclass(frozen=True)
class Few(Workload):
    """Three tables to mirror, and nothing in them."""

    name: str = "start"
    title: str = "start"
    tables: tuple[str, ...] = tuple(f"items_{number}" for number in range(MIRRORED))

    @property
    def changes(self) -> Changes:
        return {}

    def prepare(self, arena: Arena) -> None:
        make_items(arena, self.tables)

    def generate(self, arena: Arena) -> None:
        """Leave them empty."""


def compare(run: Run) -> list[Start]:
    """Start each plugin's daemon some times, in a small and in a crowded database in turn."""
    crowd = max(MIRRORED + 1, round(TABLES * run.scale))
    with fresh(run.installation) as small, fresh(run.installation) as crowded:
        crowded.source.psql(_FILL.format(first=MIRRORED + 1, last=crowd), SOURCE_DB)
        run.say(f"{crowd:,} tables made")
        places = {MIRRORED: small, crowd: crowded}
        daemons = [
            (daemon, tables) for tables, place in places.items() for daemon in _prepared(run, place)
        ]
        found = [
            _start(daemon, number, tables)
            for number in range(1, max(run.rounds, _TIMES) + 1)
            for daemon, tables in in_turn(daemons, number)
        ]
        for daemon, _ in daemons:
            _verify(daemon)
    report.print_starts(run.console, found)
    return found


def _prepared(run: Run, place: Arena) -> list[Ours]:
    workload = Few()
    workload.prepare(place)
    publish(place, workload.tables)
    daemons = [Ours(place, workload, "start", plugin) for plugin in run.plugins]
    for daemon in daemons:
        daemon.prepare()
    return daemons


def _verify(daemon: Ours) -> None:
    """See that what is written arrives; raise BenchError."""
    place, tables = daemon.arena, [*daemon.workload.tables, END_TABLE]
    place.source.psql(f"insert into {END_TABLE} values (1) on conflict do nothing", SOURCE_DB)
    daemon.run_once()
    daemon.verify(Backlog(daemon.workload, 0, 0, place.fingerprints(tables)))
    daemon.remove()


def _start(daemon: Ours, number: int, tables: int) -> Start:
    found = Start(daemon.name, number, tables)
    begun = time.monotonic()
    daemon.start(Backlog(daemon.workload, 0, 0, {}))
    try:
        wait_for_stream(daemon.arena, daemon, seconds=_SECONDS, poll_seconds=0.005)
        found.seconds = round(time.monotonic() - begun, 3)
    except BenchError as error:
        found.void = str(error)
    finally:
        daemon.stop()
    return found

"""All that can be measured, by the name that `--only` takes. A new workload gets a line here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from benchmarks import backlogs, beside, copies, growth, idle, latency, spread, start
from benchmarks.backlogs import LineUp
from benchmarks.figures import Figure
from benchmarks.peers import compare as peers
from benchmarks.projected import Projected
from benchmarks.run import Run
from benchmarks.workloads import Big, Million, Tpcb, Workload

Measurement = Callable[[Run], Sequence[Figure]]


def _backlog(
    scaled: Callable[[float], Workload], line_up: LineUp = backlogs.everybody
) -> Measurement:
    return lambda run: backlogs.compare(run, scaled(run.scale), line_up)


TARGETED: Final[Mapping[str, Measurement]] = {
    "tpcb": _backlog(Tpcb.scaled),
    "million": _backlog(Million.scaled),
    "projected": _backlog(Projected.scaled, backlogs.replicas),
    "latency": latency.compare,
    "big": _backlog(Big.scaled),
    "copy": copies.compare,
    "copy-latency": beside.compare,
    "spread": spread.compare,
    "start": start.compare,
    "idle": idle.compare,
}
"""What `make bench` measures, and `benchmarks.targets` has the targets of."""

MEASUREMENTS: Final[Mapping[str, Measurement]] = {
    **TARGETED,
    "growth": growth.compare,
    "peers": peers.compare,
}

"""The peers, native and this daemon, over one backlog that all of them can bear."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import backlogs
from benchmarks.arena import Arena
from benchmarks.contestants import Contestant
from benchmarks.figures import Result
from benchmarks.growth import Sized
from benchmarks.peers.debezium import Debezium, DebeziumWriter
from benchmarks.peers.pipelinewise import PipelineWise
from benchmarks.run import Run
from benchmarks.workloads import ROWS_PER_TRANSACTION, Workload

_ROWS = 50_000


@dataclass(frozen=True)
class Inserts(Sized):
    """Inserts of seven columns, a hundred in each transaction."""

    name: str = "peers"

    @property
    def environment(self) -> Mapping[str, str]:
        """Let this daemon send no heartbeats: PipelineWise's tap fails on any message in the WAL,
        and Debezium counts it as a change.
        """
        return {"CDC_SOURCE__HEARTBEAT_SECONDS": "0"}


def compare(run: Run) -> list[Result]:
    """Measure everybody over the same inserts, each round in another order."""
    rows = max(1, round(_ROWS * run.scale / ROWS_PER_TRANSACTION)) * ROWS_PER_TRANSACTION
    return backlogs.compare(run, Inserts(rows, ROWS_PER_TRANSACTION), _line_up)


def _line_up(run: Run, place: Arena, workload: Workload, label: str) -> list[Contestant]:
    return [
        *backlogs.replicas(run, place, workload, label),
        Debezium(place, workload, label),
        DebeziumWriter(place, workload, label),
        PipelineWise(place, workload, label),
    ]

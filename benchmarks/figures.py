"""What was measured: one figure for each contestant and round. `void` says why it does not count.

A figure is written as JSON; targets, plots and the tables of the documentation are made from that.
"""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Figure:
    """What all figures have."""

    contestant: str
    round: int
    void: str | None = field(default=None, kw_only=True)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Result(Figure):
    """How long a backlog took. `point` is where on a curve it lies (`benchmarks.growth`)."""

    workload: str
    changes: int = 0
    seconds: float = 0.0
    startup_seconds: float = 0.0
    startup_cpu_seconds: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    threads: list[tuple[int, float]] = field(default_factory=list)
    peak_bytes: int | None = None
    wal_bytes: int = 0
    stream_bytes: int | None = None
    axis: str | None = None
    point: int | None = None

    @property
    def rate(self) -> float:
        return self.changes / self.seconds if self.seconds else 0.0

    @property
    def streaming_rate(self) -> float:
        """Changes a second from when it streams: without the process's start."""
        seconds = self.seconds - self.startup_seconds
        return self.changes / seconds if seconds > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"changes_per_second": round(self.rate)}


@dataclass
class Latency(Figure):
    """What readers of one contestant's read database saw, in milliseconds."""

    wanted_rate: int = 0
    written_rate: float = 0.0
    samples: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Start(Figure):
    """How long one start took; `tables` are in the database."""

    tables: int = 0
    seconds: float = 0.0


@dataclass
class Idle(Figure):
    """What share of a core each process took; `core_share` is that of the pipeline's three."""

    seconds: float = 0.0
    scrapes: int = 0
    cpu_shares: dict[str, float] = field(default_factory=dict)
    core_share: float = 0.0

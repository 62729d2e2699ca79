"""What has to be reached, and whether it is: made from the figures as they are written to JSON."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks import compared
from benchmarks.compared import Figures

Measured = Mapping[str, float]
"""A value for each contestant."""

_MEGABYTE: Final = 1e6


@dataclass(frozen=True)
class Target:
    """What a measurement's figures must reach: at least `bound`, or less than it."""

    measurement: str
    title: str
    bound: float
    unit: str
    measure: Callable[[Figures], Measured]
    at_least: bool = False

    @property
    def wanted(self) -> str:
        return f"{'at least' if self.at_least else 'below'} {self.bound:g} {self.unit}"

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value < self.bound

    def show(self, value: float) -> str:
        return f"{value:,.2f} {self.unit}" if value < 100 else f"{value:,.0f} {self.unit}"


@dataclass(frozen=True)
class Verdict:
    """A target, held to one contestant's figures."""

    title: str
    wanted: str
    contestant: str
    value: float
    measured: str
    met: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _times_native(figures: Figures) -> Measured:
    return compared.to_native(figures)


def _milliseconds(quantile: str) -> Callable[[Figures], Measured]:
    return lambda figures: compared.medians(figures, compared.milliseconds(quantile))


def _peak(figures: Figures) -> Measured:
    return compared.medians(figures, lambda f: f["peak_bytes"] and f["peak_bytes"] / _MEGABYTE)


def _idle(figures: Figures) -> Measured:
    return compared.medians(figures, lambda f: 100 * f["core_share"])


TARGETS: Final = (
    Target("tpcb", "pgbench TPC-B backlog, mirrored", 2.5, "x native", _times_native, True),
    Target("million", "1M-change backlog, mirrored", 1.5, "x native", _times_native, True),
    Target(
        "projected",
        "the same through projectors that look at every column",
        *(1.0, "x native", _times_native, True),
    ),
    Target("latency", "1,000 transactions/s, p50", 3, "ms", _milliseconds("p50")),
    Target("latency", "1,000 transactions/s, p99", 10, "ms", _milliseconds("p99")),
    Target("big", "one transaction of 2M rows", 1.0, "x native", _times_native, True),
    Target("big", "one transaction of 2M rows, resident", 200, "MB", _peak),
    Target("copy", "copy of 5M rows", 1.3, "x native", _times_native, True),
    Target("spread", "50 mirrored tables", 0.8, "x one table", compared.to_one_table, True),
    Target("start", "start among 10,000 tables", 2, "s more than among 3", compared.more_seconds),
    Target("idle", "an idle pipeline", 1, "% of a core", _idle),
)


def judge(measured: Mapping[str, Figures]) -> list[Verdict]:
    """Hold the figures, by measurement, to the targets that they have any for."""
    return [
        Verdict(target.title, target.wanted, name, round(value, 4), target.show(value), met)
        for target in TARGETS
        if measured.get(target.measurement)
        for name, value in target.measure(measured[target.measurement]).items()
        if compared.is_ours(name)
        for met in (target.holds(value),)
    ]

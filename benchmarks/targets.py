"""What has to be reached, and whether it is: made from the figures as they are written to JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from benchmarks.contestants import NATIVE

Figures = Sequence[Mapping[str, Any]]
Measured = Mapping[str, float]
"""A value for each contestant that is this daemon."""

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


def _is_ours(figure: Mapping[str, Any]) -> bool:
    return str(figure["contestant"]).startswith("cdc-") and "profile" not in figure["contestant"]


def _valid(figures: Figures) -> list[Mapping[str, Any]]:
    """Drop what is void, and all rounds of a contestant that has a void one."""
    void = {figure["contestant"] for figure in figures if figure["void"]}
    return [figure for figure in figures if figure["contestant"] not in void]


def rates(figures: Figures, **where: Any) -> dict[tuple[str, int], float]:
    """Give changes a second by contestant and round."""
    return {
        (figure["contestant"], figure["round"]): figure["changes"] / figure["seconds"]
        for figure in _valid(figures)
        if figure["seconds"] and all(figure[name] == value for name, value in where.items())
    }


def ratios(
    rates: Mapping[tuple[str, int], float], others: Callable[[str, int], float | None]
) -> dict[str, float]:
    """Divide each rate by another one of its round; give medians by contestant."""
    found: dict[str, list[float]] = {}
    for (contestant, number), rate in rates.items():
        if other := others(contestant, number):
            found.setdefault(contestant, []).append(rate / other)
    return {contestant: median(values) for contestant, values in found.items()}


def to_native(figures: Figures) -> dict[str, float]:
    """Give each contestant's rate over native's of the same round; the median over rounds."""
    found = rates(figures)
    return ratios(found, lambda _, number: found.get((NATIVE, number)))


def _ours(found: Mapping[str, float]) -> Measured:
    return {name: value for name, value in found.items() if _is_ours({"contestant": name})}


def _times_native(figures: Figures) -> Measured:
    return _ours(to_native(figures))


def to_one_table(figures: Figures) -> Measured:
    """Give the rate over many tables, over that of one table."""
    names = {figure["workload"] for figure in figures} - {"spread-1"}
    one = rates(figures, workload="spread-1")
    many = {key: r for name in names for key, r in rates(figures, workload=name).items()}
    return _ours(ratios(many, lambda name, number: one.get((name, number))))


def _by_contestant(figures: Figures, value: Callable[[Mapping[str, Any]], float]) -> Measured:
    found: dict[str, list[float]] = {}
    for figure in _valid(figures):
        if _is_ours(figure):
            found.setdefault(figure["contestant"], []).append(value(figure))
    return {contestant: median(values) for contestant, values in found.items()}


def _milliseconds(quantile: str) -> Callable[[Figures], Measured]:
    return lambda figures: _by_contestant(figures, lambda f: f["milliseconds"][quantile])


def _peak(figures: Figures) -> Measured:
    return _by_contestant(figures, lambda f: f["peak_bytes"] / _MEGABYTE)


def _idle(figures: Figures) -> Measured:
    return _by_contestant(figures, lambda f: 100 * f["core_share"])


def more_seconds(figures: Figures) -> Measured:
    """Give how much longer a start takes among many tables."""
    few = min(figure["tables"] for figure in figures)
    small = _by_contestant([f for f in figures if f["tables"] == few], lambda f: f["seconds"])
    crowded = _by_contestant([f for f in figures if f["tables"] != few], lambda f: f["seconds"])
    return {name: crowded[name] - small[name] for name in crowded if name in small}


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
    Target("spread", "50 mirrored tables", 0.8, "x one table", to_one_table, True),
    Target("start", "start among 10,000 tables", 2, "s more than among 3", more_seconds),
    Target("idle", "an idle pipeline", 1, "% of a core", _idle),
)


def judge(measured: Mapping[str, Figures]) -> list[Verdict]:
    """Hold the figures, by measurement, to the targets that they have any for."""
    return [
        Verdict(target.title, target.wanted, name, round(value, 4), target.show(value), met)
        for target in TARGETS
        if measured.get(target.measurement)
        for name, value in target.measure(measured[target.measurement]).items()
        for met in (target.holds(value),)
    ]

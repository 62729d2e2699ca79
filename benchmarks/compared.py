"""Figures, as they are written to JSON, compared: ratios within a round, medians over rounds."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Final

NATIVE: Final = "native"

Figures = Sequence[Mapping[str, Any]]
Value = Callable[[Mapping[str, Any]], float | None]


def is_ours(contestant: str) -> bool:
    """Tell whether it is this daemon, and not under a profiler."""
    return contestant.startswith("cdc-") and "profile" not in contestant


def valid(figures: Figures) -> list[Mapping[str, Any]]:
    """Leave out all figures of a contestant that has a void one, at that point of a curve."""
    void = {_of(figure) for figure in figures if figure["void"]}
    return [figure for figure in figures if _of(figure) not in void]


def _of(figure: Mapping[str, Any]) -> tuple[Any, ...]:
    return figure["contestant"], figure.get("workload"), figure.get("axis"), figure.get("point")


def medians(figures: Figures, value: Value) -> dict[str, float]:
    """Give the median of a value by contestant; without those that have none."""
    found: dict[str, list[float]] = {}
    for figure in valid(figures):
        if (known := value(figure)) is not None:
            found.setdefault(figure["contestant"], []).append(known)
    return {contestant: median(values) for contestant, values in found.items()}


def rate(figure: Mapping[str, Any]) -> float:
    """Give changes a second, the start of the process included."""
    return float(figure["changes"] / figure["seconds"])


def streaming_rate(figure: Mapping[str, Any]) -> float:
    """Give changes a second from when it streams."""
    return float(figure["changes"] / (figure["seconds"] - figure["startup_seconds"]))


def streaming_cpu_seconds(figure: Mapping[str, Any]) -> float | None:
    """Give the daemon's CPU seconds from when it streams; None where there is no daemon."""
    spent = figure["cpu_seconds"].get("daemon")
    return None if spent is None else float(spent - figure["startup_cpu_seconds"])


def cpu_seconds(role: str) -> Value:
    """Give what tells the CPU seconds of a role."""

    def told(figure: Mapping[str, Any]) -> float | None:
        spent: float | None = figure["cpu_seconds"].get(role)
        return spent

    return told


def milliseconds(quantile: str) -> Value:
    """Give what tells a quantile of the times from commit to visible."""

    def told(figure: Mapping[str, Any]) -> float:
        return float(figure["milliseconds"][quantile])

    return told


def to_native(figures: Figures) -> dict[str, float]:
    """Give each contestant's rate over native's of the same round."""
    native = {figure["round"]: rate(figure) for figure in _of_contestant(figures, NATIVE)}
    return medians(
        [figure for figure in valid(figures) if figure["round"] in native],
        lambda figure: rate(figure) / native[figure["round"]],
    )


def _of_contestant(figures: Figures, name: str) -> list[Mapping[str, Any]]:
    return [figure for figure in valid(figures) if figure["contestant"] == name]


def to_one_table(figures: Figures) -> dict[str, float]:
    """Give each contestant's rate over many tables, over its own over one in the same round."""
    one = {
        (figure["contestant"], figure["round"]): rate(figure)
        for figure in valid(figures)
        if figure["workload"] == "spread-1"
    }
    many = [figure for figure in valid(figures) if figure["workload"] != "spread-1"]
    return medians(
        [figure for figure in many if (figure["contestant"], figure["round"]) in one],
        lambda figure: rate(figure) / one[figure["contestant"], figure["round"]],
    )


def more_seconds(figures: Figures) -> dict[str, float]:
    """Give how much longer a start takes among many tables than among few."""
    few = min(figure["tables"] for figure in figures)
    small = medians([f for f in figures if f["tables"] == few], lambda f: f["seconds"])
    crowded = medians([f for f in figures if f["tables"] != few], lambda f: f["seconds"])
    return {name: crowded[name] - small[name] for name in crowded if name in small}


def per_million(figures: Figures, value: Value) -> dict[str, float]:
    """Give a value per million changes."""

    def scaled(figure: Mapping[str, Any]) -> float | None:
        known = value(figure)
        return None if known is None else known / figure["changes"] * 1e6

    return medians(figures, scaled)


def megabytes(figures: Figures) -> dict[str, float]:
    """Give the megabytes of WAL, and of each plugin's stream, per million changes."""
    wal = per_million(figures, lambda f: f["wal_bytes"] / 1e6)
    sent = per_million(figures, lambda f: f["stream_bytes"] and f["stream_bytes"] / 1e6)
    return {"WAL": next(iter(wal.values()), 0.0)} | {
        name.removeprefix("ceiling-"): size for name, size in sent.items()
    }

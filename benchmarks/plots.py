"""Plots for the documentation, drawn from the published figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import compared
from benchmarks.compared import NATIVE, Figures, Value
from benchmarks.growth import AXES
from benchmarks.published import Published

_COLORS: Final = {NATIVE: "#777777", "cdc-wal2json": "#d9730d", "cdc-pgoutput": "#1f6fb4"}
_LABELS: Final = {NATIVE: "native", "cdc-wal2json": "wal2json", "cdc-pgoutput": "pgoutput"}
_BACKLOGS: Final = ("tpcb", "million", "projected", "big")
_ROLES: Final = {"walsender": "#9ecae1", "daemon": "#d9730d", "read": "#74c476"}
_DPI: Final = 80


def draw(published: Published, folder: Path) -> list[Path]:
    """Draw what there are figures for; give the files."""
    folder.mkdir(exist_ok=True)
    mpl.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "cdc", "axes.grid": True, "axes.axisbelow": True}
    )
    drawn = []
    if growth := published.figures("growth"):
        drawn.append(_save(_growth(growth), folder / "growth.png"))
    backlogs = {name: published.figures(name) for name in _BACKLOGS if published.figures(name)}
    if backlogs:
        drawn.append(_save(_cost(backlogs), folder / "cost.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def _growth(figures: Figures) -> Figure:
    """Draw the rate over each axis, and the memory over the size of transactions."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axis, panel in zip(AXES, panels, strict=False):
        _curves(panel, figures, axis.name, lambda f: compared.streaming_rate(f) / 1000)
        panel.set(title=f"1,000 changes/s by {axis.title}", ylim=(0, None))
    last = panels[len(AXES)]
    _curves(last, figures, "transaction", lambda f: f["peak_bytes"] and f["peak_bytes"] / 1e6)
    last.set(title="the daemon's peak, MB, by rows in a transaction", ylim=(0, None))
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _curves(panel: Axes, figures: Figures, axis: str, value: Value) -> None:
    on_axis = [figure for figure in figures if figure["axis"] == axis]
    points = sorted({figure["point"] for figure in on_axis})
    at = {p: compared.medians([f for f in on_axis if f["point"] == p], value) for p in points}
    for contestant, color in _COLORS.items():
        curve = [(point, found[contestant]) for point, found in at.items() if contestant in found]
        if curve:
            panel.plot(
                *zip(*curve, strict=True), marker="o", color=color, label=_LABELS[contestant]
            )
    panel.set_xscale("log")


def _cost(backlogs: Mapping[str, Figures]) -> Figure:
    """Draw CPU seconds and bytes per million changes."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    seconds, size = figure.subplots(1, 2, width_ratios=(2, 1))
    _stack(seconds, backlogs)
    seconds.set(title="CPU seconds per million changes")
    _sizes(size, backlogs)
    size.set(title="MB per million changes")
    return figure


def _stack(panel: Axes, backlogs: Mapping[str, Figures]) -> None:
    bars = [(name, contestant) for name in backlogs for contestant in _COLORS]
    labels = [f"{name}\n{_LABELS[contestant]}" for name, contestant in bars]
    below = [0.0] * len(bars)
    for role, color in _ROLES.items():
        by_backlog = {
            name: compared.per_million(figures, compared.cpu_seconds(role))
            for name, figures in backlogs.items()
        }
        values = [by_backlog[name].get(contestant, 0.0) for name, contestant in bars]
        panel.bar(labels, values, bottom=below, color=color, label=role)
        below = [sum(pair) for pair in zip(below, values, strict=True)]
    panel.tick_params(axis="x", labelsize=7)
    panel.legend()


def _sizes(panel: Axes, backlogs: Mapping[str, Figures]) -> None:
    sent = {
        name: size
        for name, figures in backlogs.items()
        if (size := compared.megabytes(figures)) and len(size) > 1
    }
    kinds = list(dict.fromkeys(kind for size in sent.values() for kind in size))
    width = 0.8 / max(1, len(kinds))
    for number, kind in enumerate(kinds):
        places = [n + number * width for n in range(len(sent))]
        panel.bar(places, [size.get(kind, 0.0) for size in sent.values()], width, label=kind)
    panel.set_xticks([n + 0.4 - width / 2 for n in range(len(sent))], list(sent))
    panel.margins(y=0.3)  # room for the legend
    if kinds:
        panel.legend()

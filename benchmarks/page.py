"""The tables of docs/performance.md, made from the published figures; the prose stays by hand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from benchmarks import compared, targets
from benchmarks.compared import Figures
from benchmarks.published import DOCS, Published
from benchmarks.targets import TARGETS

PATH: Final = DOCS / "performance.md"
_BACKLOGS: Final = {
    "tpcb": "pgbench TPC-B",
    "million": "500k inserts, 400k updates, 100k deletes",
    "projected": "the same, through a projector",
    "big": "one transaction of 2M inserts",
}
_AXES: Final = {
    "batch": "changes in a batch",
    "width": "bytes in a row",
    "transaction": "rows in a transaction",
    "tables": "mirrored tables",
    "projectors": "projectors",
}
_CONTESTANTS: Final = ("native", "cdc-wal2json", "cdc-pgoutput")
_QUIET: Final = 0.2
"""How many cores' worth of work may be somebody else's without a word."""


def rewritten(page: str, published: Published) -> str:
    """Give the page with its tables made anew; what was never measured is left as it is."""
    for mark, make in _TABLES.items():
        if f"<!-- {mark} -->" in page and (made := make(published)):
            before, _, rest = page.partition(f"<!-- {mark} -->")
            _, _, after = rest.partition(f"<!-- /{mark} -->")
            page = f"{before}<!-- {mark} -->\n{made}\n<!-- /{mark} -->{after}"
    return page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _under(table: str, published: Published, *names: str) -> str:
    """Say below a table what it was measured with: one line for each run."""
    loads: dict[str, list[float]] = {}
    for name in names:
        if published.figures(name):
            facts = published.facts(name)
            loads.setdefault(_said(facts), []).append(facts["load"])
    said = [f"{run}; {_load(of_run)}." for run, of_run in loads.items()]
    return "\n\n".join([table, *said])


def _said(facts: Mapping[str, Any]) -> str:
    rounds = "one round" if facts["rounds"] == 1 else f"medians of {facts['rounds']} rounds"
    scale = "" if facts["scale"] == 1 else f", at {facts['scale']:g} of the size"
    changed = ", with changes" if facts["modified"] else ""
    return (
        f"Measured {facts['date'][:10]} at revision {facts['revision'][:10]}{changed}, {rounds}"
        f"{scale}; {facts['cores']} cores, {facts['processor']}; PostgreSQL {facts['postgres']}, "
        f"Python {facts['python']}"
    )


def _load(loads: Sequence[float]) -> str:
    """Say how many cores' worth of work others did, at most, before something was measured."""
    most = max(loads)
    return f"others' load {most:.1f}" + (
        ": **other work ran on the machine**" if most > _QUIET else ""
    )


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _targets(published: Published) -> str:
    verdicts = targets.judge({name: published.figures(name) for name in published.measured})
    rows = [
        (
            target.title,
            target.wanted,
            *(
                next(
                    (
                        f"{v.measured.removesuffix(target.unit).strip()}"
                        f"{' (met)' if v.met else ' (**not met**)'}"
                        for v in verdicts
                        if (v.title, v.contestant) == (target.title, contestant)
                    ),
                    "",
                )
                for contestant in _CONTESTANTS[1:]
            ),
        )
        for target in TARGETS
    ]
    table = _table(("target", "wanted", "wal2json", "pgoutput"), rows) if verdicts else ""
    names = dict.fromkeys(target.measurement for target in TARGETS)
    return table and _under(table, published, *names)


def _backlogs(published: Published) -> str:
    rows = [
        row
        for name, title in _BACKLOGS.items()
        for row in _of_backlog(title, published.figures(name))
    ]
    head = ("workload", "contestant", "changes/s", "x native", "daemon's peak MB")
    return _under(_table(head, rows), published, *_BACKLOGS) if rows else ""


def _of_backlog(title: str, figures: Figures) -> list[tuple[str, ...]]:
    rates, ratios = compared.medians(figures, compared.rate), compared.to_native(figures)
    peaks = compared.medians(figures, lambda f: f["peak_bytes"] and f["peak_bytes"] / 1e6)
    return [
        (title, name, _number(rate), _number(ratios.get(name), 2), _number(peaks.get(name)))
        for name, rate in rates.items()
    ]


def _costs(published: Published) -> str:
    rows = [
        (title, name, *(_number(seconds[role].get(name), 2) for role in seconds), _sent(size, name))
        for backlog, title in _BACKLOGS.items()
        for figures in (published.figures(backlog),)
        if figures
        for size in (compared.megabytes(figures),)
        for seconds in (_seconds(figures),)
        for name in compared.medians(figures, compared.rate)
    ]
    head = ("workload", "contestant", "walsender s", "daemon s", "read backend s", "stream MB")
    return _under(_table(head, rows), published, *_BACKLOGS) if rows else ""


def _seconds(figures: Figures) -> dict[str, Mapping[str, float]]:
    return {
        role: compared.per_million(figures, compared.cpu_seconds(role))
        for role in ("walsender", "daemon", "read")
    }


def _sent(size: Mapping[str, float], contestant: str) -> str:
    plugin = "pgoutput" if contestant == compared.NATIVE else contestant.partition("-")[2]
    return _number(size.get(plugin))


def _latency(name: str) -> Callable[[Published], str]:
    def table(published: Published) -> str:
        figures = published.figures(name)
        quantiles = ("p50", "p90", "p99", "max")
        by_name = [
            compared.medians(figures, compared.milliseconds(quantile)) for quantile in quantiles
        ]
        rows = [(who, *(_number(of[who], 2) for of in by_name)) for who in by_name[0]]
        head = ("contestant", *(f"{quantile} ms" for quantile in quantiles))
        return _under(_table(head, rows), published, name) if rows else ""

    return table


def _copy(published: Published) -> str:
    rows = [row[1:] for row in _of_backlog("", published.figures("copy"))]
    head = ("contestant", "rows/s", "x native", "daemon's peak MB")
    return _under(_table(head, rows), published, "copy") if rows else ""


def _peers(published: Published) -> str:
    figures = published.figures("peers")
    rates, ratios = compared.medians(figures, compared.rate), compared.to_native(figures)
    streaming = compared.medians(figures, compared.streaming_rate)
    rows = [
        (name, _number(rate), _number(streaming[name]), _number(ratios.get(name), 2))
        for name, rate in rates.items()
    ]
    head = ("contestant", "changes/s", "without its start", "x native")
    return _under(_table(head, rows), published, "peers") if rows else ""


def _growth(published: Published) -> str:
    figures = published.figures("growth")
    rows = []
    for axis, point in dict.fromkeys((f["axis"], f["point"]) for f in figures):
        at_it = [f for f in figures if (f["axis"], f["point"]) == (axis, point)]
        rates = compared.medians(at_it, compared.streaming_rate)
        peaks = compared.medians(at_it, lambda f: f["peak_bytes"] and f["peak_bytes"] / 1e6)
        seconds = compared.per_million(at_it, compared.streaming_cpu_seconds)
        rows.append(
            (
                _AXES[axis],
                f"{point:,}",
                *(_number(rates.get(name)) for name in _CONTESTANTS),
                " / ".join(_number(seconds.get(name), 1) for name in _CONTESTANTS[1:]),
                " / ".join(_number(peaks.get(name)) for name in _CONTESTANTS[1:]),
            )
        )
    head = (
        *("by", "", "native", "wal2json", "pgoutput"),
        "daemon's CPU s per million",
        "daemon's peak MB",
    )
    return _under(_table(head, rows), published, "growth") if rows else ""


_TABLES: Final[Mapping[str, Callable[[Published], str]]] = {
    "targets": _targets,
    "backlogs": _backlogs,
    "costs": _costs,
    "latency": _latency("latency"),
    "copy": _copy,
    "copy-latency": _latency("copy-latency"),
    "growth": _growth,
    "peers": _peers,
}
"""What stands between `<!-- mark -->` and `<!-- /mark -->`."""

"""Tables for people, JSON for whoever compares."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import compared
from benchmarks.arena import SETTINGS
from benchmarks.figures import Figure, Idle, Latency, Result, Start
from benchmarks.targets import Verdict
from benchmarks.workloads import Backlog
from cdc.servers import Installation

FOLDER: Final = Path(__file__).with_name("results")
_PACKAGES: Final = ("cdc-daemon", "msgspec", "psycopg", "psycopg-binary", "sqlalchemy")
_MEBIBYTE: Final = 1024**2
_LOOK_SECONDS: Final = 2.0
_CPU_COLUMNS: Final = ("walsender", "daemon", "read", "source others", "read others")


def facts(installation: Installation, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Say on what, with what and when."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in _PACKAGES},
        "postgres": ".".join(map(str, installation.version)),
        "settings": dict(SETTINGS),
        "load": load(),
        "arguments": dict(arguments),
    }


def load() -> float:
    """Give how many cores' worth of work others do: looked at while nothing of ours runs.

    The system's own average would count what was measured before.
    """
    busy = psutil.cpu_percent(_LOOK_SECONDS) / 100
    return round(busy * (os.cpu_count() or 1), 2)


def print_facts(console: Console, facts: Mapping[str, Any]) -> None:
    """Print on what, with what and when."""
    settings = ", ".join(f"{name}={value}" for name, value in facts["settings"].items())
    console.print(
        f"{facts['date']}, revision {facts['revision'][:10]}{'+' if facts['modified'] else ''}, "
        f"{facts['cores']} cores ({facts['processor']}), load {facts['load']:.1f}, "
        f"Postgres {facts['postgres']}, Python {facts['python']}\n{settings}",
        highlight=False,
    )


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    ran = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def print_results(console: Console, backlog: Backlog, results: Sequence[Result]) -> None:
    """Print a workload's table: medians over the rounds."""
    title, unit = backlog.workload.title, "rows/s"
    if backlog.wal_bytes:
        wal = backlog.wal_bytes / _MEBIBYTE
        title, unit = f"{title} ({backlog.total:,} changes, {wal:,.0f} MiB WAL)", "changes/s"
    table = Table(title=title)
    table.add_column("contestant")
    for name in (unit, "x native", "seconds", "start s"):
        table.add_column(name, justify="right")
    for name in _CPU_COLUMNS:
        table.add_column(f"CPU s\n{name}", justify="right")
    table.add_column("peak MiB", justify="right")
    table.add_column("equal")
    against_native = compared.to_native(_json(results))
    for name in dict.fromkeys(result.contestant for result in results):
        rounds = [result for result in results if result.contestant == name]
        table.add_row(name, *_cells(rounds, against_native.get(name)))
    console.print(table)
    _print_void(console, results)


def _json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    return [figure.as_json() for figure in figures]


def _print_void(console: Console, figures: Sequence[Figure]) -> None:
    for figure in figures:
        if figure.void:
            console.print(f"[red]void:[/] {figure.contestant}, round {figure.round}: ", end="")
            console.print(figure.void, markup=False)


def _cells(rounds: Sequence[Result], ratio: float | None) -> list[str]:
    valid = [result for result in rounds if not result.void]
    if not valid or len(valid) < len(rounds):
        return ["[red]void[/]", *[""] * (4 + len(_CPU_COLUMNS)), "[red]NO[/]"]
    return [
        f"{median(r.rate for r in valid):,.0f}",
        f"{ratio:.2f}" if ratio else "",
        f"{median(r.seconds for r in valid):.2f}",
        f"{median(r.startup_seconds for r in valid):.2f}",
        *(_seconds([r.cpu_seconds.get(name) for r in valid]) for name in _CPU_COLUMNS),
        _mebibytes([r.peak_bytes for r in valid]),
        "[green]yes[/]",
    ]


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.2f}" if known else ""


def _mebibytes(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known) / _MEBIBYTE:,.0f}" if known else ""


def print_latencies(
    console: Console,
    latencies: Sequence[Latency],
    title: str = "commit to visible, milliseconds, single-row transactions",
) -> None:
    """Print commit-to-visible times."""
    table = Table(title=title)
    table.add_column("contestant")
    for name in ("wanted/s", "written/s", "samples", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(name, justify="right")
    table.add_column("equal")
    for found in latencies:
        table.add_row(found.contestant, *_latency_cells(found))
    console.print(table)
    _print_void(console, latencies)


def _latency_cells(found: Latency) -> list[str]:
    if found.void:
        return ["[red]void[/]", *[""] * 7, "[red]NO[/]"]
    times = [f"{value:.2f}" for value in found.milliseconds.values()]
    counts = [f"{found.wanted_rate:,}", f"{found.written_rate:,.0f}", f"{found.samples:,}"]
    return [*counts, *times, "[green]yes[/]"]


def print_spread(console: Console, results: Sequence[Result]) -> None:
    """Print how the rate over many tables compares with that of one."""
    for contestant, ratio in compared.to_one_table(_json(results)).items():
        console.print(f"{contestant}: {ratio:.2f} of the rate of one table")


def print_starts(console: Console, starts: Sequence[Start]) -> None:
    """Print the seconds until the stream, by how many tables there are."""
    table = Table(title="process start until streaming, seconds: median of the starts")
    table.add_column("contestant")
    counts = sorted({start.tables for start in starts})
    for count in counts:
        table.add_column(f"{count:,} tables", justify="right")
    for contestant in dict.fromkeys(start.contestant for start in starts):
        of_it = [start for start in starts if start.contestant == contestant and not start.void]
        by_count = [[s.seconds for s in of_it if s.tables == count] for count in counts]
        table.add_row(contestant, *(f"{median(s):.2f}" if s else "void" for s in by_count))
    console.print(table)
    _print_void(console, starts)


def print_idle(console: Console, found: Sequence[Idle]) -> None:
    """Print the shares of a core."""
    table = Table(title="idle: per cent of a core")
    table.add_column("contestant")
    for name in ("pipeline", *_CPU_COLUMNS, "scrapes"):
        table.add_column(name, justify="right")
    for idle in found:
        shares = [f"{100 * idle.cpu_shares.get(name, 0.0):.2f}" for name in _CPU_COLUMNS]
        table.add_row(idle.contestant, f"{100 * idle.core_share:.2f}", *shares, str(idle.scrapes))
    console.print(table)
    _print_void(console, found)


def print_growth(console: Console, results: Sequence[Result]) -> None:
    """Print the curves: changes a second, without the daemon's start."""
    table = Table(title="changes/s as work grows, without the daemon's start")
    contestants = list(dict.fromkeys(result.contestant for result in results))
    table.add_column("axis")
    for name in ("point", *contestants):
        table.add_column(name, justify="right")
    for axis, point in dict.fromkeys((result.axis, result.point) for result in results):
        at_it = [r for r in results if (r.axis, r.point) == (axis, point) and not r.void]
        rates = [[r.streaming_rate for r in at_it if r.contestant == name] for name in contestants]
        cells = [f"{median(values):,.0f}" if values else "" for values in rates]
        table.add_row(axis, f"{point:,}", *cells)
    console.print(table)
    _print_void(console, results)


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print the targets that were measured, and whether they are met."""
    table = Table(title="targets")
    for name in ("target", "wanted", "contestant", "measured", "met"):
        table.add_column(name)
    for verdict in verdicts:
        met = "[green]yes[/]" if verdict.met else "[red]NO[/]"
        table.add_row(verdict.title, verdict.wanted, verdict.contestant, verdict.measured, met)
    if verdicts:
        console.print(table)


def write(name: str, document: Mapping[str, Any]) -> Path:
    """Write the results as JSON; give the file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path

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

from rich.console import Console
from rich.table import Table

from benchmarks.arena import SETTINGS
from benchmarks.contestants import NATIVE
from benchmarks.latency import Latency
from benchmarks.measure import Result
from benchmarks.workloads import Backlog
from cdc.servers import Installation

FOLDER: Final = Path(__file__).with_name("results")
_PACKAGES: Final = ("cdc-daemon", "msgspec", "psycopg", "psycopg-binary", "sqlalchemy")
_MEBIBYTE: Final = 1024**2
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
        "load": os.getloadavg()[0],
        "arguments": dict(arguments),
    }


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


def ratios(results: Sequence[Result]) -> dict[str, float]:
    """Give each contestant's rate over native's of the same round; the median over rounds."""
    native = {r.round: r.rate for r in results if r.contestant == NATIVE and not r.void}
    found: dict[str, list[float]] = {}
    for result in results:
        if not result.void and native.get(result.round):
            found.setdefault(result.contestant, []).append(result.rate / native[result.round])
    return {name: median(values) for name, values in found.items()}


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
    against_native = ratios(results)
    for name in dict.fromkeys(result.contestant for result in results):
        rounds = [result for result in results if result.contestant == name]
        table.add_row(name, *_cells(rounds, against_native.get(name)))
    console.print(table)
    for result in results:
        if result.void:
            console.print(f"[red]void:[/] {result.contestant}, round {result.round}: ", end="")
            console.print(result.void, markup=False)


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
    for found in latencies:
        if found.void:
            console.print(f"[red]void:[/] {found.contestant}, round {found.round}: ", end="")
            console.print(found.void, markup=False)


def _latency_cells(found: Latency) -> list[str]:
    if found.void:
        return ["[red]void[/]", *[""] * 7, "[red]NO[/]"]
    times = [f"{value:.2f}" for value in found.milliseconds.values()]
    counts = [f"{found.wanted_rate:,}", f"{found.written_rate:,.0f}", f"{found.samples:,}"]
    return [*counts, *times, "[green]yes[/]"]


def write(name: str, document: Mapping[str, Any]) -> Path:
    """Write the results as JSON; give the file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path

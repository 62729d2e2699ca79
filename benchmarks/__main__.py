"""python -m benchmarks: build, measure, check, print."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console

from benchmarks import copies, publish, report, targets
from benchmarks.contestants import Plugin
from benchmarks.errors import BenchError
from benchmarks.measurements import MEASUREMENTS, TARGETED
from benchmarks.run import Run
from cdc.servers import Installation, find

_PLUGINS: Final[tuple[Plugin, ...]] = ("wal2json", "pgoutput")
_GROUPS: Final = {"targets": list(TARGETED)}

console = Console(width=160)


def main() -> int:
    """Run what was asked for; 1 where a figure is void."""
    arguments = _arguments()
    installation = find()
    run = _run(arguments, installation)
    facts = report.facts(installation, vars(arguments))
    document: dict[str, Any] = {"facts": facts, "measured": {}, "load": {}}
    report.print_facts(console, facts)
    void = False
    for name in arguments.only:
        document["load"][name] = report.load()
        figures = MEASUREMENTS[name](run)
        document["measured"][name] = [figure.as_json() for figure in figures]
        void |= any(figure.void for figure in figures)
        verdicts = targets.judge(document["measured"])
        document["targets"] = [verdict.as_json() for verdict in verdicts]
        path = report.write(run.stamp, document)
    report.print_verdicts(console, verdicts)
    console.print(f"Written to {path}.")
    if arguments.publish:
        publish.publish(document)
    return int(void)


def _run(arguments: argparse.Namespace, installation: Installation) -> Run:
    return Run(
        installation=installation,
        console=console,
        stamp=datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        plugins=_usable(arguments.plugins, installation),
        rounds=arguments.rounds,
        scale=arguments.scale,
        copy_rows=arguments.copy_rows,
        copy_chunk_bytes=arguments.copy_chunk_bytes,
        ceiling=not arguments.no_ceiling,
        native=not arguments.no_native,
        profile=arguments.profile,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        type=_listed((*MEASUREMENTS, *_GROUPS)),
        default=list(TARGETED),
        metavar="NAME,...",
        help=f"what to measure: {', '.join(MEASUREMENTS)}; or {', '.join(_GROUPS)}: "
        f"{', '.join(TARGETED)} (default: targets)",
    )
    parser.add_argument(
        "--plugins",
        type=_listed(_PLUGINS),
        default=list(_PLUGINS),
        metavar="NAME,...",
        help=f"{', '.join(_PLUGINS)} (default: both)",
    )
    parser.add_argument("--rounds", type=int, default=1, help="rounds in turn; medians are shown")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink or grow the workloads")
    parser.add_argument(
        "--copy-rows",
        type=int,
        default=copies.ROWS,
        metavar="N",
        help=f"rows of the table that is copied (default: {copies.ROWS:,}), before --scale",
    )
    parser.add_argument(
        "--copy-chunk-bytes",
        type=int,
        default=copies.CHUNK_BYTES,
        metavar="N",
        help="the daemon's copy.chunk_bytes (default: its own)",
    )
    parser.add_argument("--no-ceiling", action="store_true", help="leave the ceilings out")
    parser.add_argument("--no-native", action="store_true", help="leave native out (no ratios)")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also run the daemon under py-spy: CPU, then holders of the GIL",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write the figures, the plots and the tables of docs/performance.md anew",
    )
    return parser.parse_args()


def _listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {unknown[0]}; known: {', '.join(known)}")
        return [one for name in names for one in _GROUPS.get(name, [name])]

    return parse


def _usable(wanted: Sequence[Plugin], installation: Installation) -> list[Plugin]:
    usable = [plugin for plugin in wanted if plugin != "wal2json" or installation.wal2json]
    if len(usable) < len(wanted):
        console.print("[yellow]wal2json is not installed: it is left out[/]")
    return usable


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        console.print(f"[red]error:[/] {error}")
        sys.exit(1)

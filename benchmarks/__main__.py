"""python -m benchmarks: build, measure, check, print."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, TypeVar

from rich.console import Console

from benchmarks import beside, copies, latency, measure, profiling, report
from benchmarks.arena import Arena, arena
from benchmarks.contestants import Ceiling, Contestant, Native, Ours, Plugin, publish
from benchmarks.errors import BenchError
from benchmarks.latency import Latency, Ticks
from benchmarks.measure import Result
from benchmarks.workloads import Backlog, Big, Million, Tpcb, Workload, generate
from cdc.servers import Installation, find

_BACKLOGS: Final[dict[str, Callable[[float], Workload]]] = {
    "tpcb": Tpcb.scaled,
    "million": Million.scaled,
    "big": Big.scaled,
}
_ALL: Final = ("tpcb", "million", "latency", "big", "copy", "copy-latency")
_PLUGINS: Final[tuple[Plugin, ...]] = ("wal2json", "pgoutput")
_MODES: Final[tuple[profiling.Mode, ...]] = ("cpu", "gil")

_C = TypeVar("_C", bound=Contestant)

console = Console(width=160)


def main() -> int:
    """Run what was asked for; 1 where a figure is void."""
    arguments = _arguments()
    installation = find()
    plugins = _usable(arguments.plugins, installation)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    document: dict[str, Any] = {
        "facts": report.facts(installation, vars(arguments)),
        "results": [],
        "latency": [],
    }
    _print_facts(document["facts"])
    void = False
    for name in arguments.only:
        if name == "latency":
            latencies = _latencies(installation, plugins, arguments)
            report.print_latencies(console, latencies)
            document["latency"] = [latency.as_json(found) for found in latencies]
            void |= any(found.void for found in latencies)
        elif name == "copy":
            results = _copies(installation, plugins, arguments)
            document["results"] += [result.as_json() for result in results]
            void |= any(result.void for result in results)
        elif name == "copy-latency":
            latencies = _beside(installation, plugins, arguments)
            report.print_latencies(console, latencies, beside.TITLE)
            document["copy_latency"] = [latency.as_json(found) for found in latencies]
            void |= any(found.void for found in latencies)
        else:
            workload = _BACKLOGS[name](arguments.scale)
            results = _backlog(installation, workload, plugins, arguments, stamp)
            document["results"] += [result.as_json() for result in results]
            void |= any(result.void for result in results)
        path = report.write(stamp, document)
    console.print(f"Written to {path}.")
    return int(void)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        type=_listed(_ALL),
        default=list(_ALL),
        metavar="NAME,...",
        help=f"workloads: {', '.join(_ALL)} (default: all)",
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
    return parser.parse_args()


def _listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {unknown[0]}; known: {', '.join(known)}")
        return names

    return parse


def _usable(wanted: Sequence[Plugin], installation: Installation) -> list[Plugin]:
    usable = [plugin for plugin in wanted if plugin != "wal2json" or installation.wal2json]
    if len(usable) < len(wanted):
        console.print("[yellow]wal2json is not installed: it is left out[/]")
    return usable


def _print_facts(facts: dict[str, Any]) -> None:
    settings = ", ".join(f"{name}={value}" for name, value in facts["settings"].items())
    console.print(
        f"{facts['date']}, revision {facts['revision'][:10]}{'+' if facts['modified'] else ''}, "
        f"{facts['cores']} cores ({facts['processor']}), load {facts['load']:.1f}, "
        f"Postgres {facts['postgres']}, Python {facts['python']}\n{settings}",
        highlight=False,
    )


def _backlog(
    installation: Installation,
    workload: Workload,
    plugins: Sequence[Plugin],
    arguments: argparse.Namespace,
    stamp: str,
) -> list[Result]:
    """Measure all contestants over one backlog, each round in another order."""
    with arena(installation) as place:
        rounds, profiled = _line_up(place, workload, plugins, arguments, stamp)
        backlog = generate(place, workload)
        _say(f"{workload.title}: backlog of {backlog.total:,} changes made")
        results = [
            _measured(contestant, backlog, number)
            for number, contestants in enumerate(rounds, 1)
            for contestant in _in_turn(contestants, number)
        ]
        extra = [_measured(contestant, backlog, 0) for contestant in profiled]
    report.print_results(console, backlog, results)
    for contestant in profiled:
        console.print(f"Profile: {contestant.path}.txt, .raw, .speedscope.json", soft_wrap=True)
    return results + [result for result in extra if result.void]


def _line_up(
    place: Arena,
    workload: Workload,
    plugins: Sequence[Plugin],
    arguments: argparse.Namespace,
    stamp: str,
) -> tuple[list[list[Contestant]], list[profiling.Profiled]]:
    """Fill the source and the template; make everybody's slot and database."""
    _say(f"{workload.title}: preparing")
    workload.prepare(place)
    place.vacuum_template()
    publish(place, workload.tables)
    rounds = [
        _contestants(place, workload, plugins, arguments, f"r{number}")
        for number in range(1, arguments.rounds + 1)
    ]
    profiled = _profiled(place, workload, plugins, stamp) if arguments.profile else []
    for contestant in chain(*rounds, profiled):
        contestant.prepare()
    return rounds, profiled


def _contestants(
    place: Arena,
    workload: Workload,
    plugins: Sequence[Plugin],
    arguments: argparse.Namespace,
    label: str,
) -> list[Contestant]:
    natives = [] if arguments.no_native else [Native(place, workload, label)]
    ceilings = (
        []
        if arguments.no_ceiling
        else [Ceiling(place, workload, label, plugin) for plugin in plugins]
    )
    return [*natives, *(Ours(place, workload, label, plugin) for plugin in plugins), *ceilings]


def _profiled(
    place: Arena, workload: Workload, plugins: Sequence[Plugin], stamp: str
) -> list[profiling.Profiled]:
    profiling.py_spy()
    folder = report.FOLDER / f"{stamp}-profile"
    folder.mkdir(parents=True, exist_ok=True)
    return [
        profiling.Profiled(place, workload, "p", plugin, mode, folder)
        for plugin in plugins
        for mode in _MODES
    ]


def _in_turn(contestants: Sequence[_C], number: int) -> list[_C]:
    """Begin each round with another one: none is always first."""
    first = (number - 1) % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def _measured(contestant: Contestant, backlog: Backlog, number: int) -> Result:
    result = measure.measure(contestant, backlog, number)
    figure = "void" if result.void else f"{result.rate:,.0f}/s"
    _say(f"round {number}: {contestant.name}: {figure}")
    return result


def _latencies(
    installation: Installation, plugins: Sequence[Plugin], arguments: argparse.Namespace
) -> list[Latency]:
    workload = Ticks.scaled(arguments.scale)
    found = []
    with arena(installation) as place:
        if not latency.is_possible(place):
            raise BenchError("latency needs pg_waldump, which this server does not have")
        workload.prepare(place)
        publish(place, [*workload.tables])
        for number in range(1, arguments.rounds + 1):
            arguments_ = argparse.Namespace(**vars(arguments) | {"no_ceiling": True})
            contestants = _contestants(place, workload, plugins, arguments_, f"r{number}")
            for contestant in _in_turn(contestants, number):
                found.append(latency.measure(place, contestant, workload, number))
                _say(f"latency, round {number}: {contestant.name}")
    return found


def _copies(
    installation: Installation, plugins: Sequence[Plugin], arguments: argparse.Namespace
) -> list[Result]:
    """Let each copy the same table into a fresh database, each round in another order."""
    workload = copies.Table(_rows(arguments))
    results = []
    with arena(installation) as place:
        workload.prepare(place)
        publish(place, workload.tables)
        backlog = copies.filled(place, workload)
        _say(f"{workload.title}: table made")
        for number in range(1, arguments.rounds + 1):
            line_up: list[Contestant] = [
                *_copying(place, workload, plugins, arguments, number),
                copies.Pipe(place, workload, f"r{number}"),
            ]
            for contestant in _in_turn(line_up, number):
                contestant.prepare()
                results.append(_measured(contestant, backlog, number))
    report.print_results(console, backlog, results)
    return results


def _beside(
    installation: Installation, plugins: Sequence[Plugin], arguments: argparse.Namespace
) -> list[Latency]:
    workload = beside.Beside(_rows(arguments))
    found = []
    with arena(installation) as place:
        if not latency.is_possible(place):
            raise BenchError("latency needs pg_waldump, which this server does not have")
        workload.prepare(place)
        publish(place, workload.tables)
        backlog = copies.filled(place, workload)
        for number in range(1, arguments.rounds + 1):
            for contestant in _in_turn(
                _copying(place, workload, plugins, arguments, number), number
            ):
                found.append(beside.measure(place, contestant, backlog, number))
                _say(f"latency beside a copy, round {number}: {contestant.name}")
    return found


def _copying(
    place: Arena,
    workload: Workload,
    plugins: Sequence[Plugin],
    arguments: argparse.Namespace,
    number: int,
) -> list[copies.Copying]:
    found = copies.contestants(
        place, workload, f"r{number}", plugins=plugins, chunk_bytes=arguments.copy_chunk_bytes
    )
    return found[1:] if arguments.no_native else found


def _rows(arguments: argparse.Namespace) -> int:
    return max(1000, round(arguments.copy_rows * arguments.scale))


def _say(text: str) -> None:
    console.print(f"[dim]{datetime.now(UTC):%H:%M:%S}[/] {text}", highlight=False)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        console.print(f"[red]error:[/] {error}")
        sys.exit(1)

"""Contestants over one backlog: lined up, measured in turn, compared."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

from benchmarks import measure, profiling, report
from benchmarks.arena import Arena, fresh
from benchmarks.ceiling import Ceiling
from benchmarks.contestants import Contestant, publish
from benchmarks.figures import Result
from benchmarks.native import Native
from benchmarks.ours import Ours
from benchmarks.run import Run, in_turn
from benchmarks.workloads import Backlog, Workload, generate

LineUp = Callable[[Run, Arena, Workload, str], list[Contestant]]
"""Gives the contestants of a round, by the label that tells its slots and databases apart."""

_MODES: tuple[profiling.Mode, ...] = ("cpu", "gil")


def everybody(run: Run, place: Arena, workload: Workload, label: str) -> list[Contestant]:
    """Give native, this daemon with each plugin, and each plugin's ceiling."""
    natives = [Native(place, workload, label)] if run.native else []
    ceilings = [Ceiling(place, workload, label, p) for p in run.plugins] if run.ceiling else []
    return [*natives, *(Ours(place, workload, label, p) for p in run.plugins), *ceilings]


def replicas(run: Run, place: Arena, workload: Workload, label: str) -> list[Contestant]:
    """Give those that make read tables: all but the ceilings."""
    return everybody(replace(run, ceiling=False), place, workload, label)


def compare(run: Run, workload: Workload, line_up: LineUp = everybody) -> list[Result]:
    """Measure all contestants over one backlog; print what they did."""
    backlog, results = measure_all(run, workload, line_up)
    report.print_results(run.console, backlog, [result for result in results if result.round])
    return results


def measure_all(run: Run, workload: Workload, line_up: LineUp) -> tuple[Backlog, list[Result]]:
    """Measure all contestants over one backlog, each round in another order.

    Those that were profiled are of round 0.
    """
    with fresh(run.installation) as place:
        rounds, profiled = _prepared(run, place, workload, line_up)
        backlog = generate(place, workload)
        run.say(f"{workload.title}: backlog of {backlog.total:,} changes made")
        results = [
            measured(run, contestant, backlog, number)
            for number, contestants in zip(run.numbers, rounds, strict=True)
            for contestant in in_turn(contestants, number)
        ]
        for contestant in profiled:
            results.append(measured(run, contestant, backlog, 0))
            files = f"{contestant.path}.txt, .raw, .speedscope.json"
            run.console.print(f"Profile: {files}", soft_wrap=True)
    return backlog, [result for result in results if result.round or result.void]


def _prepared(
    run: Run, place: Arena, workload: Workload, line_up: LineUp
) -> tuple[list[list[Contestant]], list[profiling.Profiled]]:
    """Fill the source and the template; make everybody's slot and database."""
    run.say(f"{workload.title}: preparing")
    workload.prepare(place)
    place.vacuum_template()
    publish(place, workload.tables)
    rounds = [line_up(run, place, workload, f"r{number}") for number in run.numbers]
    profiled = _profiled(run, place, workload) if run.profile else []
    for contestant in chain(*rounds, profiled):
        contestant.prepare()
    return rounds, profiled


def _profiled(run: Run, place: Arena, workload: Workload) -> list[profiling.Profiled]:
    profiling.py_spy()
    folder = report.FOLDER / f"{run.stamp}-profile"
    folder.mkdir(parents=True, exist_ok=True)
    return [
        profiling.Profiled(place, workload, "p", plugin, mode, folder)
        for plugin in run.plugins
        for mode in _MODES
    ]


def measured(run: Run, contestant: Contestant, backlog: Backlog, number: int) -> Result:
    """Measure one contestant and say how it went."""
    result = measure.measure(contestant, backlog, number)
    figure = "void" if result.void else f"{result.rate:,.0f}/s"
    run.say(f"round {number}: {contestant.name}: {figure}")
    return result

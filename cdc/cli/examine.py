"""`cdc check` and `cdc status`: looking, without touching anything."""

import json
from dataclasses import asdict
from datetime import UTC, datetime

import typer
from rich.console import Console
from rich.markup import escape

from cdc.cli.options import AsJson, Config
from cdc.observe.logs import printable
from cdc.operate.check import Finding
from cdc.operate.check import check as find_problems
from cdc.operate.status import Status, read_status
from cdc.operate.status.screen import lines
from cdc.settings import load


def check(config: Config = None, as_json: AsJson = False) -> None:
    """Examine both databases and the configuration; change nothing.

    Each finding says what it is, why it matters, and the SQL or setting that mends it. The last
    line is `ready`, or how many are to be mended: then the exit code is 1. A database that does not
    answer is a finding, too.

    Examples:
      cdc check

      cdc check --json | jq -r '.[].sql[]'
    """
    found = find_problems(load(config))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        _print_findings(found)
    if any(finding.blocks for finding in found):
        raise typer.Exit(1)


def _print_findings(found: list[Finding]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for finding in found:
        sign = "[bold red]blocks[/]" if finding.blocks else "[bold yellow]advice[/]"
        console.print(f"{sign}  {_shown(finding.what)}  [dim]{finding.name}[/]")
        console.print(f"        why:  {_shown(finding.why)}")
        for number, line in enumerate(_mending(finding)):
            console.print(f"        {'     ' if number else 'mend:'} {_shown(line)}")
    blocking = sum(finding.blocks for finding in found)
    console.print("ready" if not blocking else f"{blocking} to mend before `cdc run`")


def _mending(finding: Finding) -> list[str]:
    """Give the remedy in lines: each statement is one, to be copied whole."""
    written = " ".join(f"{statement};" for statement in finding.sql)
    if not written or not finding.remedy.startswith(written):
        return [finding.remedy]
    rest = finding.remedy.removeprefix(written).strip()
    statements = [f"{statement};" for statement in finding.sql]
    return [f"on the {finding.where} database:", *statements, *([rest] if rest else [])]


def _shown(text: str) -> str:
    return escape(printable(text))


def status(config: Config = None, as_json: AsJson = False) -> None:
    """Say on one screen whether it is fine, how far behind, since when, and what to do next.

    The first word is the verdict: fine, behind, standby (exit code 0), stuck, stopped or "needs
    you" (exit code 1). It asks the daemon of this machine, and both databases; it works where no
    daemon runs.

    Examples:
      cdc status

      cdc status --json | jq .lag_bytes
    """
    now = read_status(load(config))
    if as_json:
        typer.echo(json.dumps(now.as_dict(), indent=2))
    else:
        _print_status(now)
    if not now.goes_on:
        raise typer.Exit(1)


def _print_status(now: Status) -> None:
    console = Console(soft_wrap=True, highlight=False)
    width = console.width if console.is_terminal else None
    first, *rest = lines(now, now=datetime.now(UTC), width=width)
    colour = "green" if now.condition == "fine" else "yellow" if now.goes_on else "red"
    told = first.removeprefix(now.condition)
    console.print(f"[bold {colour}]{now.condition}[/]{escape(told)}")
    for line in rest:
        console.print(escape(line))

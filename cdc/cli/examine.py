"""`cdc check` and `cdc status`: looking, without touching anything."""

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape

from cdc.cli.options import AsJson, Config
from cdc.observe.logs import printable
from cdc.operate.check import Finding
from cdc.operate.check import check as find_problems
from cdc.operate.status import read_status
from cdc.settings import load


def check(config: Config = None, as_json: AsJson = False) -> None:
    """Examine both databases and the configuration; change nothing.

    Each finding says what it is, why it matters and what mends it. Exit code 1 if one would stop
    the daemon.
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
        console.print(f"{sign}  {escape(finding.what)}")
        console.print(f"        why:  {escape(finding.why)}")
        console.print(f"        mend: {escape(finding.remedy)}")
    blocking = sum(finding.blocks for finding in found)
    console.print("ready" if not blocking else f"{blocking} to mend before `cdc run`")


def status(config: Config = None, as_json: AsJson = False) -> None:
    """Say how far behind the read database is; works without a running daemon too.

    Examples:
      cdc status

      cdc status --json | jq .lag_bytes
    """
    now = read_status(load(config))
    if as_json:
        typer.echo(json.dumps(now.as_dict(), indent=2))
        return
    for line in now.lines():
        typer.echo(printable(line))

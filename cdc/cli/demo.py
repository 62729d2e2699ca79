"""`cdc demo`."""

from typing import Annotated, Literal

import typer
from rich.console import Console


def demo(
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long to run.")] = 30,
    postgres: Annotated[
        Literal["auto", "installed", "wheel"],
        typer.Option("--postgres", help="Which Postgres servers to use."),
    ] = "auto",
) -> None:
    """Show it: two throwaway databases, an application that writes, the daemon, a live view.

    At the end both sides are compared row by row; exit code 0 only if they are equal.

    Examples:
      cdc demo

      cdc demo --seconds 10
    """
    from cdc.demo import run as run_demo  # noqa: PLC0415  the daemon does without it

    if not run_demo(seconds=seconds, postgres=postgres, console=Console(highlight=False)):
        raise typer.Exit(1)

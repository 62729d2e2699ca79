"""Errors, as they are told: one message on stderr, and what to do next."""

import sys
import traceback

from rich.markup import escape

from cdc.cli.terminal import messages
from cdc.errors import CdcError
from cdc.observe.logs import printable


def report(error: CdcError) -> None:
    """Print an error and what to do next."""
    console = messages()
    console.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
    if error.hint:
        console.print(f"[bold]hint:[/]  {escape(printable(error.hint))}")


def report_fault(error: Exception) -> None:
    """Print where an error came from that nobody foresaw, without its message.

    That may hold values of rows.
    """
    sys.stderr.writelines(traceback.format_tb(error.__traceback__))
    report(
        CdcError(
            f"{type(error).__name__}: this is a fault of cdc itself; its message is left out, for "
            "it may hold values of rows",
            hint="report it with the lines above. Nothing is lost: start again",
        )
    )

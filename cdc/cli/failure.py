"""Errors, as they are told: one message on stderr, and what to do next."""

import os
import sys
import traceback
from contextlib import suppress

from rich.markup import escape

from cdc.cli.terminal import messages
from cdc.errors import CdcError
from cdc.observe.logs import printable


def report(error: CdcError) -> None:
    """Print an error and what to do next."""
    console = messages()
    console.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
    hint = error.hint or error.usual_hint
    if hint:
        console.print(f"[bold]hint:[/]  {escape(printable(hint))}")


def report_unwritten(error: OSError) -> None:
    """Print that an answer could not be written, as where a disk is full."""
    report(CdcError(f"cannot write: {error.strerror}", hint="what was done stays done"))
    # What is left in the buffer would fail again as the interpreter ends, with another exit code.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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

"""The command line: one module for each subject, put together here."""

import errno
import sys
from importlib import metadata
from typing import Annotated, Final

import typer

from cdc.cli import quarantine
from cdc.cli.demo import demo
from cdc.cli.examine import check, status
from cdc.cli.failure import report, report_fault, report_unwritten
from cdc.cli.mend import copy, resync, verify
from cdc.cli.pipeline import drop, setup
from cdc.cli.run import run
from cdc.errors import CdcError

_UNWRITTEN: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What a full or broken disk answers to a write."""

__all__ = ["app", "main", "report"]


def _print_version(wanted: bool) -> None:  # noqa: FBT001  the interface's
    if wanted:
        typer.echo(f"cdc {metadata.version('cdc-daemon')}")
        raise typer.Exit


app: Final = typer.Typer(
    name="cdc",
    help="Stream committed changes of a Postgres write database through projectors into a read "
    "database, each transaction exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


for _command in (run, setup, check, status, copy, verify, resync, drop, demo):
    app.command()(_command)
app.add_typer(quarantine.app, name="quarantine")


def main() -> None:
    """Run the command line; every error is one message on stderr and an exit code."""
    try:
        app(prog_name="cdc")
    except CdcError as error:
        report(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _UNWRITTEN:
            report_fault(error)
        else:
            report_unwritten(error)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  a fault of ours, told as far as it may be
        report_fault(error)
        sys.exit(1)

"""The commands, one small function each."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cdc.daemon import Daemon
from cdc.errors import CdcError, SettingError
from cdc.lsn import Lsn
from cdc.observe import logs
from cdc.settings import load

app = typer.Typer(
    name="cdc",
    help="Stream committed changes of a Postgres write database through projectors into a read "
    "database, each transaction exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="CDC_CONFIG", help="Configuration file."),
]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option("--log-format", help="Logs for people, or machines.")
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"], typer.Option("--log-level", case_sensitive=False)
]


@app.command()
def run(
    config: Config = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="LSN|now",
            help="Stop once the checkpoint has passed this position: an LSN, or what is "
            "committed now.",
        ),
    ] = None,
    log_format: LogFormat = "text",
    log_level: LogLevel = "INFO",
) -> None:
    """Stream changes until stopped; set up on the first start.

    Examples:

      cdc run

      cdc run --config /etc/cdc.toml --log-format json

      cdc run --until now
    """
    logs.configure(form=log_format, level=log_level)
    Daemon(load(config), until=_position(until)).run()


def _position(until: str | None) -> str | None:
    if until is not None and until != "now":
        try:
            Lsn.parse(until)
        except ValueError:
            raise SettingError(
                f"--until {until} is no position", hint='give an LSN such as 0/16B3748, or "now"'
            ) from None
    return until


def main() -> None:
    """Run the command line; every error is one message on stderr and an exit code."""
    try:
        app()
    except CdcError as error:
        report(error)
        sys.exit(error.exit_code)


def report(error: CdcError) -> None:
    """Print an error and what to do next."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]error:[/] {escape(str(error))}")
    if error.hint:
        console.print(f"[bold]hint:[/]  {escape(error.hint)}")


@app.callback()
def _commands() -> None:
    """Keep `run` a command by name."""

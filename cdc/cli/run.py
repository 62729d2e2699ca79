"""`cdc run`."""

import os
from typing import Annotated

import typer

from cdc.cli.options import Config, LogFormat, LogLevel
from cdc.daemon import Daemon
from cdc.errors import SettingError
from cdc.lsn import Lsn
from cdc.observe import logs
from cdc.settings import load


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
    socket = os.environ.get("NOTIFY_SOCKET")  # systemd's, of a unit of Type=notify
    Daemon(load(config), until=_position(until), notify_socket=socket).run()


def _position(until: str | None) -> str | None:
    if until is not None and until != "now":
        try:
            Lsn.parse(until)
        except ValueError:
            raise SettingError(
                f"--until {until} is no position", hint='give an LSN such as 0/16B3748, or "now"'
            ) from None
    return until

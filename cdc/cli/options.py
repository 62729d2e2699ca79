"""Options that several commands take."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cdc.cli.completion import projector_names

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", envvar="CDC_CONFIG", help="Configuration file."),
]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option("--log-format", help="Logs for people, or machines.")
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    typer.Option("--log-level", case_sensitive=False, help="The least that is logged."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Ask for it, and leave.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Projector = Annotated[
    str | None,
    typer.Option(
        "--projector",
        metavar="NAME",
        help="What this one set aside.",
        autocompletion=projector_names,
    ),
]

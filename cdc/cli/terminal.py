"""What a person sees while a command works: on stderr, so that stdout is the answer alone."""

from collections.abc import Callable
from typing import Final

import typer
from rich.console import Console

from cdc.operate.follow import Display, Watch

INTERRUPTED: Final = 130
"""The exit code where somebody gave up waiting, as a shell gives it for Ctrl-C."""


def messages() -> Console:
    """Give where messages go."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def confirmed_by(yes: bool) -> Callable[[str], None]:  # noqa: FBT001
    """Give what asks before something is destroyed, unless that was agreed to."""

    def confirm(text: str) -> None:
        if not yes:
            typer.confirm(f"{text}. Go on?", abort=True, err=True)

    return confirm


def tell_who_copies(watch: Watch, display: Display) -> None:
    """Say who makes a copy that nobody waits for."""
    streams = watch.someone_streams()
    display.say("the daemon copies it" if streams else "no daemon streams: the next one copies it")

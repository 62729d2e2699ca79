"""`cdc setup` and `cdc drop`: a pipeline comes and goes."""

import typer

from cdc.cli.options import Config, LogLevel, Yes
from cdc.cli.terminal import confirmed_by
from cdc.observe import logs
from cdc.operate.drop import drop as drop_pipeline
from cdc.operate.setup import set_up
from cdc.settings import load


def setup(config: Config = None, log_level: LogLevel = "INFO") -> None:
    """Create the slot, the read tables and the bookkeeping, without streaming.

    What is there already and fits is left as it is; what does not fit is refused.

    Examples:
      cdc setup

      cdc setup --config /etc/cdc.toml --log-level WARNING
    """
    logs.configure(level=log_level)
    position = set_up(load(config))
    typer.echo(f"ready to stream from {position}")


def drop(
    config: Config = None,
    yes: Yes = False,
) -> None:
    """Remove the slot, the publications and the checkpoint. Read tables stay.

    Changes made after this are not seen by a later `cdc run`.

    Examples:
      cdc drop

      cdc drop --yes
    """
    settings = load(config)
    slot = settings.source.slot
    confirmed_by(yes)(f"Drop slot {slot}, its publications and its checkpoint")
    dropped_any = False
    for what in drop_pipeline(settings):
        dropped_any = True
        typer.echo(f"dropped {what}")
    if not dropped_any:
        typer.echo("dropped nothing: there was nothing to drop")

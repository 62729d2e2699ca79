"""`cdc quarantine`: what was set aside, shown, applied or deleted."""

import json
from collections.abc import Collection
from contextlib import closing
from typing import Annotated, Final

import typer

from cdc.attend import attend
from cdc.cli.options import AsJson, Config, NoWait, Projector, Yes
from cdc.cli.terminal import INTERRUPTED, confirmed_by, messages
from cdc.errors import SettingError
from cdc.observe import logs
from cdc.observe.logs import printable
from cdc.operate import quarantine as quarantined
from cdc.operate.display import showing
from cdc.settings import Settings, load
from cdc.sink.quarantine import Described, Wish

app: Final = typer.Typer(
    help="Changes set aside because their projection or write fails for a reason that will not "
    "pass.",
    no_args_is_help=True,
)
KeyText = Annotated[
    str,
    typer.Argument(metavar="KEY", help="As `list` shows it; of several columns: joined by commas."),
]


@app.command("list")
def list_quarantine(
    projector: Projector = None, as_json: AsJson = False, config: Config = None
) -> None:
    """List the keys that are set aside: how many changes of each, and what failed.

    Examples:
      cdc quarantine list

      cdc quarantine list --projector order_view --json
    """
    held = quarantined.found(load(config), projector=projector)
    if as_json:
        typer.echo(json.dumps([quarantined.as_dict(one) for one in held], indent=2))
        return
    for one in held:
        typer.echo(printable(quarantined.told(one)))
    if not held:
        typer.echo("nothing is in quarantine")


@app.command()
def show(
    key: KeyText,
    projector: Projector = None,
    values: Annotated[bool, typer.Option("--values", help="With the rows' values.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show the changes of a key that are set aside, in order; values only where asked for.

    Examples:
      cdc quarantine show 4711

      cdc quarantine show 4711 --values
    """
    settings = load(config)
    shown = []
    for one in quarantined.chosen(quarantined.found(settings, projector=projector), key):
        lines = quarantined.changes_of(settings, one)
        if as_json:
            plain = [quarantined.line_as_dict(line, values=values) for line in lines]
            shown.append(quarantined.as_dict(one) | {"held": plain})
            continue
        typer.echo(printable(quarantined.told(one)))
        for line in lines:
            for text in quarantined.line_told(line, values=values):
                typer.echo(printable(text))
    if as_json:
        typer.echo(json.dumps(shown, indent=2))


@app.command()
def replay(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="As `list` shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is set aside.")] = False,
    projector: Projector = None,
    no_wait: NoWait = False,
    config: Config = None,
) -> None:
    """Apply what is set aside, in order, after the cause was mended.

    The running daemon does it between two transactions of the stream; where there is none, this
    command streams until it is done. A key of which something still fails stays. Exit code 1 if
    any does.

    Examples:
      cdc quarantine replay 4711

      cdc quarantine replay --all --projector order_view
    """
    settings = load(config)
    if (key is None) != everything:
        raise SettingError("give a KEY, or --all", hint="`cdc quarantine list` shows the keys")
    held = quarantined.found(settings, projector=projector)
    held = held if key is None else quarantined.chosen(held, key)
    if held and not _done_by_daemon(settings, held, "replay", no_wait=no_wait):
        return
    failing = quarantined.left(settings, held)
    typer.echo(f"replayed {len(held) - len(failing)} of {len(held)}")
    for one in failing:
        typer.echo(printable(quarantined.told(one)))
    if failing:
        raise typer.Exit(1)


@app.command("drop")
def drop_quarantined(
    key: KeyText,
    projector: Projector = None,
    yes: Yes = False,
    no_wait: NoWait = False,
    config: Config = None,
) -> None:
    """Delete what is set aside of a key, unapplied; later changes are applied again.

    Examples:
      cdc quarantine drop 4711 --projector order_view
    """
    settings = load(config)
    held = quarantined.chosen(quarantined.found(settings, projector=projector), key)
    quarantined.require_dropping(settings, held, confirmed_by(yes))
    if _done_by_daemon(settings, held, "drop", no_wait=no_wait):
        typer.echo(f"dropped {', '.join(printable(quarantined.named(one)) for one in held)}")


def _done_by_daemon(
    settings: Settings, held: Collection[Described], wish: Wish, *, no_wait: bool
) -> bool:
    """Ask for it, and be there while it is done; tell False where nobody waits for that."""
    quarantined.ask(settings, held, wish)
    with (
        closing(quarantined.QuarantineWatch(settings, held)) as watch,
        showing(messages()) as display,
    ):
        logs.configure(level="WARNING")
        if no_wait:
            streams = watch.someone_streams()
            display.say(
                "asked the daemon" if streams else "no daemon streams: the next one does it"
            )
            return False
        if not attend(settings, watch, display, doing="streaming"):
            raise typer.Exit(INTERRUPTED)
    return True

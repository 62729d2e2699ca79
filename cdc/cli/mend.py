"""`cdc copy`, `cdc verify`, `cdc resync`: read tables are put right, beside the stream."""

import json
from collections.abc import Collection
from contextlib import closing
from typing import Annotated

import typer

from cdc.attend import attend
from cdc.cli.completion import projector_names
from cdc.cli.options import AsJson, Config, NoWait, Yes
from cdc.cli.terminal import INTERRUPTED, confirmed_by, messages, tell_who_copies
from cdc.copy_state import Copy
from cdc.observe import logs
from cdc.observe.logs import printable
from cdc.observe.progress import names
from cdc.operate.copy import Asked, ask, wanted
from cdc.operate.display import showing
from cdc.operate.follow import Display, Watch
from cdc.operate.resync import ResyncWatch
from cdc.operate.resync import resync as begin_resync
from cdc.operate.verify import Result, VerifyWatch, results
from cdc.operate.verify import ask as ask_verification
from cdc.settings import load


def copy(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE", help="Source tables, or patterns: shop.orders shop.*"),
    ] = None,
    projectors: Annotated[
        list[str] | None,
        typer.Option(
            "--projector",
            metavar="NAME",
            help="What this projector reads. Repeatable.",
            autocompletion=projector_names,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is projected.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin copies anew that are being made.")
    ] = False,
    no_wait: NoWait = False,
    yes: Yes = False,
    config: Config = None,
) -> None:
    """Copy tables again that are streamed, beside the stream; show how far it is.

    The running daemon makes the copy; where there is none, this command does, and streams until it
    is done. Closing the command leaves the daemon at it; given again, it shows the same copy.
    Read rows stay readable; rows that the source no longer has are not looked for.

    Examples:
      cdc copy public.orders

      cdc copy --projector comment_count

      cdc copy --all --no-wait
    """
    settings = load(config)
    named = wanted(tables or (), projectors or (), everything=everything)
    asked = ask(settings, named, restart=restart, confirm=confirmed_by(yes))
    with closing(Watch(settings, asked.units)) as watch, showing(messages()) as display:
        logs.configure(level="WARNING")
        _tell_asked(asked, display)
        if no_wait:
            tell_who_copies(watch, display)
            return
        is_done = attend(settings, watch, display)
    if not is_done:
        raise typer.Exit(INTERRUPTED)
    _print_copied(watch.copies)


def _tell_asked(asked: Asked, display: Display) -> None:
    named = names(asked.units)
    for unit in asked.under_way:
        display.say(f"{named[unit]} is being copied already; --restart begins anew")
    for unit in asked.anew:
        display.say(f"asked for {named[unit]}")


def _print_copied(copies: Collection[Copy]) -> None:
    named = names([copy.unit for copy in copies])
    for copy in copies:
        typer.echo(printable(f"copied {copy.copied} rows of {named[copy.unit]}"))


def verify(
    projectors: Annotated[
        list[str] | None,
        typer.Option(
            "--projector",
            metavar="NAME",
            help="What this one writes. Repeatable.",
            autocompletion=projector_names,
        ),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Put right what is wrong.")] = False,
    sample: Annotated[
        float, typer.Option("--sample", metavar="PERCENT", help="Compare about so much of it.")
    ] = 100.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Compare the read tables with the projection of the source, while both are written.

    Rows are compared at one point of the stream, chunk by chunk, by the running daemon; where there
    is none, this command streams until it is done. Closing the command leaves the daemon at it;
    given again, it shows the same verification. Exit code 1 if something is wrong and was not
    repaired. Keys are printed, other values never.

    Examples:
      cdc verify

      cdc verify --projector comment_count --repair

      cdc verify --sample 5 --json
    """
    settings = load(config)
    units = ask_verification(settings, projectors or (), sample=sample, repair=repair)
    with closing(VerifyWatch(settings, units)) as watch, showing(messages()) as display:
        logs.configure(level="WARNING")
        if not attend(settings, watch, display, doing="comparing"):
            raise typer.Exit(INTERRUPTED)
    _print_results(results(settings, units), as_json=as_json)


def _print_results(found: Collection[Result], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([result.as_dict() for result in found], indent=2))
    else:
        for line in (line for result in found for line in result.lines()):
            typer.echo(printable(line))
    if any(result.mismatched for result in found):
        raise typer.Exit(1)


def resync(
    no_wait: NoWait = False,
    yes: Yes = False,
    config: Config = None,
) -> None:
    """Begin again after changes were lost: a new slot, and a copy of everything beside it.

    For a slot that is lost or missing, or a database that was restored from a backup. Read tables
    stay there to be read; rows whose source rows are gone are removed from them. Killed anywhere,
    it may be given again, or `cdc run` goes on with it. Exit code 1 if read rows remain wrong.

    Examples:
      cdc resync

      cdc resync --yes --no-wait
    """
    settings = load(config)
    units = begin_resync(settings, confirm=confirmed_by(yes))
    with closing(ResyncWatch(settings, units)) as watch, showing(messages()) as display:
        logs.configure(level="WARNING")
        display.say(f"made slot {settings.source.slot} anew; everything is copied again")
        if no_wait:
            tell_who_copies(watch, display)
            return
        if not attend(settings, watch, display):
            raise typer.Exit(INTERRUPTED)
    _print_results(results(settings, units), as_json=False)

"""The commands, one small function each."""

import json
import sys
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cdc.attend import attend
from cdc.copy_state import Copy
from cdc.daemon import Daemon
from cdc.errors import CdcError, SettingError
from cdc.lsn import Lsn
from cdc.observe import logs
from cdc.observe.logs import printable
from cdc.observe.progress import names
from cdc.operate import quarantine as quarantined
from cdc.operate.check import Finding
from cdc.operate.check import check as find_problems
from cdc.operate.copy import Asked, ask, wanted
from cdc.operate.display import showing
from cdc.operate.drop import drop as drop_pipeline
from cdc.operate.follow import Display, Watch
from cdc.operate.resync import ResyncWatch
from cdc.operate.resync import resync as begin_resync
from cdc.operate.setup import set_up
from cdc.operate.status import read_status
from cdc.operate.verify import Result, VerifyWatch, results
from cdc.operate.verify import ask as ask_verification
from cdc.settings import Settings, load
from cdc.sink.quarantine import Described, Wish

QUARANTINE: Final = (
    "Changes set aside because their projection or write fails for a reason that will not pass."
)
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
_INTERRUPTED: Final = 130
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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


@app.command()
def setup(config: Config = None, log_level: LogLevel = "INFO") -> None:
    """Create the slot, the read tables and the bookkeeping, without streaming.

    What is there already and fits is left as it is; what does not fit is refused.
    """
    logs.configure(level=log_level)
    position = set_up(load(config))
    typer.echo(f"ready to stream from {position}")


@app.command()
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Examine both databases and the configuration; change nothing.

    Each finding says what it is, why it matters and what mends it. Exit code 1 if one would stop
    the daemon.
    """
    found = find_problems(load(config))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        _print_findings(found)
    if any(finding.blocks for finding in found):
        raise typer.Exit(1)


def _print_findings(found: list[Finding]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for finding in found:
        sign = "[bold red]blocks[/]" if finding.blocks else "[bold yellow]advice[/]"
        console.print(f"{sign}  {escape(finding.what)}")
        console.print(f"        why:  {escape(finding.why)}")
        console.print(f"        mend: {escape(finding.remedy)}")
    blocking = sum(finding.blocks for finding in found)
    console.print("ready" if not blocking else f"{blocking} to mend before `cdc run`")


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Say how far behind the read database is; works without a running daemon too.

    Examples:
      cdc status

      cdc status --json | jq .lag_bytes
    """
    now = read_status(load(config))
    if as_json:
        typer.echo(json.dumps(now.as_dict(), indent=2))
        return
    for line in now.lines():
        typer.echo(printable(line))


@app.command()
def copy(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE", help="Source tables, or patterns: shop.orders shop.*"),
    ] = None,
    projectors: Annotated[
        list[str] | None,
        typer.Option("--projector", metavar="NAME", help="What this projector reads. Repeatable."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is projected.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin copies anew that are being made.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it, and leave.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
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
    asked = ask(settings, named, restart=restart, confirm=_confirmed_by(yes))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with closing(Watch(settings, asked.units)) as watch, showing(console) as display:
        logs.configure(level="WARNING")
        _tell_asked(asked, display)
        if no_wait:
            _tell_who_copies(watch, display)
            return
        is_done = attend(settings, watch, display)
    if not is_done:
        raise typer.Exit(_INTERRUPTED)
    _print_copied(watch.copies)


def _confirmed_by(yes: bool) -> Callable[[str], None]:  # noqa: FBT001
    def confirm(text: str) -> None:
        if not yes:
            typer.confirm(f"{text}. Go on?", abort=True)

    return confirm


def _tell_asked(asked: Asked, display: Display) -> None:
    named = names(asked.units)
    for unit in asked.under_way:
        display.say(f"{named[unit]} is being copied already; --restart begins anew")
    for unit in asked.anew:
        display.say(f"asked for {named[unit]}")


def _tell_who_copies(watch: Watch, display: Display) -> None:
    streams = watch.someone_streams()
    display.say("the daemon copies it" if streams else "no daemon streams: the next one copies it")


def _print_copied(copies: Collection[Copy]) -> None:
    named = names([copy.unit for copy in copies])
    for copy in copies:
        typer.echo(printable(f"copied {copy.copied} rows of {named[copy.unit]}"))


@app.command()
def verify(
    projectors: Annotated[
        list[str] | None,
        typer.Option("--projector", metavar="NAME", help="What this one writes. Repeatable."),
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
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with closing(VerifyWatch(settings, units)) as watch, showing(console) as display:
        logs.configure(level="WARNING")
        if not attend(settings, watch, display, doing="comparing"):
            raise typer.Exit(_INTERRUPTED)
    _print_results(results(settings, units), as_json=as_json)


def _print_results(found: Collection[Result], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([result.as_dict() for result in found], indent=2))
    else:
        for line in (line for result in found for line in result.lines()):
            typer.echo(printable(line))
    if any(result.mismatched for result in found):
        raise typer.Exit(1)


@app.command()
def resync(
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it, and leave.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
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
    units = begin_resync(settings, confirm=_confirmed_by(yes))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with closing(ResyncWatch(settings, units)) as watch, showing(console) as display:
        logs.configure(level="WARNING")
        display.say(f"made slot {settings.source.slot} anew; everything is copied again")
        if no_wait:
            _tell_who_copies(watch, display)
            return
        if not attend(settings, watch, display):
            raise typer.Exit(_INTERRUPTED)
    _print_results(results(settings, units), as_json=False)


quarantine = typer.Typer(help=QUARANTINE, no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")
Projector = Annotated[
    str | None, typer.Option("--projector", metavar="NAME", help="What this one set aside.")
]
KeyText = Annotated[
    str,
    typer.Argument(metavar="KEY", help="As `list` shows it; of several columns: joined by commas."),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Ask for it, and leave.")]


@quarantine.command("list")
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


@quarantine.command()
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


@quarantine.command()
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


@quarantine.command("drop")
def drop_quarantined(
    key: KeyText,
    projector: Projector = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    no_wait: NoWait = False,
    config: Config = None,
) -> None:
    """Delete what is set aside of a key, unapplied; later changes are applied again.

    Examples:
      cdc quarantine drop 4711 --projector order_view
    """
    settings = load(config)
    held = quarantined.chosen(quarantined.found(settings, projector=projector), key)
    quarantined.require_dropping(settings, held, _confirmed_by(yes))
    if _done_by_daemon(settings, held, "drop", no_wait=no_wait):
        typer.echo(f"dropped {', '.join(printable(quarantined.named(one)) for one in held)}")


def _done_by_daemon(
    settings: Settings, held: Collection[Described], wish: Wish, *, no_wait: bool
) -> bool:
    """Ask for it, and be there while it is done; tell False where nobody waits for that."""
    quarantined.ask(settings, held, wish)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with closing(quarantined.QuarantineWatch(settings, held)) as watch, showing(console) as display:
        logs.configure(level="WARNING")
        if no_wait:
            streams = watch.someone_streams()
            display.say(
                "asked the daemon" if streams else "no daemon streams: the next one does it"
            )
            return False
        if not attend(settings, watch, display, doing="streaming"):
            raise typer.Exit(_INTERRUPTED)
    return True


@app.command()
def drop(
    config: Config = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the slot, the publications and the checkpoint. Read tables stay.

    Changes made after this are not seen by a later `cdc run`.
    """
    settings = load(config)
    if not yes:
        typer.confirm(
            f"Drop slot {settings.source.slot}, its publications and its checkpoint?", abort=True
        )
    for what in drop_pipeline(settings) or ["nothing: there was nothing to drop"]:
        typer.echo(f"dropped {what}")


@app.command()
def demo(
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long to run.")] = 30,
    postgres: Annotated[
        Literal["auto", "installed", "wheel"],
        typer.Option("--postgres", help="Which Postgres servers to use."),
    ] = "auto",
) -> None:
    """Show it: two throwaway databases, an application that writes, the daemon, a live view.

    At the end both sides are compared row by row; exit code 0 only if they are equal.
    """
    from cdc.demo import run as run_demo  # noqa: PLC0415  the daemon does without it

    if not run_demo(seconds=seconds, postgres=postgres, console=Console(highlight=False)):
        raise typer.Exit(1)


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
    console.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
    if error.hint:
        console.print(f"[bold]hint:[/]  {escape(printable(error.hint))}")

"""The view: what happens, while it happens; a line now and then where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cdc.demo.watch import TABLES, Rates, Sample, Watch

_FRAME_SECONDS: Final = 0.25
_LINE_SECONDS: Final = 2.0
_WIDEST: Final = 80
_STYLES: Final = {"streaming": "green", "stopping": "yellow", "starting": "yellow"}

Show = Callable[[Sample, Rates], None]


class Clock:
    """How long the view has been shown, of how long it will be."""

    def __init__(self, seconds: float) -> None:
        self.total = seconds
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        return min(time.monotonic() - self._began, self.total)

    @property
    def is_over(self) -> bool:
        return self.elapsed >= self.total


def is_live(console: Console) -> bool:
    """Tell whether what was printed can be changed afterwards."""
    return console.is_terminal and not console.is_dumb_terminal


def interval(console: Console) -> float:
    """Give the seconds between two looks at the daemon."""
    return _FRAME_SECONDS if is_live(console) else _LINE_SECONDS / 4


@contextmanager
def showing(console: Console, clock: Clock, watch: Watch) -> Iterator[Show]:
    """Give a function that shows a sample."""
    if not is_live(console):
        console.print(f"Metrics: {watch.url}/metrics", soft_wrap=True)
        yield _Lines(console, clock)
        return
    with Live(console=console, auto_refresh=False) as live:

        def show(sample: Sample, rates: Rates) -> None:
            live.update(_frame(sample, rates, clock, url=watch.url), refresh=True)

        yield show


class _Lines:
    """Prints a line for the first sample, and then every few seconds."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._due = 0.0

    def __call__(self, sample: Sample, rates: Rates) -> None:
        if self._clock.elapsed < self._due and not self._clock.is_over:
            return
        self._due += _LINE_SECONDS
        line = _line(sample, rates, self._clock)
        self._console.print(line, markup=False, soft_wrap=True)


def _line(sample: Sample, rates: Rates, clock: Clock) -> str:
    counts = ", ".join(
        f"{source} {read:,} of {written:,}"
        for (source, _), (written, read) in zip(TABLES, sample.counts, strict=True)
    )
    return (
        f"{clock.elapsed:5.0f} s  {sample.status['state']}  lag {_lag(sample)}  "
        f"{_rates(rates)}  rows read: {counts}"
    )


def _frame(sample: Sample, rates: Rates, clock: Clock, *, url: str) -> RenderableType:
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim")
    facts.add_row("state", _state(sample))
    facts.add_row("lag", _lag(sample))
    facts.add_row("rates", _rates(rates))
    facts.add_row("metrics", Text(f"{url}/metrics", style="cyan"))
    body = Group(facts, "", _counts(sample), "", _progress(clock))
    return Panel(body, title="[bold]cdc demo", width=_WIDEST, padding=(1, 2), border_style="dim")


def _state(sample: Sample) -> Text:
    state, because = sample.status["state"], sample.status.get("because")
    text = Text(state, style=f"bold {_STYLES.get(state, 'red')}")
    return text.append(f"  {because}", style="not bold") if because else text


def _lag(sample: Sample) -> str:
    return f"{decimal(sample.status['lag_bytes'])}, {sample.status['lag_seconds']:.1f} s"


def _rates(rates: Rates) -> str:
    return (
        f"{rates.transactions:,.0f} transactions/s, {rates.changes:,.0f} changes/s, "
        f"{rates.operations:,.0f} operations/s"
    )


def _counts(sample: Sample) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("write database")
    table.add_column("rows", justify="right")
    table.add_column("read database")
    table.add_column("rows", justify="right")
    for (source, target), (written, read) in zip(TABLES, sample.counts, strict=True):
        table.add_row(source, f"{written:,}", target, f"{read:,}")
    return table


def _progress(clock: Clock) -> Table:
    row = Table.grid(padding=(0, 3, 0, 0), expand=True)
    row.add_column(ratio=1)
    row.add_column(justify="right")
    bar = ProgressBar(total=clock.total, completed=clock.elapsed, complete_style="green")
    row.add_row(bar, f"{clock.elapsed:.0f} of {clock.total:g} s   [dim]Ctrl-C ends it early[/]")
    return row


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """Say what is being done: while it is on a terminal, once where there is none."""
    if is_live(console):
        spinner = "line" if console.options.ascii_only else "dots"
        with console.status(escape(what), spinner=spinner):
            yield
    else:
        console.print(f"{what} ...", markup=False, soft_wrap=True)
        yield

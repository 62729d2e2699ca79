"""How copies are shown while somebody waits: bars on a terminal, else a line now and then."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cdc.copy_state import Copy, Unit
from cdc.observe.logs import printable
from cdc.observe.progress import names, percent, ratio, rows, summary
from cdc.operate.follow import Display

_LINE_SECONDS: Final = 5.0
_PACE_SECONDS: Final = 20.0
_TOTAL: Final = "all"
_LINES_BESIDE: Final = 4  # of a terminal: the total, and what is said


class Pace:
    """How fast rows have been copied lately. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, rows: int, now: float) -> None:
        """Note how many rows there are now; fewer than before begin anew."""
        if self._seen and rows < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, rows))
        while now - self._seen[0][0] > _PACE_SECONDS and len(self._seen) > 2:  # noqa: PLR2004
            self._seen.popleft()

    @property
    def per_second(self) -> float:
        """Rows a second; 0 where that is not known."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended > began else 0.0


class Paces:
    """What there is to say of copies, each with its pace."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paces: dict[Unit | None, Pace] = {}

    def told(self, copy: Copy) -> str:
        """Say how far a copy is, how fast it goes, and how long it will take."""
        pace = self._noted(copy.unit, copy.copied)
        if copy.state != "copying":
            return f"{rows(copy)}, {copy.state}" if copy.copied else copy.state
        left = (copy.expected or 0) - copy.copied
        return f"{rows(copy)}{_speed(pace)}{_time_left(left, pace)}"

    def told_of_all(self, copies: Collection[Copy]) -> str:
        """Say how far they are together."""
        pace = self._noted(None, sum(copy.copied for copy in copies))
        return summary(copies) + _speed(pace if any(copy.due for copy in copies) else 0)

    def _noted(self, unit: Unit | None, count: int) -> float:
        pace = self._paces.setdefault(unit, Pace())
        pace.note(count, self._clock())
        return pace.per_second


def _speed(pace: float) -> str:
    return f", {pace:,.0f} rows/s" if pace else ""


def _time_left(rows_left: int, pace: float) -> str:
    if not pace or rows_left <= 0:
        return ""
    return f", {timedelta(seconds=round(rows_left / pace))} left"


class Lines:
    """A line every few seconds, and one whenever a copy begins or is done."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._paces = Paces(clock)
        self._states: dict[Unit, str] = {}
        self._next = 0.0

    def show(self, copies: Collection[Copy]) -> None:
        """Print what has changed, and now and then what is being copied."""
        named = names([copy.unit for copy in copies])
        told = {copy.unit: self._paces.told(copy) for copy in copies}
        due = self._clock() >= self._next
        for copy in copies:
            changed = self._states.get(copy.unit) != copy.state
            if changed or (due and copy.state == "copying"):
                share = f" {percent(ratio(copy))} %:" if copy.state == "copying" else ":"
                self.say(f"{named[copy.unit]}{share} {told[copy.unit]}")
        if due:
            self._next = self._clock() + _LINE_SECONDS
        self._states = {copy.unit: copy.state for copy in copies}

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(escape(printable(text)), highlight=False)


class Bars:
    """A bar for each copy, and one for all; of more copies than fit, those being made."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._paces = Paces(time.monotonic)
        self._tasks: dict[Unit | None, TaskID] = {}

    def show(self, copies: Collection[Copy]) -> None:
        """Move the bars."""
        named = names([copy.unit for copy in copies])
        fit = len(copies) <= self._progress.console.height - _LINES_BESIDE
        for copy in copies:
            told, seen = self._paces.told(copy), fit or copy.state == "copying"
            task = self._task(copy.unit, named[copy.unit])
            self._progress.update(task, completed=ratio(copy), told=told, visible=seen)
        if len(copies) > 1:
            share, told = sum(map(ratio, copies)) / len(copies), self._paces.told_of_all(copies)
            task = self._task(None, _TOTAL)
            self._progress.update(task, completed=share, told=told, visible=True)
        self._progress.refresh()

    def _task(self, unit: Unit | None, name: str) -> TaskID:
        if unit not in self._tasks:
            text = escape(printable(name))
            self._tasks[unit] = self._progress.add_task(text, total=1.0, visible=False, told="")
        return self._tasks[unit]

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(escape(printable(text)), highlight=False)


@contextmanager
def showing(console: Console) -> Iterator[Display]:
    """Give where to show progress, as the console allows."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %"),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        yield Bars(progress)

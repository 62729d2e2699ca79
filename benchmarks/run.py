"""What was asked for: whom to measure, how often, at what size."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from rich.console import Console

from benchmarks.contestants import Plugin
from cdc.servers import Installation

_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """One run of the benchmark."""

    installation: Installation
    console: Console
    stamp: str
    plugins: Sequence[Plugin]
    rounds: int
    scale: float
    copy_rows: int
    copy_chunk_bytes: int
    ceiling: bool
    native: bool
    profile: bool

    @property
    def numbers(self) -> range:
        """The rounds' numbers."""
        return range(1, self.rounds + 1)

    @property
    def rows_to_copy(self) -> int:
        return max(1000, round(self.copy_rows * self.scale))

    def say(self, text: str) -> None:
        """Print what has been done, with the time."""
        self.console.print(f"[dim]{datetime.now(UTC):%H:%M:%S}[/] {text}", highlight=False)


def in_turn(contestants: Sequence[_T], number: int) -> list[_T]:
    """Begin each round with another one: none is always first."""
    first = (number - 1) % len(contestants)
    return [*contestants[first:], *contestants[:first]]

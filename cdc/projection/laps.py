"""How long projectors take: measured where another one has its turn, and not all the time."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from cdc.change import Change

_TURN: Final = 64  # changes
_OF: Final = 8  # turns


@dataclass(slots=True)
class Laps:
    """Seconds by projector, of a clock that only goes forward.

    `weight` is what a lap counts: the first turns of a batch are timed, of those that follow one in
    so many, for all. To look at the clock for each would cost some percent.
    """

    clock: Callable[[], float]
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    weight: int = 1
    _turns: int = 0

    def turn(self) -> Self | None:
        """Give itself where the turn that begins is to be timed."""
        number = self._turns
        self._turns = number + 1
        if number < _OF:
            return self
        self.weight = _OF
        return self if number % _OF == _OF // 2 else None


def turns(changes: list[Change], laps: Laps | None) -> Iterator[tuple[list[Change], Laps | None]]:
    """Give a transaction's changes, a few at a time, with what is to time them."""
    if laps is None or len(changes) <= _TURN:
        yield changes, laps and laps.turn()
        return
    for first in range(0, len(changes), _TURN):
        yield changes[first : first + _TURN], laps.turn()

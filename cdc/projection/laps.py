"""How long projectors take: measured where another one has its turn, and not all the time."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

EACH: Final = 8
"""So many transactions of a batch are timed, and of those that follow one in so many."""

LARGE: Final = 64
"""From so many changes on it is parts of a transaction that are timed, as many and as often."""


@dataclass(slots=True)
class Laps:
    """Seconds by projector, of a clock that only goes forward.

    `weight` is what a lap counts: what is timed stands for what is not. To look at the clock for
    each change would cost some percent.
    """

    clock: Callable[[], float]
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    weight: int = 1

    def turn(self, number: int) -> bool:
        """Tell whether this turn is to be timed."""
        self.weight = 1 if number < EACH else EACH
        return number < EACH or number % EACH == EACH // 2

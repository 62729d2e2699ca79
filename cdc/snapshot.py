"""What a look at the write database saw, and what came after it."""

from dataclasses import dataclass
from typing import Final, Self

_HALF: Final = 1 << 31
_XID: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The transactions a query saw: those below `xmax` that were not running."""

    xmax: int
    running: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a `pg_snapshot`: `xmin:xmax:xid,...` (Postgres documentation, Snapshot Functions).

        The stream tells transactions by 32 bits, without the epoch: so they are kept here.
        """
        _, xmax, running = text.split(":")
        return cls(int(xmax) & _XID, frozenset(int(x) & _XID for x in running.split(",") if x))

    def sees(self, xid: int) -> bool:
        """Tell whether the transaction had committed by then, given that it commits at all."""
        return xid not in self.running and precedes(xid, self.xmax)


def precedes(xid: int, other: int) -> bool:
    """Tell whether a transaction began to write before another one, on the circle of 32 bits."""
    return ((xid - other) & _XID) >= _HALF

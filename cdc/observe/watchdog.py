"""Tell when something that is to be done does not get on."""

from collections.abc import Iterable
from typing import NamedTuple


class Doing(NamedTuple):
    """Something that is to be done. `progress` differs whenever it has got on."""

    what: str
    progress: object


class Watchdog:
    """Compare what is being done with what was, look after look."""

    def __init__(self, seconds: float) -> None:
        """Take for how long a thing may be where it is; 0: for ever."""
        self._seconds = seconds
        self._seen: dict[str, tuple[object, float]] = {}
        self._looked_at = 0.0

    def look(self, doing: Iterable[Doing], *, now: float) -> str | None:
        """Say what has been where it is for too long, of several what was first; else None.

        Times are in seconds of a clock that only goes forward. Where we have not looked ourselves
        for that long, as when the process was stopped, nothing can be told.
        """
        slept = now - self._looked_at >= self._seconds
        before = {} if slept else self._seen
        self._looked_at = now
        self._seen = {one.what: _since(one, before, now) for one in doing}
        what, (_, since) = min(
            self._seen.items(), key=lambda seen: seen[1][1], default=("", (None, now))
        )
        if not self._seconds or now - since < self._seconds:
            return None
        return f"{what}: no progress for {now - since:.0f} s"


def _since(one: Doing, before: dict[str, tuple[object, float]], now: float) -> tuple[object, float]:
    progress, since = before.get(one.what, (None, now))
    return (one.progress, since if progress == one.progress else now)

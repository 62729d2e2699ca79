"""The last minutes, for the status page: a sample a second."""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

_SAMPLES: Final = 300
_ERRORS: Final = 10
_EVERY_SECONDS: Final = 0.95  # of a clock that is looked at every half


@dataclass(frozen=True, slots=True)
class Sample:
    """The lag at a time (Unix seconds), and how many changes came in the second before it."""

    at: float
    lag_seconds: float
    changes_per_second: float


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong at a time (Unix seconds), and what helps."""

    at: float
    message: str
    hint: str | None


class Rate:
    """How fast a count grows."""

    def __init__(self) -> None:
        self._count, self._at = 0.0, 0.0
        self.per_second = 0.0

    def take(self, count: float, *, now: float) -> float:
        """Note a count; give its growth a second since the one before, 0 for the first."""
        if self._at and now > self._at:
            self.per_second = max(0.0, count - self._count) / (now - self._at)
        self._count, self._at = count, now
        return self.per_second


class History:
    """What was sampled, oldest first, and the failures, newest first."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._failures: deque[Failure] = deque(maxlen=_ERRORS)
        self._changes = Rate()
        self._operations: dict[str, Rate] = {}

    def due(self, now: float) -> bool:
        """Tell whether the last sample is a second old."""
        return not self._samples or now - self._samples[-1].at >= _EVERY_SECONDS

    def take(
        self, now: float, *, lag_seconds: float, changes: float, operations: Mapping[str, int]
    ) -> None:
        """Note the lag, and what has been received and applied in all, by projector."""
        rate = self._changes.take(changes, now=now)
        self._samples.append(Sample(now, round(lag_seconds, 3), round(rate, 1)))
        for projector, count in operations.items():
            self._operations.setdefault(projector, Rate()).take(count, now=now)

    def operations_per_second(self, projector: str) -> float:
        """Give how many operations of a projector were applied in the last second."""
        rate = self._operations.get(projector)
        return rate.per_second if rate else 0.0

    def failed(self, message: str, hint: str | None, *, now: float) -> None:
        """Note a failure; one that goes on is one."""
        if not self._failures or self._failures[0].message != message:
            self._failures.appendleft(Failure(now, message, hint))

    def samples(self) -> list[dict[str, Any]]:
        """Give the samples as JSON has them."""
        return [asdict(sample) for sample in list(self._samples)]

    def failures(self) -> list[dict[str, Any]]:
        """Give the failures likewise."""
        return [asdict(failure) for failure in list(self._failures)]

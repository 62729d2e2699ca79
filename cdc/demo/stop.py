"""What is asked of the demo while it runs: to finish, or to leave at once."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_STEP_SECONDS: Final = 0.05
_SHELL_BASE: Final = 128  # a shell's exit code of a program that a signal ended


class Stop:
    """What signals ask for.

    The first SIGINT (Ctrl-C) asks to finish; a second one, SIGTERM and SIGHUP to leave at once. A
    handler may run between any two steps: it takes no locks, and raises only inside
    `interruptible`, where nothing is made that an exception could leave behind.
    """

    def __init__(self) -> None:
        self.finish = False
        self._left_by: int | None = None
        self._interruptible = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed signals, but those that whoever started us has set to be ignored."""
        caught = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, self._signalled) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._left_by is None and (self.finish or number != signal.SIGINT):
            self._left_by = number
        self.finish = True
        if self._interruptible:
            self.check()

    def check(self) -> None:
        """Raise SystemExit, as a shell counts signals, where leaving at once was asked for."""
        if self._left_by is not None:
            self._interruptible = False
            raise SystemExit(_SHELL_BASE + self._left_by)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Do something that may take long and can be left in the middle."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False

    def pause(self, seconds: float, *, until: Callable[[], bool]) -> None:
        """Wait until something holds, or for so many seconds; leave where asked to."""
        deadline = time.monotonic() + seconds
        while not until() and (left := deadline - time.monotonic()) > 0:
            self.check()
            time.sleep(min(_STEP_SECONDS, left))
        self.check()

    def wait_for(self, fact: Callable[[], bool], *, seconds: float) -> bool:
        """Wait for a fact; tell whether it came about in so many seconds."""
        self.pause(seconds, until=fact)
        return fact()

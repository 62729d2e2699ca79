"""Let what the server sends gather before it is read.

A walsender writes each change to its socket by itself. Where we take them at once, each is a packet
of its own, and wakes us; where we leave them, the kernel joins them: less work for both processes,
which wait for the same cores as the read database's.
"""

import fcntl
import socket
import termios
import time
from array import array
from collections.abc import Callable
from typing import Final

_LOOK_SECONDS: Final = 0.001
_MOST_LOOKS: Final = 20
_MOST_IN_VAIN: Final = 5  # the walsender may have had to wait for a core
_LEAST_FRAMES: Final = 64
_FRAMES_A_LOOK: Final = 5000  # a second
# A Unix socket is full with a few hundred changes, and the walsender waits then.
_UNIX_SECONDS: Final = 0.0002


class Gathering:
    """Wait for more, the longer the more comes; not at all where little does."""

    def __init__(
        self,
        descriptor: int,
        *,
        enough: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the socket's descriptor, and how many bytes are enough to be read."""
        self._enough = enough
        self._descriptor = descriptor
        self._clock = clock
        self._sleep = sleep
        self._is_unix = _family(descriptor) == socket.AF_UNIX
        self._since = clock()
        self._count = array("i", [0])

    def wait(self, frames: int) -> None:
        """Wait up to 20 ms, after so many frames have been read since the last time."""
        now = self._clock()
        a_second = frames / max(now - self._since, _LOOK_SECONDS)
        self._since = now
        some = frames >= _LEAST_FRAMES
        looks = min(_MOST_LOOKS, int(a_second / _FRAMES_A_LOOK)) if some else 0
        if looks and self._is_unix:
            self._sleep(_UNIX_SECONDS)
        elif looks:
            self._look(looks)

    def _look(self, looks: int) -> None:
        """Sleep between looks at what has arrived, until it is enough or no more comes."""
        arrived = in_vain = 0
        for _ in range(looks):
            self._sleep(_LOOK_SECONDS)
            before, arrived = arrived, self._arrived()
            in_vain = in_vain + 1 if arrived == before else 0
            if arrived >= self._enough or in_vain == _MOST_IN_VAIN:
                break

    def _arrived(self) -> int:
        """Say how many bytes are in the socket."""
        fcntl.ioctl(self._descriptor, termios.FIONREAD, self._count)
        return self._count[0]


def _family(descriptor: int) -> socket.AddressFamily:
    with socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)) as duplicate:
        return socket.AddressFamily(duplicate.family)

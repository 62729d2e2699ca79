"""How far behind the read database is, honest also when nothing moves."""

import threading
from collections import deque
from typing import Final

from cdc.lsn import Lsn

_GRACE_SECONDS: Final = 2.0
_KEPT: Final = 4096


class Lag:
    """Compare the write database's WAL position, sampled over time, with the checkpoint.

    Seconds behind is the age of the oldest sample that the checkpoint has not reached: it grows
    while nothing arrives although something was written, and is zero on an idle database. Samples
    younger than the pace of idle checkpoints are given the benefit of the doubt.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, Lsn]] = deque()
        self._wal = Lsn(0)
        self._checkpoint = Lsn(0)
        self._oldest_pending: float | None = None

    def sampled(self, wal: Lsn, *, now: float) -> None:
        """Note the write database's WAL position. Times are Unix time, in seconds."""
        with self._lock:
            if wal > self._wal:
                self._wal = wal
                self._samples.append((now, wal))
                if len(self._samples) > _KEPT:  # thinned out, for the oldest must stay
                    self._samples = deque(list(self._samples)[::2])
            self._forget()

    def pending(self, commit_time: float | None) -> None:
        """Note when the oldest transaction that was received and not applied committed."""
        self._oldest_pending = commit_time

    def applied(self, checkpoint: Lsn) -> None:
        """Note the checkpoint."""
        with self._lock:
            self._checkpoint = checkpoint
            self._forget()

    def _forget(self) -> None:
        while self._samples and self._samples[0][1] <= self._checkpoint:
            self._samples.popleft()

    @property
    def wal_lsn(self) -> Lsn:
        """The highest WAL position seen."""
        return max(self._wal, self._checkpoint)

    def bytes(self) -> int:
        """How many bytes of WAL the checkpoint is behind."""
        return max(0, self._wal - self._checkpoint)

    def seconds(self, *, now: float) -> float:
        """How long ago the first thing was written that is not applied; 0 when caught up."""
        with self._lock:
            unreached = self._samples[0][0] if self._samples else now
        by_samples = now - unreached if now - unreached > _GRACE_SECONDS else 0.0
        by_commit = now - self._oldest_pending if self._oldest_pending is not None else 0.0
        return max(0.0, by_samples, by_commit)

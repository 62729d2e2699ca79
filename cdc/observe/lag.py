"""How far behind the read database is, honest also when nothing moves."""

import threading
from collections import deque
from typing import Final

from cdc.lsn import Lsn

_GRACE_SECONDS: Final = 2.0
_UNSEEN_SECONDS: Final = 10.0  # a look that is late by less tells nothing
_KEPT: Final = 4096


class Lag:
    """Compare the write database's WAL position, sampled over time, with the checkpoint.

    Seconds behind is the age of the oldest sample that the checkpoint has not reached: it grows
    while nothing arrives although something was written, and is zero on an idle database. Samples
    younger than the pace of idle checkpoints are given the benefit of the doubt. While the write
    database cannot be looked at, nobody knows what is written: the time since the last look counts.

    Who has no checkpoint of its own, for it stands by or could not begin yet, goes by what the
    slot's reader has acknowledged: a checkpoint is never before that.
    """

    def __init__(self, *, began: float | None = None) -> None:
        """Take since when the write database should have been looked at; None: not yet."""
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, Lsn]] = deque()
        self._wal = Lsn(0)
        self._checkpoint = Lsn(0)
        self._confirmed = Lsn(0)
        self._seen_at = began
        self._oldest_pending: float | None = None

    def sampled(self, wal: Lsn, *, now: float, confirmed: Lsn | None = None) -> None:
        """Note the write database's WAL position, and the slot's. Times are Unix time."""
        with self._lock:
            self._seen_at = now
            self._confirmed = self._confirmed if confirmed is None else confirmed
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
        while self._samples and self._samples[0][1] <= self.checkpoint:
            self._samples.popleft()

    @property
    def checkpoint(self) -> Lsn:
        """How far the read database is, as far as is known; 0 where nothing is."""
        return max(self._checkpoint, self._confirmed)

    @property
    def confirmed(self) -> Lsn:
        """How far the slot's reader has acknowledged, when the slot was last looked at."""
        return self._confirmed

    @property
    def wal_lsn(self) -> Lsn:
        """The highest WAL position seen."""
        return max(self._wal, self.checkpoint)

    def bytes(self) -> int:
        """How many bytes of WAL the checkpoint is behind; 0 while there is none: no slot either."""
        return self.wal_lsn - self.checkpoint if self.checkpoint else 0

    def seconds(self, *, now: float) -> float:
        """How long ago the first thing was written that is not applied; 0 when caught up."""
        with self._lock:
            unreached = self._samples[0][0] if self._samples and self.checkpoint else now
            unseen = now - (now if self._seen_at is None else self._seen_at)
        by_samples = now - unreached if now - unreached > _GRACE_SECONDS else 0.0
        by_sight = unseen if unseen > _UNSEEN_SECONDS else 0.0
        by_commit = now - self._oldest_pending if self._oldest_pending is not None else 0.0
        return max(0.0, by_samples, by_sight, by_commit)

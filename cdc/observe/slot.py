"""The slot as the write database tells of it, and for how long the WAL it needs will last."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cdc.source.slot import Sample

STATUSES: Final = ("none", "reserved", "extended", "unreserved", "lost")
_WINDOW_SECONDS: Final = 300.0
_EVERY_SECONDS: Final = 5.0
_LEAST_SECONDS: Final = 10.0  # of a rate that tells something


class SlotWal(Collector):
    """What was last seen of the slot; times are in seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Sample | None = None
        self._seen_at = 0.0
        self._written: deque[tuple[float, int]] = deque()

    def look(self, found: Sample, *, now: float) -> None:
        """Take what was seen."""
        with self._lock:
            self._found, self._seen_at = found, now
            if self._written and found.wal < self._written[-1][1]:  # another server
                self._written.clear()
            if not self._written or now - self._written[-1][0] >= _EVERY_SECONDS:
                self._written.append((now, found.wal))
            while now - self._written[0][0] > _WINDOW_SECONDS:
                self._written.popleft()

    def safe_bytes(self) -> float:
        """Give how much may be written until the slot is in danger; inf where nothing limits it."""
        found = self._found
        if found is None:
            return math.inf
        if found.wal_status == "lost":
            return 0.0
        return math.inf if found.safe_wal_size is None else float(max(0, found.safe_wal_size))

    def seconds_until_lost(self, *, now: float) -> float:
        """Give for how long that lasts, at the pace of the last minutes, if nothing is applied."""
        safe = self.safe_bytes()
        with self._lock:
            pace = self._pace()
            unseen = now - self._seen_at
        if not safe:
            return 0.0
        return max(0.0, safe / pace - unseen) if pace else math.inf

    def _pace(self) -> float:
        """Give the bytes of WAL that are written in a second; 0 where that is not known."""
        if self._found is None or not self._written:
            return 0.0
        since, before = self._written[0]
        seconds = self._seen_at - since
        return (self._found.wal - before) / seconds if seconds >= _LEAST_SECONDS else 0.0

    def families(self, *, now: float) -> Iterator[Metric]:
        """Give the series."""
        found = self._found
        yield GaugeMetricFamily(
            "cdc_slot_retained_wal_bytes",
            "WAL that the write database keeps for the slot, in bytes.",
            (found.retained or 0) if found else 0,
        )
        yield GaugeMetricFamily(
            "cdc_slot_safe_wal_bytes",
            "WAL that may be written until the slot is in danger; +Inf where "
            "max_slot_wal_keep_size is unlimited, or nothing is known yet; 0 where it is lost.",
            self.safe_bytes(),
        )
        yield GaugeMetricFamily(
            "cdc_slot_seconds_until_lost",
            "How long that lasts if nothing is applied from now on, at the pace of WAL of the last "
            "five minutes; +Inf without a limit, or without writes.",
            self.seconds_until_lost(now=now),
        )
        yield GaugeMetricFamily(
            "cdc_slot_active",
            "1 where somebody, be it another daemon, streamed from the slot when it was last "
            "looked at.",
            bool(found and found.active),
        )
        status = (found.wal_status if found else None) or "none"
        statuses = GaugeMetricFamily(
            "cdc_slot_wal_status",
            "1 for what pg_replication_slots.wal_status says; none: no slot, or not seen yet.",
            labels=["status"],
        )
        for other in STATUSES:
            statuses.add_metric([other], other == status)
        yield statuses

    def collect(self) -> Iterator[Metric]:
        return self.families(now=time.monotonic())

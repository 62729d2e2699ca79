"""Messages through the WAL to the checkpoint and back: how fresh the read database really is."""

import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cdc.lsn import Lsn
from cdc.observe.histogram import Histogram

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


class _Beat(NamedTuple):
    lsn: Lsn
    sent_at: float
    clock: float


class Heartbeats(Collector):
    """One heartbeat at a time: the next is sent once the last has come back."""

    def __init__(self) -> None:
        self._round_trips = Histogram(
            "cdc_heartbeat_round_trip_seconds",
            "From a heartbeat's commit in the write database to the checkpoint that covers it.",
            _SECONDS,
        )
        self._lock = threading.Lock()
        self._under_way: _Beat | None = None
        self._checkpoint = Lsn(0)
        self._last = 0.0
        self.every_seconds = 0
        """How often one is sent, as configured."""

    @property
    def under_way(self) -> bool:
        """Tell whether one was sent that has not come back."""
        return self._under_way is not None

    def sent(self, lsn: Lsn, *, at: float, clock: float, now: float) -> None:
        """Note one: its position, and when it was sent, by Unix time and by a monotonic clock.

        It may have come back by `now` already.
        """
        with self._lock:
            self._under_way = _Beat(lsn, at, clock)
            self._settle(now)

    def reached(self, checkpoint: Lsn, *, now: float) -> None:
        """Note a checkpoint, by the monotonic clock."""
        with self._lock:
            self._checkpoint = checkpoint
            self._settle(now)

    def _settle(self, now: float) -> None:
        beat = self._under_way
        if beat is not None and self._checkpoint > beat.lsn:  # its commit comes after the message
            self._under_way = None
            self._last = beat.sent_at
            self._round_trips.observe([max(0.0, now - beat.clock)])

    def collect(self) -> Iterator[Metric]:
        yield from self._round_trips.collect()
        last = GaugeMetricFamily(
            "cdc_last_heartbeat_timestamp_seconds",
            "When the last heartbeat that came back was sent, in Unix time; 0 before the first.",
        )
        last.add_metric([], self._last)
        yield last
        yield GaugeMetricFamily(
            "cdc_heartbeat_interval_seconds",
            "How often a heartbeat is sent, as configured; 0: never.",
            self.every_seconds,
        )

"""Where the flow is: positions in the WAL, in bytes."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cdc.lsn import Lsn
from cdc.observe.lag import Lag


class Streamed(Protocol):
    """What tells how far a stream is."""

    @property
    def received(self) -> Lsn: ...

    @property
    def reported(self) -> Lsn: ...


class Positions(Collector):
    """Source, received, checkpoint, acknowledged: none is ever before the one that follows.

    A stream that has ended still says how far it was. Who has none goes by what the slot says.
    """

    def __init__(self, lag: Lag) -> None:
        self._lag = lag
        self.stream: Streamed | None = None

    def known(self) -> tuple[Lsn, Lsn, Lsn, Lsn]:
        """Give the four, the furthest first."""
        stream, lag = self.stream, self._lag
        acknowledged = max(lag.confirmed, stream.reported if stream else Lsn(0))
        checkpoint = max(lag.checkpoint, acknowledged)
        received = max(checkpoint, stream.received if stream else Lsn(0))
        return max(lag.wal_lsn, received), received, checkpoint, acknowledged

    def collect(self) -> Iterator[Metric]:
        source, received, checkpoint, acknowledged = self.known()
        yield _gauge(
            "cdc_source_wal_position_bytes",
            "How far the write database has written, when it was last looked at.",
            source,
        )
        yield _gauge(
            "cdc_received_position_bytes", "How far the write database has sent.", received
        )
        yield _gauge(
            "cdc_checkpoint_position_bytes",
            "How far the read database is; while the daemon stands by, at least.",
            checkpoint,
        )
        yield _gauge(
            "cdc_acknowledged_position_bytes",
            "How far the write database was told that it may forget.",
            acknowledged,
        )


def _gauge(name: str, documentation: str, position: Lsn) -> Metric:
    return GaugeMetricFamily(name, documentation, float(position))

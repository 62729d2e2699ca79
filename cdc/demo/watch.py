"""What can be seen of the daemon over HTTP, and of both databases by counting rows."""

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, Self
from urllib.parse import urlsplit

import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from cdc.demo.child import Child
from cdc.lsn import Lsn
from cdc.sink.engine import connect, create_engine, translated
from cdc.source import connection as write_side

TABLES: Final = (
    ("authors", "author_read"),
    ("posts", "post_read"),
    ("comments", "comment_read"),
)
_COUNTERS: Final = (
    "cdc_transactions_applied_total",
    "cdc_changes_received_total",
    "cdc_operations_applied_total",
)
_HTTP_SECONDS: Final = 10
_ENDING_SECONDS: Final = 2.0
_RATE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon and the databases at one moment. `counts` are rows, on either side."""

    taken: float
    status: Mapping[str, Any]
    counters: Mapping[str, float]
    counts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """How much a second, lately."""

    transactions: float
    changes: float
    operations: float


class Watch:
    """Looks at the daemon and both databases."""

    def __init__(self, daemon: Child, url: str, *, write_dsn: str, read_url: str) -> None:
        self.url = url
        self._daemon = daemon
        self._write = write_side.connect(write_dsn)
        self._read = connect(create_engine(read_url))
        self._samples: deque[Sample] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write.close()
        self._read.close()

    def sample(self) -> Sample:
        """Look, once; raise ChildFailed where the daemon is gone, or a CdcError."""
        sample = Sample(time.monotonic(), self.status(), self._counters(), self._counts())
        self._samples.append(sample)
        while (
            sample.taken - self._samples[1 if len(self._samples) > 1 else 0].taken > _RATE_SECONDS
        ):
            self._samples.popleft()
        return sample

    def rates(self) -> Rates:
        """Give the rates over the last samples."""
        first, last = self._samples[0], self._samples[-1]
        seconds = max(last.taken - first.taken, 0.001)
        return Rates(*((last.counters[n] - first.counters[n]) / seconds for n in _COUNTERS))

    def status(self) -> Mapping[str, Any]:
        """Ask for /status."""
        status: dict[str, Any] = json.loads(self._get("/status"))
        return status

    def checkpoint(self) -> Lsn:
        """Ask how far the read database is; 0 before the first checkpoint."""
        return Lsn.parse(self.status()["checkpoint_lsn"] or "0/0")

    def _counters(self) -> dict[str, float]:
        totals = dict.fromkeys(_COUNTERS, 0.0)
        for family in text_string_to_metric_families(self._get("/metrics")):
            for sample in family.samples:
                if sample.name in totals:
                    totals[sample.name] += sample.value
        return totals

    def _get(self, path: str) -> str:
        address = urlsplit(self.url)
        connection = HTTPConnection(address.netloc, timeout=_HTTP_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, HTTPException):
            self._daemon.check(patience=_ENDING_SECONDS)
            raise self._daemon.failed(f"did not answer {path}") from None
        finally:
            connection.close()

    def _counts(self) -> tuple[tuple[int, int], ...]:
        """Count the read rows first: rows on their way never look like too many."""
        with translated(), self._read.begin():
            read = [self._read.execute(_count(table)).scalar_one() for _, table in TABLES]
        with write_side.translated():
            written = [self._written(table) for table, _ in TABLES]
        return tuple(zip(written, read, strict=True))

    def _written(self, table: str) -> int:
        row = self._write.execute(str(_count(table)).encode()).fetchone()
        return int(row[0]) if row else 0


def _count(table: str) -> sa.Select[int]:
    return sa.select(sa.func.count()).select_from(sa.table(table))

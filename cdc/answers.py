"""What is answered over HTTP: the state, the figures, the page that shows them."""

import time
from http import HTTPStatus
from importlib import resources
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import parse_qs

from cdc.lsn import Lsn
from cdc.observe.http import Answer, Route, as_json, as_text, lingering, metrics_answer
from cdc.observe.metrics import Metrics
from cdc.observe.progress import described
from cdc.observe.state import State
from cdc.operate.budget import Budget
from cdc.session import Session
from cdc.settings import Settings
from cdc.sink.writer import Writer

_LONGEST_WAIT_SECONDS: Final = 10.0
_USUAL_WAIT_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.005
_PAGE: Final = resources.files("cdc.observe").joinpath("page.html").read_bytes()
_HTML: Final = "text/html; charset=utf-8"


class Answers:
    """Looks at the parts of the daemon; changes nothing. Any thread may ask."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        session: Session,
        *,
        writer: Writer,
        budget: Budget,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._session = session
        self._writer = writer
        self._budget = budget

    def routes(self) -> dict[str, Route]:
        """Give what answers each path, from its query."""
        return {
            "/": lambda _: (HTTPStatus.OK, _HTML, _PAGE),
            "/metrics": lambda _: metrics_answer(self._metrics.registry),
            "/live": lambda _: as_json(HTTPStatus.OK, {"live": True}),
            "/ready": lambda _: self._ready(),
            "/status": lambda _: as_json(HTTPStatus.OK, self.describe()),
            "/wait": lingering(self._wait),
        }

    def _ready(self) -> Answer:
        state = self._metrics.state
        ready = state is State.STREAMING
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        because = self._metrics.retrying
        return as_json(status, {"ready": ready, "state": state.value, "because": because})

    def _wait(self, query: str) -> Answer:
        """Answer once the checkpoint has passed a position: 200; 504 where that takes too long."""
        try:
            wanted, seconds = _asked(query)
        except ValueError as error:
            return as_text(HTTPStatus.BAD_REQUEST, f"{error}\n")
        deadline = time.monotonic() + seconds
        while not (reached := self._checkpoint >= wanted) and time.monotonic() < deadline:
            self._hurry()
            time.sleep(_PAUSE_SECONDS)
        status = HTTPStatus.OK if reached else HTTPStatus.GATEWAY_TIMEOUT
        return as_json(status, {"reached": reached, "checkpoint_lsn": str(self._checkpoint)})

    @property
    def _checkpoint(self) -> Lsn:
        return self._writer.checkpoint or Lsn(0)

    def _hurry(self) -> None:
        pipeline = self._session.pipeline
        if pipeline is not None:
            pipeline.hurry()

    def describe(self) -> dict[str, Any]:
        """Give the status: positions, lag, what is queued, how far copies are."""
        metrics = self._metrics
        return {
            "version": version("cdc-daemon"),
            "state": metrics.state.value,
            "since": metrics.since,
            "because": metrics.retrying,
            "slot": self._settings.source.slot,
            "plugin": self._settings.source.plugin,
            **self._positions(),
            "transactions_applied": int(metrics.value("cdc_transactions_applied_total")),
            "projectors": self._projectors(),
            "quarantined_keys": dict(self._writer.held.counts()),
            "copies": [described(copy) for copy in metrics.progress.values()],
            "errors": metrics.history.failures(),
            "history": metrics.history.samples(),
        }

    def _positions(self) -> dict[str, Any]:
        metrics, stream, exchange = self._metrics, self._session.stream, self._session.exchange
        checkpoint = self._writer.checkpoint
        return {
            "wal_status": self._budget.wal_status,
            "safe_wal_bytes": self._budget.safe_wal_bytes,
            "retained_wal_bytes": self._budget.retained_wal_bytes,
            "wal_lsn": str(metrics.lag.wal_lsn),
            "received_lsn": str(stream.received) if stream else None,
            "checkpoint_lsn": None if checkpoint is None else str(checkpoint),
            "acknowledged_lsn": str(stream.reported) if stream else None,
            "lag_bytes": metrics.lag.bytes(),
            "lag_seconds": round(metrics.lag_seconds(), 3),
            "queued_bytes": exchange.queued_bytes if exchange else 0,
            "queue_limit_bytes": self._settings.source.queue_bytes,
        }

    def _projectors(self) -> list[dict[str, Any]]:
        plan, metrics = self._session.plan, self._metrics
        operations, quarantined = metrics.operations(), self._writer.held.counts()
        return [
            {
                "name": name,
                "operations": operations.get(name, 0),
                "operations_per_second": round(metrics.history.operations_per_second(name), 1),
                "quarantined_keys": quarantined[name],
            }
            for name in (projector.name for projector in (plan.registry.projectors if plan else ()))
        ]


def _asked(query: str) -> tuple[Lsn, float]:
    """Read `lsn=...&timeout=...`; raise ValueError, with no word of what was asked."""
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    try:
        return Lsn.parse(given["lsn"]), _seconds(given.get("timeout"))
    except (KeyError, ValueError):
        raise ValueError(
            f"ask /wait?lsn=16/B374D848&timeout=5 (seconds, at most {_LONGEST_WAIT_SECONDS:.0f})"
        ) from None


def _seconds(text: str | None) -> float:
    seconds = _USUAL_WAIT_SECONDS if text is None else float(text)
    if not 0 <= seconds <= _LONGEST_WAIT_SECONDS:
        raise ValueError
    return seconds

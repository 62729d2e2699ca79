"""The daemon: session after session, signals, drain, and what can be seen of it."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from types import FrameType
from typing import Any, Final

from cdc.errors import CdcError
from cdc.exchange import Stopped
from cdc.observe.http import Answer, HttpServer, as_json, metrics_route
from cdc.observe.metrics import Metrics
from cdc.observe.progress import described
from cdc.observe.state import State
from cdc.operate.watch import watch_partitions, watch_tables
from cdc.retry import Retry
from cdc.session import Interrupted, Session
from cdc.settings import Settings
from cdc.sink.engine import create_engine
from cdc.sink.writer import Writer
from cdc.snapshot import Snapshot
from cdc.source import slot
from cdc.source.connection import Connection, connect

log = logging.getLogger(__name__)

_SAMPLE_SECONDS: Final = 1.0
_TARGET_SECONDS: Final = 0.1
_CONNECTING_SECONDS: Final = 1.0
_SWITCH_SECONDS: Final = 0.0001
_COLLECT_AFTER: Final = (50_000, 20, 20)
_EXIT_AT_ONCE: Final = 130


class Daemon:
    """Streams from one slot into one read database until told to stop."""

    def __init__(self, settings: Settings, *, until: str | None = None) -> None:
        """Take the settings. `until` is an LSN, or "now": where to stop by itself."""
        self._settings = settings
        self._until = until
        self._metrics = Metrics()
        engine = create_engine(settings.read.url.get_secret_value())
        self._writer = Writer(
            engine,
            settings.source.slot,
            quarantine_limit=settings.projection.keys_set_aside,
        )
        self._session = Session(settings, self._writer, self._metrics, until=until)
        self._stop = threading.Event()
        self._retry = Retry(self._metrics, self._stop)
        self._signalled_once = False
        self._served = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Serve until a signal, or until the position asked for is reached.

        Raise the CdcError that will not pass by itself.
        """
        _tune_interpreter()
        with HttpServer(self._settings.http.address, self._routes()) as http, self._signals():
            host, port = http.address
            log.info("listening", extra={"url": f"http://{host}:{port}"})
            for part in (self._sample, self._serve_guarded):
                threading.Thread(target=part, name=part.__name__.strip("_"), daemon=True).start()
            self._wait_for_the_end()
        log.info("stopped", extra={"checkpoint": str(self._writer.checkpoint)})

    def _wait_for_the_end(self) -> None:
        """Wait for the last session to drain; for one that is still connecting, hardly at all."""
        self._stop.wait()
        while not self._served.wait(_CONNECTING_SECONDS):
            if self._session.stream is None:
                break
        if self._error is not None:
            raise self._error

    def _serve_guarded(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            self._error = error
        finally:
            self._writer.close()
            self._served.set()
            self._stop.set()

    def _serve(self) -> None:
        """Hold session after session; the pauses grow only while none gets as far as streaming."""
        while not self._stop.is_set():
            with suppress(Stopped):
                try:
                    self._retry.persist(lambda: self._session.hold(self._retry))
                except Interrupted:
                    self._retry.sleep()

    def stop(self, because: str) -> None:
        """Stop taking more, and end every wait: `run` drains and returns. From any thread."""
        self._metrics.enter(State.STOPPING)
        log.info("stopping", extra={"because": because})
        self._stop.set()
        self._session.stop()

    # Signals.

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Drain on the first SIGTERM or SIGINT; leave at once on the second."""
        caught = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._signalled) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled_once:
            os._exit(_EXIT_AT_ONCE)
        self._signalled_once = True
        # In a thread: the handler interrupts the main thread, which may hold the event's lock.
        name = signal.Signals(number).name
        threading.Thread(target=self.stop, args=(name,), daemon=True).start()

    # What can be seen.

    def _sample(self) -> None:
        """Sample the write database's WAL position, for the lag; and stop at the target."""
        dsn = self._settings.source.dsn.get_secret_value()
        connection: Connection | None = None
        while not self._stop.wait(_TARGET_SECONDS if self._until else _SAMPLE_SECONDS):
            self._stop_at_target()
            try:
                connection = connection or connect(dsn)
                self._metrics.lag.sampled(slot.current_lsn(connection), now=time.time())
                self._settle(slot.current_snapshot(connection))
                self._refuse_replaced_tables(connection)
            except CdcError:  # the session says what is wrong, and retries
                self._session.source_stopping.set()
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _settle(self, snapshot: Snapshot) -> None:
        """Let the copies forget transactions that every later snapshot sees."""
        copying = self._session.copying
        if copying is not None:
            copying.window.settle(snapshot)

    def _refuse_replaced_tables(self, connection: Connection) -> None:
        """Stop where a table was dropped, renamed or replaced: its changes go unseen."""
        plan = self._session.plan
        if plan is None or self._stop.is_set():
            return
        changed = watch_tables(connection, plan.schema, plan.carried)
        if plan.partitioned and changed is None:
            slot_name = self._settings.source.slot
            changed = watch_partitions(connection, plan.partitioned, plan.attached, slot_name)
        if changed is not None and plan is self._session.plan:
            self._error = changed
            self.stop(str(changed))

    def _stop_at_target(self) -> None:
        target, checkpoint = self._session.target, self._writer.checkpoint
        copying = self._session.copying
        copied = copying is not None and not copying.due
        if target is not None and checkpoint is not None and checkpoint >= target and copied:
            self.stop(f"reached {target}")

    def _routes(self) -> dict[str, Any]:
        return {
            "/metrics": metrics_route(self._metrics.registry),
            "/live": lambda: as_json(HTTPStatus.OK, {"live": True}),
            "/ready": self._ready,
            "/status": lambda: as_json(HTTPStatus.OK, self.describe()),
        }

    def _ready(self) -> Answer:
        state = self._metrics.state
        ready = state is State.STREAMING
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return as_json(status, {"ready": ready, "state": state.value})

    def describe(self) -> dict[str, Any]:
        """Give the status: positions, lag, what is queued, how far copies are."""
        metrics, stream = self._metrics, self._session.stream
        exchange, checkpoint = self._session.exchange, self._writer.checkpoint
        return {
            "state": metrics.state.value,
            "because": metrics.retrying,
            "slot": self._settings.source.slot,
            "plugin": self._settings.source.plugin,
            "wal_lsn": str(metrics.lag.wal_lsn),
            "received_lsn": str(stream.received) if stream else None,
            "checkpoint_lsn": None if checkpoint is None else str(checkpoint),
            "acknowledged_lsn": str(stream.reported) if stream else None,
            "lag_bytes": metrics.lag.bytes(),
            "lag_seconds": round(metrics.lag_seconds(), 3),
            "queued_bytes": exchange.queued_bytes if exchange else 0,
            "transactions_applied": int(metrics.value("cdc_transactions_applied_total")),
            "quarantined_keys": dict(self._writer.held.counts()),
            "copies": [described(copy) for copy in metrics.progress.values()],
        }


def _tune_interpreter() -> None:
    """Suit the interpreter to rows that come and go by the thousand, and to three threads."""
    gc.freeze()  # what exists now lives as long as we do
    gc.set_threshold(*_COLLECT_AFTER)  # rows make no cycles
    sys.setswitchinterval(_SWITCH_SECONDS)  # the writer waits for it after every answer

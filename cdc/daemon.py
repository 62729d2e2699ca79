"""The daemon: sessions one after the other, retries, signals, drain."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any, Final

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from cdc.assemble import Assembler
from cdc.errors import (
    CdcError,
    ReadError,
    ReadLocked,
    ReadTransactionLost,
    SlotActive,
)
from cdc.exchange import Exchange, Stopped
from cdc.lsn import Lsn
from cdc.observe.http import Answer, HttpServer, as_json, metrics_route
from cdc.observe.metrics import Metrics
from cdc.observe.state import State
from cdc.operate import setup
from cdc.pipeline import Decoder, Pipeline
from cdc.settings import Settings
from cdc.sink.engine import create_engine, driver_connection
from cdc.sink.writer import Writer
from cdc.source import slot
from cdc.source.connection import Connection, connect, connect_replication
from cdc.source.pgoutput import PgOutput
from cdc.source.relations import Relations
from cdc.source.stream import Stream
from cdc.source.wal2json import Wal2Json

log = logging.getLogger(__name__)

_PIECE_BYTES: Final = 1024**2
_SAMPLE_SECONDS: Final = 1.0
_TARGET_SECONDS: Final = 0.1
_FIRST_RETRY_SECONDS: Final = 0.2
_LONGEST_RETRY_SECONDS: Final = 30.0
_LONGEST_STANDBY_SECONDS: Final = 2.0
_CONNECTING_SECONDS: Final = 1.0
_SWITCH_SECONDS: Final = 0.0005
_COLLECT_AFTER: Final = (50_000, 20, 20)
_EXIT_AT_ONCE: Final = 130
_DECODERS: Final[dict[str, type[Wal2Json | PgOutput]]] = {
    "wal2json": Wal2Json,
    "pgoutput": PgOutput,
}


class Daemon:
    """Streams from one slot into one read database until told to stop."""

    def __init__(self, settings: Settings, *, until: str | None = None) -> None:
        """Take the settings. `until` is an LSN, or "now": where to stop by itself."""
        self._settings = settings
        self._dsn = settings.source.dsn.get_secret_value()
        self._until = until
        self._target: Lsn | None = None
        self._metrics = Metrics()
        self._writer = Writer(
            create_engine(settings.read.url.get_secret_value()), settings.source.slot
        )
        self._exchange: Exchange | None = None
        self._stream: Stream | None = None
        self._session_stop = threading.Event()
        self._interrupts: list[Callable[[], None]] = []
        self._signalled_once = False
        self._served = threading.Event()
        self._error: BaseException | None = None
        self.stop = threading.Event()

    def run(self) -> None:
        """Serve until a signal, or until the position asked for is reached.

        Raise the CdcError that will not pass by itself.
        """
        routes = {
            "/metrics": metrics_route(self._metrics.registry),
            "/live": self._live,
            "/ready": self._ready,
            "/status": self._status,
        }
        # What exists now lives as long as we do; rows come and go by the thousand, without cycles.
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)
        # The writer waits for the interpreter after every answer of the read database.
        sys.setswitchinterval(_SWITCH_SECONDS)
        with HttpServer(self._settings.http.address, routes) as http, self._signals():
            host, port = http.address
            log.info("listening", extra={"url": f"http://{host}:{port}"})
            for part in (self._sample, self._serve_guarded):
                threading.Thread(target=part, name=part.__name__.strip("_"), daemon=True).start()
            self._wait_for_the_end()
        log.info("stopped", extra={"checkpoint": str(self._writer.checkpoint)})

    def _wait_for_the_end(self) -> None:
        """Wait for the last session to drain; for one that is still connecting, hardly at all."""
        self.stop.wait()
        while not self._served.wait(_CONNECTING_SECONDS):
            if self._stream is None:
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
            self.stop.set()

    # Sessions and retries.

    def _serve(self) -> None:
        """Hold session after session; the pauses grow only while none gets as far as streaming."""
        while not self.stop.is_set():
            with suppress(Stopped):
                try:
                    self._persist(self._session)
                except _Interrupted:
                    self._sleep(_FIRST_RETRY_SECONDS)

    def _persist(self, attempt: Callable[[], None]) -> None:
        """Call again and again while it fails in a way that passes; raise Stopped on a signal."""
        retrying = Retrying(
            retry=retry_if_exception(_passes),
            wait=self._pause,
            before_sleep=self._note_retry,
            sleep=self._sleep,
            reraise=True,
        )
        retrying(attempt)
        if self._metrics.state in {State.RETRYING, State.STANDBY}:
            self._enter(State.STREAMING)

    def _pause(self, state: RetryCallState) -> float:
        standing_by = isinstance(_error(state), ReadLocked | SlotActive)
        longest = _LONGEST_STANDBY_SECONDS if standing_by else _LONGEST_RETRY_SECONDS
        wait = wait_exponential_jitter(
            initial=_FIRST_RETRY_SECONDS, max=longest, jitter=_FIRST_RETRY_SECONDS
        )
        return wait(state)

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped

    def _note_retry(self, state: RetryCallState) -> None:
        error = _error(state)
        target = "read" if isinstance(error, ReadError) else "source"
        self._metrics.retries.labels(target, _reason(error)).inc()
        standing_by = isinstance(error, ReadLocked | SlotActive)
        self._enter(State.STANDBY if standing_by else State.RETRYING, because=str(error))

    def _enter(self, state: State, *, because: str | None = None, **fields: str) -> None:
        """Change the state; say so once."""
        changed = (state, because) != (self._metrics.state, self._metrics.retrying)
        self._metrics.enter(state, because=because)
        if changed:
            level = logging.WARNING if because else logging.INFO
            log.log(level, state.value, extra={"because": because, **fields} if because else fields)

    def _session(self) -> None:
        """Connect, find the position, stream. Failing after streaming began is an interruption."""
        read = self._writer.open()
        with (
            self._interruptible(driver_connection(read)),
            self._connection(connect) as source,
            self._connection(connect_replication) as stream,
        ):
            plan = setup.plan(self._settings, source)
            setup.prepare_read_side(read, plan.registry)
            setup.prepare_source(self._settings, source, plan)
            self._metrics.expect(plan.registry.sources, [p.name for p in plan.registry.projectors])
            identity, lsn = setup.begin(
                self._settings, source=source, replication=stream, read=read
            )
            self._writer.resume(identity, lsn)
            self._find_target(source)
            pipeline = self._pipeline(plan, stream, lsn)
        self._stream_until_stopped(pipeline, lsn)

    @contextmanager
    def _connection(self, open_: Callable[[str], Connection]) -> Iterator[Connection]:
        """Hold a connection that a signal interrupts; closed unless the pipeline takes it over."""
        connection = open_(self._dsn)
        try:
            with self._interruptible(connection):
                yield connection
        except BaseException:
            connection.close()
            raise
        if open_ is not connect_replication:
            connection.close()

    @contextmanager
    def _interruptible(self, connection: Connection) -> Iterator[None]:
        """Let a signal cancel what the connection is waiting for; then raise Stopped."""
        cancel = partial(_cancel, connection)
        self._interrupts.append(cancel)
        try:
            yield
        except CdcError:
            if self.stop.is_set():
                raise Stopped from None
            raise
        finally:
            self._interrupts.remove(cancel)

    def _pipeline(self, plan: setup.Plan, replication: Connection, lsn: Lsn) -> Pipeline:
        settings = self._settings
        stream = Stream(
            replication,
            slot=settings.source.slot,
            options=plan.plugin_options(settings),
            insert_only=plan.insert_only,
        )
        stream.start(lsn)
        self._stream = stream
        self._exchange = Exchange(settings.source.queue_bytes)
        decoder: Decoder = _DECODERS[settings.source.plugin](Relations(plan.schema))
        return Pipeline(
            start=lsn,
            stream=stream,
            decoder=decoder,
            assembler=Assembler(lsn, piece_bytes=_PIECE_BYTES),
            exchange=self._exchange,
            registry=plan.registry,
            writer=self._writer,
            metrics=self._metrics,
            batch_changes=settings.read.batch_changes,
            batch_bytes=settings.read.batch_bytes,
            persist=self._persist,
            stop=self._session_stop,
        )

    def _stream_until_stopped(self, pipeline: Pipeline, lsn: Lsn) -> None:
        self._metrics.forget_unapplied()
        self._metrics.lag.applied(lsn)
        self._enter(State.STREAMING, slot=self._settings.source.slot, since=str(lsn))
        try:
            pipeline.run()
        except CdcError as error:
            if not error.transient:
                raise
            self._note_interruption(error)
            raise _Interrupted from None
        finally:
            self._stream = self._exchange = None

    def _note_interruption(self, error: CdcError) -> None:
        target = "read" if isinstance(error, ReadError) else "source"
        self._metrics.retries.labels(target, _reason(error)).inc()
        self._enter(State.RETRYING, because=str(error))

    def _find_target(self, source: Connection) -> None:
        if self._until == "now" and self._target is None:
            self._target = slot.mark_now(source)
        elif self._until is not None and self._target is None:
            self._target = Lsn.parse(self._until)

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
        threading.Thread(
            target=self._stop_for, args=(signal.Signals(number).name,), daemon=True
        ).start()

    def _stop_for(self, reason: str) -> None:
        """Stop taking more, and end every wait."""
        self._metrics.enter(State.STOPPING)
        log.info("stopping", extra={"because": reason})
        self.stop.set()
        self._session_stop.set()
        stream = self._stream
        if stream is not None:
            stream.wake()
        for interrupt in list(self._interrupts):
            interrupt()

    # What can be seen.

    def _sample(self) -> None:
        """Sample the write database's WAL position, for the lag; and stop at the target."""
        connection: Connection | None = None
        while not self.stop.wait(_TARGET_SECONDS if self._until else _SAMPLE_SECONDS):
            self._stop_at_target()
            try:
                connection = connection or connect(self._dsn)
                self._metrics.lag.sampled(slot.current_lsn(connection), now=time.time())
            except CdcError:
                connection = None  # the session says what is wrong, and retries
        if connection is not None:
            connection.close()

    def _stop_at_target(self) -> None:
        checkpoint = self._writer.checkpoint
        if self._target is not None and checkpoint is not None and checkpoint >= self._target:
            self._stop_for(f"reached {self._target}")

    def _live(self) -> Answer:
        return as_json(HTTPStatus.OK, {"live": True})

    def _ready(self) -> Answer:
        state = self._metrics.state
        ready = state is State.STREAMING
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return as_json(status, {"ready": ready, "state": state.value})

    def _status(self) -> Answer:
        return as_json(HTTPStatus.OK, self.describe())

    def describe(self) -> dict[str, Any]:
        """Give the status: positions, lag, what is queued."""
        metrics, exchange, stream = self._metrics, self._exchange, self._stream
        return {
            "state": metrics.state.value,
            "because": metrics.retrying,
            "slot": self._settings.source.slot,
            "plugin": self._settings.source.plugin,
            "wal_lsn": str(metrics.lag.wal_lsn),
            "received_lsn": str(stream.received) if stream else None,
            "checkpoint_lsn": _text(self._writer.checkpoint),
            "acknowledged_lsn": str(stream.reported) if stream else None,
            "lag_bytes": metrics.lag.bytes(),
            "lag_seconds": round(metrics.lag_seconds(), 3),
            "queued_bytes": exchange.queued_bytes if exchange else 0,
            "transactions_applied": int(metrics.value("cdc_transactions_applied_total")),
        }


class _Interrupted(Exception):
    """A session that was streaming ended in a way that passes."""


def _cancel(connection: Connection) -> None:
    with suppress(Exception):
        connection.cancel_safe(timeout=2)


def _passes(error: BaseException) -> bool:
    retried_elsewhere = isinstance(error, ReadTransactionLost | _Interrupted)
    return isinstance(error, CdcError) and error.transient and not retried_elsewhere


def _reason(error: BaseException | None) -> str:
    match error:
        case ReadTransactionLost():
            return "transaction_lost"
        case ReadLocked():
            return "locked"
        case SlotActive():
            return "active"
        case _:
            return "unavailable"


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)

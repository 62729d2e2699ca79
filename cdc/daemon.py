"""The daemon: session after session, signals, drain, and what can be seen of it."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import sqlalchemy as sa

from cdc.answers import Answers
from cdc.errors import CdcError
from cdc.exchange import Stopped
from cdc.lookout import Lookout
from cdc.observe.http import HttpServer
from cdc.observe.metrics import Metrics
from cdc.observe.state import State
from cdc.observe.systemd import Notifier
from cdc.observe.watchdog import Watchdog
from cdc.operate.beat import Beat
from cdc.operate.budget import Budget
from cdc.operate.watch import watch_partitions, watch_publications, watch_tables
from cdc.retry import Retry
from cdc.session import Databases, Interrupted, Session
from cdc.settings import Settings
from cdc.sink.engine import watched
from cdc.sink.writer import Writer
from cdc.snapshot import Snapshot
from cdc.source import slot
from cdc.source.connection import Connection
from cdc.source.opener import Opener

log = logging.getLogger(__name__)

_SAMPLE_SECONDS: Final = 1.0
_TARGET_SECONDS: Final = 0.1
_WATCH_SECONDS: Final = 0.5
_CONNECTING_SECONDS: Final = 1.0
_HEEDING_SECONDS: Final = 0.5
_SWITCH_SECONDS: Final = 0.0001
_COLLECT_AFTER: Final = (50_000, 20, 20)
_EXIT_AT_ONCE: Final = 130


class Daemon:
    """Streams from one slot into one read database until told to stop."""

    def __init__(
        self, settings: Settings, *, until: str | None = None, notify_socket: str | None = None
    ) -> None:
        """Take the settings. `until` is an LSN, or "now": where to stop by itself.

        `notify_socket` is where systemd is told how it goes.
        """
        self._settings = settings
        self._until = until
        self._metrics = Metrics()
        self._metrics.flow.queue_limit.set(settings.source.queue_bytes)
        self._lookout = Lookout()
        self._opener = Opener(
            settings.source.dsn.get_secret_value(),
            self._lookout,
            seconds=settings.source.silence_seconds,
        )
        self._writer = Writer(
            self._engine(),
            settings.source.slot,
            quarantine_limit=settings.projection.keys_set_aside,
        )
        databases = Databases(self._opener, self._writer, self._engine(reading=True))
        self._session = Session(settings, databases, self._metrics, until=until)
        self._stop = threading.Event()
        self._retry = Retry(self._metrics, self._stop)
        self._beat = Beat(self._metrics.heartbeats, every_seconds=settings.source.heartbeat_seconds)
        self._budget = Budget(settings.source.slot)
        self._answers = Answers(
            settings, self._metrics, self._session, writer=self._writer, budget=self._budget
        )
        self._notifier = Notifier(notify_socket)
        self._signalled_once = False
        self._served = threading.Event()
        self._error: BaseException | None = None

    def _engine(self, *, reading: bool = False) -> sa.Engine:
        url, seconds = self._settings.read.url, self._settings.read.silence_seconds
        return watched(url.get_secret_value(), self._lookout, reading=reading, seconds=seconds)

    def run(self) -> None:
        """Serve until a signal, or until the position asked for is reached.

        Raise the CdcError that will not pass by itself.
        """
        _tune_interpreter()
        with (
            HttpServer(self._settings.http.address, self._answers.routes()) as http,
            self._signals(),
        ):
            host, port = http.address
            log.info("listening", extra={"url": f"http://{host}:{port}"})
            for part in (self._sample, self._watch, self._keep_lookout, self._serve_to_the_end):
                name = part.__name__.strip("_")
                threading.Thread(target=self._guarded, args=(part,), name=name, daemon=True).start()
            self._wait_for_the_end()
        log.info("stopped", extra={"checkpoint": str(self._writer.checkpoint)})

    def _wait_for_the_end(self) -> None:
        """Wait for the last session to drain; for one that is still connecting, hardly at all."""
        # Python heeds a signal between two instructions: one that comes as a wait begins does not
        # end that wait.
        while not self._stop.wait(_HEEDING_SECONDS):
            pass
        while not self._served.wait(_CONNECTING_SECONDS):
            if self._session.stream is None:
                break
        if self._error is not None:
            raise self._error

    def _keep_lookout(self) -> None:
        self._lookout.run(self._served)

    def _guarded(self, part: Callable[[], None]) -> None:
        """Run a thread's part; let its failure end the daemon, which would be blind without it."""
        try:
            part()
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            self._error = error
            self._stop.set()
            self._session.stop()

    def _serve_to_the_end(self) -> None:
        self._guarded(self._serve)
        self._writer.close()
        self._served.set()
        self._stop.set()

    def _serve(self) -> None:
        """Hold session after session; the pauses grow only while none gets as far as streaming."""
        while not self._stop.is_set():
            gc.collect()  # the last one's batches, queue and read tables refer to one another
            with suppress(Stopped):
                try:
                    self._retry.persist(self._hold, stage="start")
                except Interrupted:
                    self._retry.sleep()

    def _hold(self) -> None:
        self._session.hold(self._retry)

    def stop(self, because: str) -> None:
        """Stop taking more, and end every wait: `run` drains and returns. From any thread."""
        self._metrics.enter(State.STOPPING)
        self._notifier.stopping()
        log.info("stopping", extra={"because": because})
        self._stop.set()
        self._lookout.hurry()
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
        connection: Connection | None = None
        while not self._stop.wait(_TARGET_SECONDS if self._until else _SAMPLE_SECONDS):
            self._stop_at_target()
            try:
                connection = connection or self._opener.connect()
                self._look_at_source(connection)
                self._settle(slot.current_snapshot(connection))
                self._refuse_replaced_tables(connection)
            except CdcError:  # the session says what is wrong, and retries
                self._session.source_stopping.set()
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _look_at_source(self, connection: Connection) -> None:
        """Take a sample of WAL and slot, and send a heartbeat if one is due while streaming."""
        found = slot.sample(connection, self._settings.source.slot)
        self._metrics.sampled(found)
        self._budget.look(found)
        pipeline = self._session.pipeline
        if pipeline is not None:
            pipeline.seen_decoding += found.decoding
            self._beat.send_due(connection)

    def _watch(self) -> None:
        """See whether what is to be done gets on."""
        watchdog = Watchdog(self._settings.daemon.stuck_seconds)
        while not self._stop.wait(_WATCH_SECONDS):
            pipeline = self._session.pipeline
            doing = () if pipeline is None else pipeline.doing()
            self._retry.judge(watchdog.look(doing, now=time.monotonic()))
            self._tell()

    def _tell(self) -> None:
        """Tell the supervisor, and remember for the status page."""
        metrics = self._metrics
        state, because = metrics.state, metrics.retrying
        words = f"{state.value}: {because}" if because else state.value
        self._notifier.tell(words, ready=state is not State.STARTING)
        metrics.remember(now=time.time())

    def _settle(self, snapshot: Snapshot) -> None:
        """Let the copies forget transactions that every later snapshot sees."""
        copying = self._session.copying
        if copying is not None:
            copying.window.settle(snapshot)

    def _refuse_replaced_tables(self, connection: Connection) -> None:
        """Stop where changes go unseen: of a table dropped, renamed, replaced or not published.

        Between two sessions the next one finds out, and says what mends it.
        """
        plan, pipeline = self._session.plan, self._session.pipeline
        if plan is None or pipeline is None or self._stop.is_set():
            return
        changed: CdcError | None = watch_tables(connection, plan.schema, plan.carried)
        if plan.partitioned and changed is None:
            slot_name = self._settings.source.slot
            changed = watch_partitions(connection, plan.partitioned, plan.attached, slot_name)
        if self._settings.source.plugin == "pgoutput" and changed is None:
            publications = plan.publications(self._settings.source.publication)
            changed = watch_publications(connection, publications)
        if changed is not None and pipeline is self._session.pipeline:
            self._error = changed
            self.stop(str(changed))

    def _stop_at_target(self) -> None:
        target, checkpoint = self._session.target, self._writer.checkpoint
        copying = self._session.copying
        copied = copying is not None and not copying.due
        if target is not None and checkpoint is not None and checkpoint >= target and copied:
            self.stop(f"reached {target}")


def _tune_interpreter() -> None:
    """Suit the interpreter to rows that come and go by the thousand, and to three threads."""
    gc.freeze()  # what exists now lives as long as we do
    gc.set_threshold(*_COLLECT_AFTER)  # rows make no cycles
    sys.setswitchinterval(_SWITCH_SECONDS)  # the writer waits for it after every answer

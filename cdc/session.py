"""One session: connect, find the position, stream until something ends it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from cdc.assemble import Assembler
from cdc.errors import CdcError
from cdc.exchange import Exchange, Stopped
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.observe.metrics import Metrics
from cdc.observe.state import State
from cdc.operate import setup
from cdc.pipeline import Decoder, Pipeline
from cdc.retry import Retry
from cdc.settings import Settings
from cdc.sink.engine import canceller
from cdc.sink.writer import Writer
from cdc.source import slot
from cdc.source.connection import Connection, connect, connect_replication
from cdc.source.pgoutput import PgOutput
from cdc.source.relations import Relations
from cdc.source.stream import Stream
from cdc.source.wal2json import Wal2Json

_PIECE_BYTES: Final = 1024**2
_DECODERS: Final[dict[str, type[Wal2Json | PgOutput]]] = {
    "wal2json": Wal2Json,
    "pgoutput": PgOutput,
}


class Interrupted(Exception):
    """A session that was streaming ended in a way that passes."""


class Session:
    """What the daemon holds again and again. `stream` and `exchange` are there while streaming."""

    def __init__(
        self, settings: Settings, writer: Writer, metrics: Metrics, *, until: str | None
    ) -> None:
        """Take the parts that outlive a session. `until` is an LSN, or "now"."""
        self._settings = settings
        self._dsn = settings.source.dsn.get_secret_value()
        self._writer = writer
        self._metrics = metrics
        self._until = until
        self._interrupts: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        self.source_stopping = threading.Event()
        self.target: Lsn | None = None
        self.tables: dict[TableName, int] = {}
        self.stream: Stream | None = None
        self.exchange: Exchange | None = None

    def hold(self, retry: Retry) -> None:
        """Stream until stopped; raise Interrupted where it ended in a way that passes.

        Raise a CdcError where it could not begin, or ended for a reason that will not pass.
        """
        pipeline, lsn = self._begin(retry)
        self._metrics.forget_unapplied()
        self._metrics.lag.applied(lsn)
        retry.enter(State.STREAMING, slot=self._settings.source.slot, since=str(lsn))
        try:
            pipeline.run()
        except CdcError as error:
            if not error.transient:
                raise
            retry.note(error)
            raise Interrupted from None
        finally:
            self.stream = self.exchange = None

    def stop(self) -> None:
        """Let it drain; cancel what it waits for where it has not begun to stream."""
        self._stopped.set()
        stream = self.stream
        if stream is not None:
            stream.wake()
        for interrupt in list(self._interrupts):
            interrupt()

    def _begin(self, retry: Retry) -> tuple[Pipeline, Lsn]:
        read = self._writer.open()
        with (
            self._interruptible(canceller(read)),
            self._connection(connect) as source,
            self._connection(connect_replication) as replication,
        ):
            plan = setup.plan(self._settings, source)
            setup.prepare_read_side(read, plan.registry)
            self._metrics.expect(plan.registry.sources, [p.name for p in plan.registry.projectors])
            identity, lsn = setup.begin(
                self._settings, plan, source=source, replication=replication, read=read
            )
            self._writer.resume(identity, lsn)
            self.tables = {table.name: table.oid for table in plan.schema.values()}
            self._find_target(source)
            return self._pipeline(plan, replication, lsn, retry=retry), lsn

    @contextmanager
    def _connection(self, open_: Callable[[str], Connection]) -> Iterator[Connection]:
        """Hold a connection that a stop interrupts; closed unless the pipeline takes it over."""
        connection = open_(self._dsn)
        try:
            with self._interruptible(partial(_cancel, connection)):
                yield connection
        except BaseException:
            connection.close()
            raise
        if open_ is not connect_replication:
            connection.close()

    @contextmanager
    def _interruptible(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Let a stop cancel what a connection is waiting for; then raise Stopped."""
        self._interrupts.append(cancel)
        try:
            yield
        except CdcError:
            if self._stopped.is_set():
                raise Stopped from None
            raise
        finally:
            self._interrupts.remove(cancel)

    def _pipeline(
        self, plan: setup.Plan, replication: Connection, lsn: Lsn, *, retry: Retry
    ) -> Pipeline:
        settings = self._settings
        self.stream = Stream(
            replication,
            slot=settings.source.slot,
            options=plan.plugin_options(settings),
            insert_only=plan.insert_only,
        )
        self.stream.start(lsn)
        self.source_stopping.clear()
        self.exchange = Exchange(settings.source.queue_bytes)
        decoder: Decoder = _DECODERS[settings.source.plugin](Relations(plan.schema))
        return Pipeline(
            start=lsn,
            stream=self.stream,
            decoder=decoder,
            assembler=Assembler(lsn, piece_bytes=_PIECE_BYTES),
            exchange=self.exchange,
            registry=plan.registry,
            writer=self._writer,
            metrics=self._metrics,
            batch_changes=settings.read.batch_changes,
            batch_bytes=settings.read.batch_bytes,
            persist=retry.persist,
            stop=self._stopped,
            source_stopping=self.source_stopping,
        )

    def _find_target(self, source: Connection) -> None:
        if self._until == "now" and self.target is None:
            self.target = slot.mark_now(source)
        elif self._until is not None and self.target is None:
            self.target = Lsn.parse(self._until)


def _cancel(connection: Connection) -> None:
    with suppress(Exception):
        connection.cancel_safe(timeout=2)

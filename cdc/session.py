"""One session: connect, find the position, stream until something ends it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

import sqlalchemy as sa

from cdc.assemble import Assembler
from cdc.beside.copier import Copier
from cdc.beside.copying import Copying
from cdc.beside.verifier import Verifier
from cdc.beside.verifying import Verifying
from cdc.errors import CatalogOutdated, CdcError, SlotActive
from cdc.exchange import Exchange, Stopped
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.observe.state import State
from cdc.operate import not_numbers, setup
from cdc.operate.schema_change import AT_START, Former
from cdc.pipeline import Pipeline
from cdc.reader import Decoder, Reader
from cdc.retry import Retry
from cdc.settings import Settings
from cdc.sink import copies, verifications
from cdc.sink.asked import Asked
from cdc.sink.engine import canceller, translated
from cdc.sink.writer import Writer
from cdc.source import slot
from cdc.source.connection import Connection
from cdc.source.current_rows import CurrentRows
from cdc.source.nulls import Nulls
from cdc.source.opener import Opener
from cdc.source.partitions import Partitions
from cdc.source.pgoutput import PgOutput
from cdc.source.plain_wire import BYTES_AT_ONCE
from cdc.source.relations import Relations
from cdc.source.stream import Stream
from cdc.source.wal2json import Wal2Json
from cdc.standby import Standby
from cdc.verify_state import Ledger

# At least, of what is read at once or a large transaction's pieces: once it is decoded it takes up
# to seven times as much.
_PARTS_QUEUED: Final = 32


class Interrupted(Exception):
    """A session that was streaming ended in a way that passes."""


class Databases(NamedTuple):
    """What reaches the write database, and what writes and reads the read database."""

    opener: Opener
    writer: Writer
    reading: sa.Engine


class Session:
    """What the daemon holds again and again. `stream` and `exchange` are there while streaming."""

    def __init__(
        self,
        settings: Settings,
        databases: Databases,
        metrics: Metrics,
        *,
        until: str | None,
    ) -> None:
        """Take the parts that outlive a session. `until` is an LSN, or "now"."""
        self._settings = settings
        self._opener = databases.opener
        self._writer = databases.writer
        self._reading = databases.reading
        self._metrics = metrics
        seconds = settings.read.takeover_seconds
        self._standby = Standby(self._opener.connect, settings.source.slot, seconds=seconds)
        self._until = until
        self._interrupts: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        self.source_stopping = threading.Event()
        self._changed = AT_START
        self._partitions: Partitions | None = None
        self.target: Lsn | None = None
        self.plan: setup.Plan | None = None
        self.stream: Stream | None = None
        self.exchange: Exchange | None = None
        self.pipeline: Pipeline | None = None
        self._rows: CurrentRows | None = None
        self.copying: Copying | None = None
        self._ledger = Ledger(())

    def hold(self, retry: Retry) -> None:
        """Stream until stopped; raise Interrupted where it ended in a way that passes.

        Raise a CdcError where it could not begin, or ended for a reason that will not pass.
        """
        try:
            pipeline, lsn = self._begin(retry)
        except BaseException as error:
            self._writer.close()  # the lock with it: another daemon may be able to begin
            if isinstance(error, SlotActive):
                self._standby.slot_taken()
            raise
        self._standby.streams()
        self._metrics.streams(pipeline.stream, pipeline.exchange, since=lsn)
        retry.enter(State.STREAMING, slot=self._settings.source.slot, since=str(lsn))
        try:
            self.pipeline = pipeline
            pipeline.run()
        except CdcError as error:
            if not error.transient:
                raise
            if isinstance(error, CatalogOutdated):
                self._changed = str(error)
            retry.note(error)
            raise Interrupted from None
        finally:
            self.stream = self.exchange = self.pipeline = None
            self._metrics.stopped_streaming()
            for lookups in (self._rows, self._partitions):
                if lookups is not None:
                    lookups.close()

    def stop(self) -> None:
        """Let it drain; cancel what it waits for where it has not begun to stream."""
        self._stopped.set()
        stream = self.stream
        if stream is not None:
            stream.wake()
        for interrupt in list(self._interrupts):
            interrupt()

    def _begin(self, retry: Retry) -> tuple[Pipeline, Lsn]:
        # Who stands by finds a module that does not import now, and not when it is needed.
        setup.imported(self._settings)
        read = self._standby.open(self._writer)
        with (
            self._interruptible(canceller(read)),
            self._connection(self._opener.connect) as source,
            self._connection(self._opener.connect_replication) as replication,
        ):
            plan = setup.plan(self._settings, source)
            # A start that is refused changes no read table.
            found = setup.examine(self._settings, source=source, replication=replication, read=read)
            _refuse_read_slot(self._settings.source.slot, found)
            since = None if found.first else self._changed
            former = setup.prepare(read, plan, self._settings, source=source, since=since)
            self._changed = AT_START
            self._metrics.expect(plan.registry.sources, [p.name for p in plan.registry.projectors])
            if found.checkpoint is not None:
                self._metrics.flow.committed(found.checkpoint.commit_time)
            identity, lsn, stored = setup.begin(
                self._settings, plan, source=source, replication=replication, read=read
            )
            self._ledger = self._read_ledger(read)
            self._metrics.copies(stored)
            self._writer.resume(identity, lsn, plan.registry, plan.gone)
            self._metrics.quarantine(self._writer.held)
            self.plan = plan
            self._find_target(source)
            relations = self._relations(plan, former)
            stream = self._new_stream(plan, former, relations, replication)
            nulls = self._start(stream, plan, source, lsn=lsn)
            self.copying = Copying(
                plan.registry, stored.values(), takes_lines=self._writer.takes_lines
            )
            return self._pipeline(plan, relations, nulls, lsn=lsn, retry=retry), lsn

    @contextmanager
    def _connection(self, open_: Callable[[], Connection]) -> Iterator[Connection]:
        """Hold a connection that a stop interrupts; closed unless the pipeline takes it over."""
        connection = open_()
        try:
            with self._interruptible(partial(_cancel, connection)):
                yield connection
        except BaseException:
            connection.close()
            raise
        if open_ != self._opener.connect_replication:
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

    def _new_stream(
        self, plan: setup.Plan, former: Former, relations: Relations, replication: Connection
    ) -> Stream:
        unwanted = {None, *plan.insert_only}  # of insert-only tables the rest may be left out
        return Stream(
            replication,
            slot=self._settings.source.slot,
            options=plan.plugin_options(self._settings, former.tables),
            optional=plan.optional_plugin_options(self._settings),
            wants=lambda reported: relations.owner(reported) not in unwanted,
        )

    @property
    def _part_bytes(self) -> int:
        """How much is read, and of a large transaction queued, at once."""
        return min(BYTES_AT_ONCE, self._settings.source.queue_bytes // _PARTS_QUEUED)

    def _start(
        self, stream: Stream, plan: setup.Plan, source: Connection, *, lsn: Lsn
    ) -> Nulls | None:
        """Start the stream; give what tells NULL from NaN, where the plugin does not."""
        try:
            stream.start(
                lsn,
                silence_seconds=self._settings.source.silence_seconds,
                bytes_at_once=self._part_bytes,
            )
            nulls = self._nulls(plan, source) if stream.options_refused else None
        except BaseException:
            stream.close()
            raise
        self.stream = stream
        self.source_stopping.clear()
        return nulls

    def _nulls(self, plan: setup.Plan, source: Connection) -> Nulls:
        for refusal in not_numbers.refusals(self._settings, plan, source):
            raise refusal
        self._rows = CurrentRows(self._opener.connect, plan.schema)
        trusted = not_numbers.trusted(self._settings, plan)
        return Nulls(plan.schema, self._rows, trusted=trusted)

    def _pipeline(
        self,
        plan: setup.Plan,
        relations: Relations,
        nulls: Nulls | None,
        *,
        lsn: Lsn,
        retry: Retry,
    ) -> Pipeline:
        assert self.stream is not None  # noqa: S101  it was started
        settings = self._settings
        self.exchange = Exchange(settings.source.queue_bytes)
        assert self.copying is not None  # noqa: S101  likewise
        copier = self._copier(plan, relations, self.copying)
        verifying = Verifying(
            plan.registry,
            self.copying.window,
            position=lsn,
            takes_lines=self._writer.takes_lines,
        )
        bulk = plan.registry.in_bulk if self._writer.takes_lines else frozenset()
        decoder: Decoder
        if settings.source.plugin == "wal2json":
            decoder = Wal2Json(relations, nulls, bulk=bulk)
        else:
            decoder = PgOutput(relations, bulk=bulk)
        return Pipeline(
            start=lsn,
            stream=self.stream,
            reader=Reader(
                decoder,
                Assembler(lsn, piece_bytes=self._part_bytes),
                piece_bytes=self._part_bytes,
            ),
            exchange=self.exchange,
            copying=self.copying,
            copier=copier,
            verifying=verifying,
            verifier=self._verifier(plan, relations, verifying),
            writer=self._writer,
            metrics=self._metrics,
            projectors=plan.registry.projectors,
            batch_changes=settings.read.batch_changes,
            batch_bytes=settings.read.batch_bytes,
            persist=partial(retry.persist, stage="write"),
            settle=nulls.settle if nulls is not None else _nothing,
            stop=self._stopped,
            source_stopping=self.source_stopping,
        )

    def _read_ledger(self, read: sa.Connection) -> Ledger:
        with translated(), read.begin():
            ledger = Ledger(verifications.load(read, self._settings.source.slot).values())
        self._metrics.verified(ledger.all.values())
        return ledger

    def _copier(self, plan: setup.Plan, relations: Relations, copying: Copying) -> Copier:
        copy = self._settings.copy
        return Copier(
            registry=plan.registry,
            schema=plan.schema,
            relations=relations,
            open_source=self._opener.connect,
            asked=Asked(self._reading, self._settings.source.slot, copies.load),
            copying=copying,
            metrics=self._metrics,
            chunk_bytes=copy.chunk_bytes,
            rows_per_second=copy.max_rows_per_second,
        )

    def _verifier(self, plan: setup.Plan, relations: Relations, verifying: Verifying) -> Verifier:
        copying, ledger, settings = self.copying, self._ledger, self._settings.copy
        assert copying is not None  # noqa: S101  likewise
        return Verifier(
            registry=plan.registry,
            schema=plan.schema,
            relations=relations,
            open_source=self._opener.connect,
            asked=Asked(self._reading, self._settings.source.slot, verifications.load),
            copies=lambda: copying.copies,
            done=lambda _: self._metrics.verified(ledger.all.values()),
            ledger=ledger,
            verifying=verifying,
            chunk_bytes=settings.chunk_bytes,
            rows_per_second=settings.max_rows_per_second,
        )

    def _relations(self, plan: setup.Plan, former: Former) -> Relations:
        """Give what is known of the source; wal2json does not tell whose partition a table is."""
        self._partitions = None
        if plan.partitioned and self._settings.source.plugin == "wal2json":
            self._partitions = Partitions(self._opener.connect, plan.partitioned)
        return Relations(plan.schema, plan.seen, former.columns, former.tables, self._partitions)

    def _find_target(self, source: Connection) -> None:
        if self._until == "now" and self.target is None:
            self.target = slot.mark_now(source)
        elif self._until is not None and self.target is None:
            self.target = Lsn.parse(self._until)


def _refuse_read_slot(name: str, found: setup.Found) -> None:
    """Stand by before anything is changed while another session streams from the slot."""
    if found.slot is not None and found.slot.active:
        raise SlotActive(f"slot {name} is read by process {found.slot.active_pid}")


def _nothing() -> None:
    """Settle nothing: there is no doubt."""


def _cancel(connection: Connection) -> None:
    with suppress(Exception):
        connection.cancel_safe(timeout=2)

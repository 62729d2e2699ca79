"""Apply batches to the read database: rows and checkpoint in one commit."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, groupby
from typing import Final

import sqlalchemy as sa

from cdc.assemble import Transaction
from cdc.change import Relation
from cdc.errors import (
    CdcError,
    CheckpointMoved,
    ReadLocked,
    ReadTransactionLost,
    ReadUnavailable,
    WriteRefused,
)
from cdc.lsn import Lsn
from cdc.operation import Operation, Truncate, key_columns
from cdc.projection.batch import Batch, NetEffect
from cdc.projection.check import Check, Walk
from cdc.projection.project import project
from cdc.projection.projector import Projector
from cdc.projection.quarantine import Held
from cdc.projection.registry import Registry
from cdc.sink import checkpoint as checkpoints
from cdc.sink import copies, verifications
from cdc.sink import quarantine as storage
from cdc.sink.comparison import Comparison
from cdc.sink.dialects import sink_of
from cdc.sink.engine import canceller, connect, translated
from cdc.sink.isolation import MEND, Gone, Isolation, Quarantine, check_deferred
from cdc.sink.refused import RowsRefused
from cdc.sink.sink import Sink

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0


class Writer:
    """The one writer of a read database. Used by one thread at a time."""

    def __init__(
        self, engine: sa.Engine, slot: str, *, quarantine_limit: int | None = None
    ) -> None:
        """Take where to write. `quarantine_limit`: how many keys may be set aside; None: stop."""
        self._engine = engine
        self._quarantine = Quarantine(slot, quarantine_limit)
        self._registry: Registry | None = None
        self._gone: Gone = _nothing_gone
        self._look_at = 0.0
        self._slot = slot
        self._connection: sa.Connection | None = None
        self._sink: Sink | None = None
        self._comparison: Comparison | None = None
        self._transaction: sa.RootTransaction | None = None
        self._identity: checkpoints.Identity | None = None
        self._checkpoint: Lsn | None = None
        self._pieces_applied = False
        self._not_durable: deque[tuple[Lsn, int]] = deque()
        self._durable: Lsn | None = None
        self._just_looked = False  # how far the read database is durable
        self.steps = 0
        """How much has been written, counted whenever the read database has answered."""
        self.set_aside: Counter[type[CdcError]] = Counter()
        """How many keys have been set aside, by the class of what failed."""

    @property
    def checkpoint(self) -> Lsn | None:
        """How far the read database is, as of the last commit."""
        return self._checkpoint

    @property
    def held(self) -> Held:
        """The keys in quarantine; another object where they, or what they are in, changed."""
        return self._quarantine.held

    @property
    def takes_lines(self) -> bool:
        """Tell whether rows may come encoded, in bulk; raise a ReadError."""
        _, sink = self._opened()
        return sink.takes_lines

    def open(self) -> sa.Connection:
        """Connect and take the slot's lock; raise ReadLocked while another daemon holds it."""
        self.close()
        self._connection = connect(self._engine)
        try:
            with translated():
                self._sink = sink_of(self._connection)
                self._sink.configure()
                self._comparison = Comparison(self._connection, self._sink, self._slot)
                if not self._sink.lock(self._slot):
                    holder = self._sink.lock_holder(self._slot)
                    raise ReadLocked(f"another daemon serves slot {self._slot}: {holder}")
        except Exception:
            self.close()
            raise
        return self._connection

    def end_silent_holder(self, *, seconds: float) -> None:
        """End the session that holds the slot's lock, where it waits that long for its client.

        Say so. The lock is free a moment later.
        """
        connection = connect(self._engine)
        try:
            with translated():
                ended = sink_of(connection).end_silent_holder(self._slot, seconds=seconds)
        finally:
            connection.close()
        if ended:
            log.warning(
                "ended another daemon that neither streams nor speaks",
                extra={"slot": self._slot, "holder": ended},
            )

    def resume(
        self,
        identity: checkpoints.Identity,
        lsn: Lsn,
        registry: Registry | None = None,
        gone: Gone | None = None,
    ) -> None:
        """Begin at the checkpoint that was found, or has just been stored.

        `registry` has the projectors that changes in quarantine are replayed for, `gone` names the
        columns that their table has lost since. The checkpoint is acknowledged at once, so it is
        brought to disk first: a daemon that was killed may have stored it a moment ago. Raise
        ReadUnavailable.
        """
        if self._sink is not None:
            with translated():
                self._sink.flush()
        self._registry, self._gone = registry, gone or _nothing_gone
        self._load_quarantine()
        self._identity = identity
        self._checkpoint = self._durable = lsn
        self._not_durable.clear()

    def _load_quarantine(self) -> None:
        connection, _ = self._opened()
        with translated(), connection.begin():
            self._quarantine.load(connection)

    def close(self) -> None:
        """Roll back what is open and disconnect; never raise."""
        connection, self._connection = self._connection, None
        self._sink = self._transaction = self._comparison = None
        self._pieces_applied = False
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError):
                connection.close()

    def interrupt(self) -> None:
        """End what the read database is asked for with ReadUnavailable; from any thread."""
        connection = self._connection
        with suppress(sa.exc.SQLAlchemyError):
            if connection is not None:
                canceller(connection)()

    def apply(self, batch: Batch) -> None:
        """Write a batch, and where it ends on a commit its checkpoint, and commit.

        A batch that ends inside a transaction leaves the read transaction open for the next one.
        After a ReadUnavailable the same batch may be given again: whether the commit took effect
        is looked up in the read database. Raise ReadTransactionLost where earlier pieces of a
        transaction went with the connection; WriteRefused, naming projector, table and key, where
        the read database will not take a change; CheckpointMoved.
        """
        if self._connection is None and self._is_applied(batch):
            return
        with self._closing_on_errors(), translated():
            self._write(batch)

    @contextmanager
    def _closing_on_errors(self) -> Iterator[None]:
        try:
            yield
        except ReadUnavailable:
            self._lose_connection()
            raise
        except Exception:
            self.close()
            raise

    def attend(self, walks: tuple[Walk, ...] = ()) -> None:
        """Do what somebody asks for with keys in quarantine, once a second, between transactions.

        `walks` note what is written. Raise as `apply` does, and as often to be called again.
        """
        if not self._quarantine.held or self._transaction is not None:
            return
        if time.monotonic() < self._look_at:
            return
        if self._connection is None:
            self._is_applied(Batch())
        with self._closing_on_errors(), translated():
            self._do_asked(walks)
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def _do_asked(self, walks: tuple[Walk, ...]) -> None:
        """Replay and drop in a transaction of its own, while the checkpoint stands still."""
        connection, sink = self._opened()
        slot = self._slot
        with connection.begin():
            asked = storage.asked(connection, slot)
        if not asked or self._identity is None or self._registry is None:
            return
        self._transaction = connection.begin()
        checkpoints.hold(connection, self._identity, at=self._checkpoint)
        isolation = self._isolation(connection, sink)
        held = self._quarantine.held
        isolation.drop([chain for chain, wish in asked.items() if wish == "drop"])
        replayed = [chain for chain, wish in asked.items() if wish == "replay"]
        sink.defer_constraints()
        left = isolation.replay(replayed, self._registry, gone=self._gone)
        for walk in walks:
            if self._comparison is not None:
                self._comparison.note(walk, isolation.effect)
        self._transaction.commit()
        self._transaction = None
        sink.committed()
        log.info(
            "left quarantine",
            extra={
                "keys": held.counts().total() - self._quarantine.held.counts().total(),
                "still_failing": len(left),
            },
        )

    def _is_applied(self, batch: Batch) -> bool:
        """Reconnect; tell whether the lost commit had taken effect."""
        connection = self._open_again(batch)
        with translated(), connection.begin():
            self._quarantine.load(connection)
            stored = checkpoints.load(connection, self._slot)
            are_stored = copies.are_stored(connection, self._slot, batch.copies.values())
            are_stored &= self._are_stored(connection, batch.checks)
        lsn = stored.lsn if stored else None
        if lsn is not None and lsn == batch.end_lsn and batch.complete and are_stored:
            _, sink = self._opened()
            with translated():
                self._committed(lsn, sink.positions())
            return True
        if self._lost_commits(lsn):
            raise ReadTransactionLost("the read database crashed and lost its last commits")
        if lsn != self._checkpoint:
            raise self._moved(lsn)
        return False

    def _open_again(self, batch: Batch) -> sa.Connection:
        """Reconnect; raise CheckpointMoved where another daemon took over and went on."""
        try:
            return self.open()
        except ReadLocked:
            with closing(connect(self._engine)) as connection, translated(), connection.begin():
                stored = checkpoints.load(connection, self._slot)
            lsn = stored.lsn if stored else None
            if lsn in {self._checkpoint, batch.end_lsn} or self._lost_commits(lsn):
                raise
            raise self._moved(lsn) from None

    def _moved(self, lsn: Lsn | None) -> CheckpointMoved:
        return CheckpointMoved(
            f"the checkpoint of slot {self._slot} is at {lsn}, and was at {self._checkpoint}: "
            "another daemon wrote, or the read database was restored",
            hint="start again: the start-up checks decide where to go on",
        )

    def _are_stored(self, connection: sa.Connection, checks: Iterable[Check]) -> bool:
        """Tell whether checks were worked out, and what came of them is stored."""
        results = [check.results for check in checks]
        worked_out = [result for result in results if result is not None]
        found = chain.from_iterable(worked_out)
        return worked_out == results and verifications.are_stored(connection, self._slot, found)

    def _lost_commits(self, stored: Lsn | None) -> bool:
        """Tell whether commits are gone that had not reached the read database's disk.

        Nothing of them was acknowledged: they can be streamed again from the checkpoint stored.
        """
        durable, last = self._durable, self._checkpoint
        if stored is None or durable is None or last is None:
            return False
        return durable <= stored < last

    def _lose_connection(self) -> None:
        lost_pieces = self._pieces_applied
        self.close()
        if lost_pieces:
            raise ReadTransactionLost

    def _write(self, batch: Batch) -> None:
        connection, _ = self._opened()
        if self._transaction is None:
            self._transaction = connection.begin()
        if not batch.empty:
            self._apply_merged(batch)
        for copy in batch.copies.values():
            copies.store(connection, self._slot, copy)  # or it has been asked for anew meanwhile
        self._compare(batch)
        if batch.complete and batch.end_lsn is not None:
            self._commit(batch, batch.end_lsn)
        else:
            self._pieces_applied = True

    def _compare(self, batch: Batch) -> None:
        """Note for walks what the batch wrote; then compare what is to be compared after it."""
        if self._comparison is None:
            return
        for walk in batch.walks:
            self._comparison.note(walk, batch.effect)
        for check in batch.checks:
            # What is not compared was worked out for the keys that were in quarantine then.
            is_current = self._fits_held(batch)
            check.results = self._comparison.examine(check) if is_current else []
            self._stepped()

    def _apply_merged(self, batch: Batch) -> None:
        """Apply the net effect; where that violates a constraint, all in commit order.

        So too where it was worked out while other keys were in quarantine than are now.
        """
        connection, sink = self._opened()
        quarantine = self._quarantine
        is_sound = self._fits_held(batch) and not batch.in_doubt
        applied = is_sound and self._applies(batch)
        if is_sound and not applied and sink.copied_directly():
            applied = self._applies(batch)
        if applied:
            quarantine.store(connection, sink, batch.aside)
        elif quarantine.limit is None and not quarantine.held:
            self._apply_in_order(batch)
        else:
            self._isolation(connection, sink).apply(batch)

    def _isolation(self, connection: sa.Connection, sink: Sink) -> Isolation:
        return Isolation(connection, sink, self._quarantine, stepped=self._stepped)

    def _stepped(self) -> None:
        self.steps += 1

    def _fits_held(self, batch: Batch) -> bool:
        """Tell whether a batch was projected with the keys in quarantine that are there now."""
        held = self._quarantine.held
        return batch.held is held or not (batch.held or held)

    def _applies(self, batch: Batch) -> bool:
        """Apply the net effect; tell False, with nothing changed, where a row is refused."""
        _, sink = self._opened()
        if self._pieces_applied:
            self._execute("savepoint cdc")
        try:
            with translated():
                for segment in batch.effect.segments:
                    sink.apply(segment)
                    self._stepped()
                if batch.complete:
                    sink.check_deferred()
        except RowsRefused:
            self._undo()
            return False
        if self._pieces_applied:
            self._execute("release savepoint cdc")
        sink.keep()
        return True

    def _undo(self) -> None:
        """Go back to where the batch began: the transaction's begin, unless it came in pieces."""
        connection, sink = self._opened()
        if self._pieces_applied:
            self._execute("rollback to savepoint cdc")
            self._execute("release savepoint cdc")
        elif self._transaction is not None:
            with translated():
                self._transaction.rollback()
            self._transaction = connection.begin()
        sink.rolled_back()

    def _execute(self, statement: str) -> None:
        connection, _ = self._opened()
        with translated():
            connection.exec_driver_sql(statement)

    def _apply_in_order(self, batch: Batch) -> None:
        """Apply transaction after transaction, as the source did.

        What may be checked later is checked at the end of each. The source checks the rest at the
        end of each statement, which the stream does not tell: so a transaction is tried as one
        statement for each table first, and operation by operation where that is refused.
        """
        _, sink = self._opened()
        with translated():
            sink.defer_constraints()
        for transaction, registry in batch.in_order():
            if len(transaction.changes) == 1 or not self._applied_at_once(transaction, registry):
                self._apply_each(transaction, registry)
            if transaction.ends:
                check_deferred(sink, transaction.commit_lsn)

    def _applied_at_once(self, transaction: Transaction, registry: Registry) -> bool:
        """Apply a transaction's net effect in whole sets; tell whether that was taken."""
        connection, sink = self._opened()
        effect = NetEffect()
        for _, operation in project(transaction, registry):
            effect.add(operation)
        savepoint = connection.begin_nested()
        try:
            with translated():
                for segment in effect.segments:
                    sink.apply(segment, in_sets=True)
                    self._stepped()
        except RowsRefused:
            savepoint.rollback()
            sink.rolled_back()
            return False
        savepoint.commit()
        sink.keep()
        return True

    def _apply_each(self, transaction: Transaction, registry: Registry) -> None:
        _, sink = self._opened()
        for projector, operations in _steps(project(transaction, registry)):
            alone = NetEffect()
            for part in operations:
                alone.add(part)
            try:
                with translated():
                    for segment in alone.segments:
                        sink.apply(segment)
                        self._stepped()
            except RowsRefused as error:
                raise _refused(error, projector, operations[-1], transaction.commit_lsn) from None

    def _commit(self, batch: Batch, end_lsn: Lsn) -> None:
        connection, sink = self._opened()
        if self._identity is None or self._transaction is None:
            raise CheckpointMoved("the writer was never told where it resumes")
        forward = self._checkpoint is None or end_lsn > self._checkpoint
        if forward:
            checkpoints.advance(
                connection,
                self._identity,
                old=self._checkpoint,
                new=end_lsn,
                commit_time=batch.commit_time,
            )
        else:
            checkpoints.hold(connection, self._identity, at=self._checkpoint)
        try:
            with translated(), sink.together():
                self._transaction.commit()
                positions = sink.positions()
        except RowsRefused as error:
            # A constraint that waits was made after we looked: the next connection looks again.
            raise ReadUnavailable(f"the read database refused a commit: {error}") from None
        self._transaction = None
        self._pieces_applied = False
        sink.committed()
        self._tell_quarantined()
        if forward:
            self._committed(end_lsn, positions)

    def _tell_quarantined(self) -> None:
        """Say, once, which keys' changes are set aside from now on: the columns, not the values."""
        for news in self._quarantine.news:
            self.set_aside[news.kind] += 1
            log.warning(
                "quarantined a key",
                extra={
                    "projector": news.unit.projector,
                    "table": str(news.unit.source),
                    "key_columns": ", ".join(news.columns),
                    "error": news.error,
                    "hint": "`cdc quarantine list`; mend it, then `cdc quarantine replay`",
                },
            )
        self._quarantine.news.clear()

    def _committed(self, end_lsn: Lsn, positions: tuple[int, int]) -> None:
        """Note a commit, and how far the read database was just after it."""
        written, flushed = positions
        self._checkpoint = end_lsn
        self._not_durable.append((end_lsn, written))
        self._flushed(flushed)
        self._just_looked = True

    @property
    def has_undurable_commits(self) -> bool:
        """Tell whether a commit may not be on the read database's disk yet."""
        return bool(self._not_durable)

    def durable(self) -> Lsn | None:
        """Give the last checkpoint that the read database has on disk; raise ReadUnavailable."""
        looked, self._just_looked = self._just_looked, False
        waits = self._not_durable and self._sink is not None and self._transaction is None
        if waits and not looked and self._sink is not None:
            with translated():
                _, flushed = self._sink.positions()
            self._flushed(flushed)
        return self._durable

    def _flushed(self, position: int) -> None:
        while self._not_durable and self._not_durable[0][1] <= position:
            self._durable, _ = self._not_durable.popleft()

    def flush(self) -> None:
        """Make the commits so far durable; raise ReadUnavailable."""
        if self._not_durable and self._sink is not None and self._transaction is None:
            with translated():
                self._sink.flush()
            self._just_looked = False

    def _opened(self) -> tuple[sa.Connection, Sink]:
        if self._connection is None or self._sink is None:
            self.open()
        assert self._connection is not None  # noqa: S101  open() sets both or raises
        assert self._sink is not None  # noqa: S101
        return self._connection, self._sink


def _nothing_gone(_relation: Relation) -> frozenset[str]:
    return frozenset()


def _steps(
    operations: Iterable[tuple[Projector, Operation]],
) -> Iterator[tuple[Projector, list[Operation]]]:
    """Give each operation alone, but truncates in a row together.

    Tables that reference one another can only be truncated by one statement.
    """
    for is_truncate, run in groupby(operations, lambda pair: isinstance(pair[1], Truncate)):
        if is_truncate:
            pairs = list(run)
            yield pairs[-1][0], [operation for _, operation in pairs]
        else:
            yield from ((projector, [operation]) for projector, operation in run)


def _refused(
    error: RowsRefused, projector: Projector, operation: Operation, commit_lsn: Lsn
) -> WriteRefused:
    return WriteRefused(
        f"projector {projector.name}: the read database refused {_described(operation)}, in the "
        f"transaction committed at {commit_lsn}: {error}",
        hint=MEND,
    )


def _described(operation: Operation) -> str:
    """Name the operation, its table and key."""
    kind = type(operation).__name__.lower()
    if isinstance(operation, Truncate):
        return f"{kind} {operation.table.name}"
    shape = operation.shape
    known = dict(zip(shape.columns, operation.values, strict=True))
    key = ", ".join(f"{name}={known[name]!r}" for name in key_columns(shape.table))
    return f"{kind} {shape.table.name} ({key})"

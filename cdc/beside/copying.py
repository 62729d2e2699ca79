"""Copies beside the stream: where chunks wait for their place, and are written (docs/copy.md)."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from cdc import lines
from cdc.assemble import Transaction, placed_at
from cdc.change import Change, Inserted, Relation, Truncated, Updated
from cdc.chunk import Chunk
from cdc.copy_state import Copy, Key, Unit
from cdc.lsn import Lsn
from cdc.projection.batch import Batch
from cdc.projection.lines import BulkPlan, Replaced
from cdc.projection.mirror import Mirror
from cdc.projection.registry import Registry
from cdc.rows import Bulk
from cdc.window import Values, Window, bring_up_to_date, row_key

_MOST_AGAIN: Final = 1000
_STREAMING_SECONDS: Final = 1.0
_PART_BYTES: Final = 256 * 1024


class Copying:
    """How far the copies are, as the projection thread has it; asked by the thread that reads.

    `serving` are the projectors that get changes from the stream: those whose first copy has not
    begun get none, for the chunks will bring what those changes lead to.
    """

    def __init__(self, registry: Registry, copies: Iterable[Copy], *, takes_lines: bool) -> None:
        """Take what is stored. `takes_lines` tells that encoded rows can be written."""
        self._registry = registry
        self._copies = {copy.unit: copy for copy in copies}
        self.window = Window()
        self._takes_lines = takes_lines
        self._changed = threading.Condition()
        self._outstanding = 0
        self.abandoned = 0  # chunks
        self._waiting: deque[Chunk] = deque()
        self._position = Lsn(0)
        self._streamed_at = -math.inf
        self.part_bytes = _PART_BYTES
        self.serving = registry
        self._serve()

    def _serve(self) -> None:
        without = [copy.unit for copy in self._copies.values() if not copy.begun]
        self.serving = self._registry.without(without)

    # The thread that reads chunks.

    @property
    def copies(self) -> dict[Unit, Copy]:
        """How far the copies are: in what is written, or about to be."""
        with self._changed:
            return dict(self._copies)

    @property
    def due(self) -> bool:
        """Tell whether something is left to be copied."""
        return any(copy.due for copy in self._copies.values())

    def ask(self, copy: Copy) -> None:
        """Begin a copy anew that somebody asked for."""
        with self._changed:
            self._copies[copy.unit] = copy
            self._serve()

    def expect(self) -> None:
        """Note that a chunk is under way."""
        with self._changed:
            self._outstanding += 1

    def wait(self, outstanding: int, *, seconds: float) -> bool:
        """Wait until no more than so many chunks are under way; tell False where they are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._outstanding <= outstanding, seconds)

    @property
    def streaming(self) -> bool:
        """Tell whether the stream has brought changes lately, to which chunks must make way."""
        return time.monotonic() - self._streamed_at < _STREAMING_SECONDS

    # The projection thread.

    def note(self, item: Transaction | Bulk, batch: Batch) -> None:
        """Take note of what the stream brought, as it is added to a batch."""
        self._streamed_at = time.monotonic()
        self.window.note(item)
        if self.due:
            for transaction in item.transactions if isinstance(item, Bulk) else (item,):
                for change in transaction.changes:
                    if isinstance(change, Updated) and change.partial:
                        self._note_partial(change, batch)

    def _note_partial(self, change: Updated, batch: Batch) -> None:
        """Have a row read once more that may have come from where nothing was copied yet."""
        if change.old_key_values is None:
            return
        key = row_key(change.relation, change.values)
        with self._changed:
            for unit, copy in self._copies.items():
                if unit.source == change.relation.name and self._may_miss(copy):
                    self._copies[unit] = batch.copies[unit] = _noted(copy, key)

    def _may_miss(self, copy: Copy) -> bool:
        """Tell whether a row may move to where chunks have been read, from where none has been.

        Where the table is going to be read again from its beginning, nothing is missed.
        """
        begun = copy.state == "copying" or self.window.is_open(copy.unit.source)
        return copy.due and copy.passes == 1 and begun

    def arrived(self, chunk: Chunk) -> None:
        """Take a chunk that is to be placed once the stream has passed its watermark."""
        self._waiting.append(chunk)

    def ready(self, batch: Batch) -> bool:
        """Tell whether a chunk can be placed after what is in a batch."""
        self._position = max(self._position, batch.end_lsn or Lsn(0))
        reached = bool(self._waiting) and self._position >= self._waiting[0].watermark
        return reached and batch.complete

    def placed(self, batch: Batch) -> Iterator[Batch]:
        """Place the next chunk, if it can be: give the batch with it.

        A table that cannot be read in parts takes several batches, of which this is the first.
        """
        if not self.ready(batch):
            return
        chunk, found = self._next(), False
        for part in self._parts(chunk, batch):
            found = True
            yield part
        if not chunk.part:
            self._release(chunk, placed=found)

    def _next(self) -> Chunk:
        """Take the chunk whose turn it is; of a large one, while changes wait for it, a part."""
        chunk = self._waiting[0]
        is_large = chunk.size >= 2 * self.part_bytes and not chunk.keys
        part = chunk.take(self.part_bytes) if is_large and self.streaming else None
        return part or self._waiting.popleft()

    def _release(self, chunk: Chunk, *, placed: bool) -> None:
        """Note that a chunk is no longer under way: it was placed, or has to be read again."""
        self.window.close(chunk.opened)
        with self._changed:
            self.abandoned += not placed
            self._outstanding -= 1
            self._changed.notify_all()

    def _parts(self, chunk: Chunk, batch: Batch) -> Iterator[Batch]:
        copy = self._copies[chunk.unit]
        if chunk.asked != copy.asked or chunk.opened.dropped:
            return
        if chunk.pieces is not None:
            yield from self._whole(chunk, copy, batch, chunk.pieces)
        elif (chunk.keys or chunk.after == copy.reached) and self._place(chunk, batch):
            self._reach(chunk, batch)
            yield batch

    def _place(self, chunk: Chunk, batch: Batch) -> bool:
        """Write a chunk's rows as of now; tell False where the table is described otherwise."""
        changes = list(chunk.opened.changes())
        mirror = self._direct(chunk)
        if mirror is not None and not changes:
            self._replace(chunk, chunk.text, mirror, batch)
            return True
        rows = {row_key(chunk.relation, row): row for row in lines.decode(chunk.text)}
        now = bring_up_to_date(rows, changes, chunk.relation)
        if now is None:
            return False
        untouched = list(now.untouched.values())
        if mirror is None:
            self._add(chunk, [*untouched, *now.changed], batch)
        else:
            text = lines.encode_all(untouched) if untouched else b""
            self._replace(chunk, text, mirror, batch)
            self._add(chunk, now.changed, batch)
        return True

    def _replace(self, chunk: Chunk, text: bytes, mirror: Mirror, batch: Batch) -> None:
        plan = mirror.bulk_plan(chunk.relation)
        replaced = Replaced(
            plan,
            _picked(text, chunk.relation, plan),
            chunk.after,
            chunk.bound if chunk.ends else chunk.last,
            beyond=chunk.bound if chunk.first else None,
        )
        batch.add_replaced(
            replaced,
            self._registry.only(chunk.unit),
            lambda: [placed_at(self._position, _inserted(chunk.relation, lines.decode(text)))],
        )

    def _direct(self, chunk: Chunk) -> Mirror | None:
        """Give the mirror whose read table a chunk's rows can be written into as they are.

        They take the place of all rows in the chunk's range of keys, which has to be the same range
        in the read database.
        """
        projector = self._registry.projector(chunk.unit.projector)
        copy = self._copies[chunk.unit]
        suits = self._takes_lines and chunk.ordered and not chunk.keys and copy.purpose != "again"
        if not suits or not isinstance(projector, Mirror) or not projector.in_bulk:
            return None
        plan = projector.bulk_plan(chunk.relation)
        # Ranges of keys are the same only where the read table's key has the columns in this order.
        is_same_key = plan.key_positions == chunk.relation.key_positions
        return projector if plan.shape.full and is_same_key else None

    def _add(self, chunk: Chunk, rows: list[Values], batch: Batch) -> None:
        if rows:
            transaction = placed_at(self._position, _inserted(chunk.relation, rows))
            batch.add_copied(transaction, self._registry.only(chunk.unit))

    def _reach(self, chunk: Chunk, batch: Batch) -> None:
        """Move the copy on, in the commit that its rows are in."""
        batch.copied[chunk.unit.source] += chunk.count
        batch.reach(self._position)
        with self._changed:
            before = self._copies[chunk.unit]
            if before.asked != chunk.asked:  # since it was begun to be placed: not where that is
                return
            chunk.in_last_pass = before.passes == 1
            copy = _moved_on(before, chunk)
            began = not before.begun
            self._copies[chunk.unit] = batch.copies[chunk.unit] = copy
        if began:
            self._serve()  # from the next batch on: this one ends here

    def _whole(
        self, chunk: Chunk, copy: Copy, batch: Batch, pieces: Iterator[tuple[bytes, int]]
    ) -> Iterator[Batch]:
        """Write all rows of a table in one read transaction, however many they are."""
        if copy.purpose != "first":
            truncate = placed_at(self._position, [Truncated(chunk.relation)])
            batch.add_copied(truncate, self._registry.only(chunk.unit))
        rows: list[Values] = []
        gone = False
        for change in chunk.opened.changes():
            if isinstance(change, Inserted):
                rows.append(change.values)
            elif isinstance(change, Truncated):
                rows, gone = [], True
        for text, count in () if gone else pieces:
            chunk.count += count
            self._add(chunk, list(lines.decode(text)), batch)
            batch.unfinished = True
            yield batch
            batch = Batch(held=batch.held)
        self._add(chunk, rows, batch)
        self._reach(chunk, batch)
        yield batch


def _noted(copy: Copy, key: Key) -> Copy:
    """Note a row to be read once more; of very many, have the whole table read once more."""
    if key in copy.again:
        return copy
    if len(copy.again) >= _MOST_AGAIN:
        return replace(copy, again=(), passes=copy.passes + 1)
    return replace(copy, again=(*copy.again, key))


def _moved_on(copy: Copy, chunk: Chunk) -> Copy:
    now = datetime.now(UTC)
    copy = replace(
        _with_partitions(copy, chunk.partitions),
        state="copying",
        copied=copy.copied + chunk.count,
        expected=_expected(copy, chunk),
        started_at=copy.started_at or now,
        again=tuple(key for key in copy.again if key not in chunk.keys),
    )
    if not chunk.keys:
        copy = replace(copy, reached=chunk.last or copy.reached)
    if not chunk.ends or copy.again:
        return copy
    if copy.passes > 1:
        return replace(copy, passes=copy.passes - 1, reached=None)
    return replace(copy, state="done")


def _with_partitions(copy: Copy, partitions: str | None) -> Copy:
    """Have a table read once more whose partitions changed: earlier chunks may lack rows."""
    changed = partitions is not None and copy.partitions not in {None, partitions}
    passes = max(copy.passes, 2) if changed else copy.passes
    return replace(copy, partitions=partitions or copy.partitions, passes=passes)


def _expected(copy: Copy, chunk: Chunk) -> int | None:
    """Give how many rows the copy will have read in all its passes, about."""
    if copy.expected is not None or chunk.expected is None:
        return copy.expected
    return chunk.expected * copy.passes


def _picked(text: bytes, relation: Relation, plan: BulkPlan) -> bytes:
    """Give the columns that are written, of encoded rows of a relation."""
    if not text or plan.positions == tuple(range(len(relation.columns))):
        return text
    rows = lines.decode(text)
    return lines.encode_all([[row[position] for position in plan.positions] for row in rows])


def _inserted(relation: Relation, rows: Iterable[Values]) -> list[Change]:
    return [Inserted(relation, values, copied=True) for values in rows]

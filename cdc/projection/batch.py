"""Batches: whole transactions, and their operations merged into the net effect."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from cdc.assemble import Transaction
from cdc.lsn import Lsn
from cdc.operation import Append, Delete, Key, Move, Operation, Truncate, Update, Upsert
from cdc.projection.project import project
from cdc.projection.registry import Registry

Write = Upsert | Update


@dataclass(slots=True)
class Effects:
    """What a segment does to one read table, in this order.

    Truncate; moves; deletes; writes; appends. A key may be deleted and written: then the row is
    replaced, and columns the write does not name take their defaults.
    """

    truncated: bool = False
    moves: dict[Key, Move] = field(default_factory=dict)
    moved_to: set[Key] = field(default_factory=set)
    deletes: dict[Key, Delete] = field(default_factory=dict)
    writes: dict[Key, Write] = field(default_factory=dict)
    appends: list[Append] = field(default_factory=list)

    def add(self, operation: Operation) -> bool:
        """Merge an operation in; tell False where that cannot be done and a new segment must."""
        match operation:
            case Upsert():
                return self._upsert(operation)
            case Update():
                return self._update(operation)
            case Delete():
                return self._delete(operation)
            case Move():
                return self._move(operation)
            case Truncate():
                return self._truncate()
            case Append():
                return self._append(operation)

    def _upsert(self, new: Upsert) -> bool:
        key = new.shape.key_of(new.values)
        old = self.writes.get(key)
        if old is None or new.shape is old.shape or new.shape.full:
            if new.shape.full and self.deletes:
                self.deletes.pop(key, None)
            self.writes[key] = new
            return True
        if isinstance(old, Update) and not set(old.shape.columns) <= set(new.shape.columns):
            return False  # the update touches the row only where it exists, the upsert always
        return self._merged(key, old, new, kind=Upsert)

    def _update(self, new: Update) -> bool:
        key = new.key
        old = self.writes.get(key)
        if old is not None:
            return self._merged(key, old, new, kind=type(old))
        if key not in self.deletes:
            self.writes[key] = new
        return True

    def _merged(self, key: Key, old: Write, new: Write, *, kind: type[Write]) -> bool:
        """Set the newer values over the older: a value that was not sent stays as known."""
        if old.shape.text is not new.shape.text:
            return False
        values = dict(zip(old.shape.columns, old.values, strict=True))
        values.update(zip(new.shape.columns, new.values, strict=True))
        self.writes[key] = kind.of(old.shape.subset(tuple(values)), tuple(values.values()))
        return True

    def _delete(self, new: Delete) -> bool:
        key = new.key
        self.writes.pop(key, None)
        self.deletes[key] = new
        return True

    def _move(self, new: Move) -> bool:
        """Merge only while neither key has been touched, for moves come first."""
        key, old_key = new.key, new.old_key
        if any(
            k in rows for k in (key, old_key) for rows in (self.moves, self.deletes, self.writes)
        ):
            return False
        if key in self.moved_to or old_key in self.moved_to:
            return False
        self.moves[old_key] = new
        self.moved_to.add(key)
        return True

    def _truncate(self) -> bool:
        self.truncated = True
        for rows in (self.moves, self.moved_to, self.deletes, self.writes, self.appends):
            rows.clear()
        return True

    def _append(self, new: Append) -> bool:
        self.appends.append(new)
        return True


Segment = dict[sa.Table, Effects]
"""Effects on several tables that may be applied together."""


class NetEffect:
    """The net effect of operations, as segments to apply one after the other.

    Nearly always there is one. A new one begins where an operation cannot be merged exactly, such
    as a move of a key that the segment has already written.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def add(self, operation: Operation) -> None:
        """Merge an operation into the last segment, or begin the next with it."""
        table = operation.table if isinstance(operation, Truncate) else operation.shape.table
        if not self.segments:
            self.segments.append({})
        segment = self.segments[-1]
        effects = segment.get(table)
        if effects is None:
            effects = segment[table] = Effects()
        if not effects.add(operation):
            self.segments.append({table: Effects()})
            self.segments[-1][table].add(operation)


@dataclass(slots=True)
class Batch:
    """Transactions to apply in one read-database commit, and their net effect.

    `end_lsn` is where the last finished transaction ends, or a position the server told us
    nothing is pending before. `operations` counts by projector and kind. The transactions are kept
    because a batch that violates a constraint is applied again in commit order.
    """

    transactions: list[Transaction] = field(default_factory=list)
    effect: NetEffect = field(default_factory=NetEffect)
    operations: Counter[tuple[str, type]] = field(default_factory=Counter)
    end_lsn: Lsn | None = None
    changes: int = 0
    size: int = 0

    def add(self, transaction: Transaction, registry: Registry) -> None:
        """Project a transaction, or a piece of one, and merge what it means in."""
        add = self.effect.add
        done = []
        for projector, operation in project(transaction, registry):
            add(operation)
            done.append((projector.name, operation.__class__))
        self.operations.update(done)
        self.transactions.append(transaction)
        self.changes += len(transaction.changes)
        self.size += transaction.size
        if transaction.end_lsn is not None:
            self.end_lsn = transaction.end_lsn

    def reach(self, position: Lsn) -> None:
        """Note a position before which nothing is pending but what was added."""
        self.end_lsn = max(position, self.end_lsn or position)

    @property
    def can_commit(self) -> bool:
        """Tell whether there is something to apply that ends on a commit."""
        return self.complete and self.end_lsn is not None

    @property
    def complete(self) -> bool:
        """Tell whether it ends on a commit: only then may its checkpoint be stored."""
        return not self.transactions or self.transactions[-1].ends

    @property
    def commit_time(self) -> datetime | None:
        """When the last transaction committed."""
        return self.transactions[-1].commit_time if self.transactions else None

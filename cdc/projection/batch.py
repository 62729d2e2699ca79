"""Batches: whole transactions, and their operations merged into the net effect."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from cdc.assemble import Transaction
from cdc.change import Change, Inserted, Truncated, Updated
from cdc.copy_state import Copy, Unit
from cdc.errors import ProjectionError
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operation import Append, Delete, Key, Move, Operation, Truncate, Update, Upsert
from cdc.projection.check import Check, Walk
from cdc.projection.laps import EACH, LARGE, Laps
from cdc.projection.lines import BulkPlan, Lines, Replaced, net_rows
from cdc.projection.project import project, timed
from cdc.projection.projector import Projector
from cdc.projection.quarantine import NOTHING, Held, SetAside, keys_of, set_aside
from cdc.projection.quarantine import Key as QuarantinedKey
from cdc.projection.registry import Registry
from cdc.rows import Bulk, InOrder, Rows

Write = Upsert | Update


@dataclass(slots=True, repr=False)
class Effects:
    """What a segment does to one read table, in this order.

    Truncate; moves; deletes; replaced rows; writes; appends; lines. A key may be deleted and
    written: then the row is replaced, and columns the write does not name take their defaults. A
    key is in `writes` or in `lines`, never in both.
    """

    truncated: bool = False
    moves: dict[Key, Move] = field(default_factory=dict)
    moved_to: set[Key] = field(default_factory=set)
    deletes: dict[Key, Delete] = field(default_factory=dict)
    writes: dict[Key, Write] = field(default_factory=dict)
    appends: list[Append] = field(default_factory=list)
    lines: Lines | None = None
    replaced: Replaced | None = None

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
        if self.lines is not None and key in self.lines:
            if not new.shape.full:
                return False
            self.lines.discard(key)
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
        if self.lines is not None and key in self.lines:
            return False
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
        if self.lines is not None:
            self.lines.discard(key)
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
        if self.lines is not None and (key in self.lines or old_key in self.lines):
            return False
        self.moves[old_key] = new
        self.moved_to.add(key)
        return True

    def _truncate(self) -> bool:
        self.truncated = True
        for rows in (self.moves, self.moved_to, self.deletes, self.writes, self.appends):
            rows.clear()
        if self.lines is not None:
            self.lines.clear()
        return True

    def _append(self, new: Append) -> bool:
        self.appends.append(new)
        return True

    def add_rows(self, rows: Rows, plan: BulkPlan) -> bool:
        """Merge rows in, as `add` would one by one; tell False where a new segment must begin."""
        if self.lines is None:
            self.lines = Lines(plan)
        elif self.lines.plan is not plan:
            return False
        if plan.appends:
            self.lines.append(rows)
        elif self._is_untouched(self.lines) and all(rows.inserted):
            self.lines.begin(rows)
        else:
            self._add_keyed(rows, plan, self.lines)
        return True

    def _is_untouched(self, lines: Lines) -> bool:
        return lines.only_begun and not (self.deletes or self.writes or self.moves)

    def _add_keyed(self, rows: Rows, plan: BulkPlan, lines: Lines) -> None:
        net = net_rows(rows, plan)
        written = net.written.keys()
        before = [rows for rows in (self.writes, self.deletes, self.moved_to) if rows]
        touched = {key for rows in before for key in written & rows}
        for key in touched:
            self.writes.pop(key, None)
            self.deletes.pop(key, None)
        lines.put(net, touched=touched)
        single = len(plan.key_positions) == 1
        for key in net.deleted:
            lines.discard(key)
            self.writes.pop(key, None)
            self.deletes[key] = Delete.of(plan.key_shape, (key,) if single else key)


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
        if not self._effects(table).add(operation):
            self.segments.append({})
            self._effects(table).add(operation)

    def add_rows(self, rows: Rows, plan: BulkPlan) -> None:
        """Merge rows into the last segment, or begin the next with them."""
        table = plan.shape.table
        if not self._effects(table).add_rows(rows, plan):
            self.segments.append({})
            self._effects(table).add_rows(rows, plan)

    def replace(self, replaced: Replaced) -> None:
        """Begin a segment in which rows of a table take the place of others."""
        table = replaced.plan.shape.table
        if any(table in segment for segment in self.segments):
            self.segments.append({})
        self._effects(table).replaced = replaced

    def append_text(self, text: bytes, plan: BulkPlan) -> None:
        """Append encoded rows, at least one."""
        effects = self._effects(plan.shape.table)
        if effects.lines is None:
            effects.lines = Lines(plan)
        effects.lines.appended.append(text)

    def seal(self) -> None:
        """Get it ready to be written: nothing is added any more."""
        for segment in self.segments:
            for effects in segment.values():
                if effects.lines is not None:
                    effects.lines.seal()

    def _effects(self, table: sa.Table) -> Effects:
        if not self.segments:
            self.segments.append({})
        segment = self.segments[-1]
        effects = segment.get(table)
        if effects is None:
            effects = segment[table] = Effects()
        return effects


@dataclass(slots=True, repr=False)
class Batch:
    """Transactions to apply in one read-database commit, and their net effect.

    `end_lsn` is where the last finished transaction ends, or a position the server told us
    nothing is pending before. `operations` counts by projector and kind. What was added is kept,
    each with the projectors it is for, because a batch that violates a constraint is applied again
    in commit order. `copies` are stored in the same commit; `copied` counts the rows they brought.
    `checks` compare the read tables as they are after all of it; `walks` note what it wrote.
    `held` are the keys in quarantine as it began, whose changes are in `aside` and not in the
    effect. `in_doubt` tells that the effect is not to be relied on: a projection failed, or more
    becomes of what is in quarantine than that changes join it. The writer finds out, in order.
    `laps` takes how long the projectors took.
    """

    transactions: list[Transaction] = field(default_factory=list)
    added: list[tuple[Transaction | InOrder, Registry]] = field(default_factory=list)
    effect: NetEffect = field(default_factory=NetEffect)
    operations: Counter[tuple[str, type]] = field(default_factory=Counter)
    end_lsn: Lsn | None = None
    changes: int = 0
    size: int = 0
    copies: dict[Unit, Copy] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    walks: tuple[Walk, ...] = ()
    copied: Counter[TableName] = field(default_factory=Counter)
    unfinished: bool = False
    continues: bool = False
    held: Held = NOTHING
    aside: list[SetAside] = field(default_factory=list)
    in_doubt: bool = False
    laps: Laps | None = None

    def add(self, transaction: Transaction, registry: Registry) -> None:
        """Project a transaction, or a piece of one, and merge what it means in."""
        self._merge(transaction, registry)
        self.added.append((transaction, registry))
        self.size += transaction.size

    def add_bulk(self, bulk: Bulk, registry: Registry) -> None:
        """Merge in many changes: those that are not set apart, then the rows.

        Rows that cannot be written in bulk are projected one by one, like all the rest: it tells
        what is wrong with which.
        """
        plans = None if self._touches_held(bulk) else _bulk_plans(bulk, registry)
        if plans is None:
            for transaction in bulk.in_order():
                self.add(transaction, registry)
            return
        for transaction in bulk.transactions:
            self._merge(transaction, registry)
        for rows, plans_of_rows in plans:
            self.changes += len(rows.deleted)
            for name, plan in plans_of_rows:
                self._add_rows(name, rows, plan)
                self._count(name, rows, plan)
        self.added.append((bulk.in_order, registry))  # the rows themselves may go: they are merged
        self.size += bulk.size

    def _add_rows(self, name: str, rows: Rows, plan: BulkPlan) -> None:
        since = self.laps.clock() if self.laps is not None else 0.0
        self.effect.add_rows(rows, plan)
        if self.laps is not None:
            self.laps.seconds[name] += self.laps.clock() - since

    def _count(self, name: str, rows: Rows, plan: BulkPlan) -> None:
        deleted = sum(rows.deleted)
        if plan.appends:
            self.operations[name, Append] += sum(rows.inserted)
        else:
            self.operations[name, Delete] += deleted
            self.operations[name, Upsert] += len(rows.deleted) - deleted

    def add_copied(self, transaction: Transaction, registry: Registry) -> None:
        """Merge in copied rows: changes that the stream did not bring."""
        self._project(transaction, registry)
        self.added.append((transaction, registry))

    def add_replaced(self, replaced: Replaced, registry: Registry, in_order: InOrder) -> None:
        """Let copied rows take the place of others; `in_order` gives them as changes."""
        if any(registry.wants(unit) for unit in self.held.chains):
            self.in_doubt = True
        self.effect.replace(replaced)
        self.added.append((in_order, registry))

    def in_order(self) -> Iterator[tuple[Transaction, Registry]]:
        """Give what was added as transactions that hold every change in its place."""
        for one, registry in self.added:
            for transaction in (one,) if isinstance(one, Transaction) else one():
                yield transaction, registry

    @property
    def empty(self) -> bool:
        """Tell whether nothing but a position was added."""
        return not self.added

    def _merge(self, transaction: Transaction, registry: Registry) -> None:
        if transaction.changes:
            self._project(transaction, registry)
        self.transactions.append(transaction)
        self.changes += len(transaction.changes)
        if transaction.end_lsn is not None:
            self.end_lsn = transaction.end_lsn

    def _project(self, transaction: Transaction, registry: Registry) -> None:
        if self.in_doubt:
            return
        add = self.effect.add
        done = []
        keeps_aside = self._keeps_aside if self.held else None
        laps, number = self.laps, len(self.added)
        if laps is None or (  # as little as can be: it is done for every transaction
            number >= EACH and number % EACH != EACH // 2 and len(transaction.changes) < LARGE
        ):
            pairs = project(transaction, registry, keeps_aside)
        else:
            pairs = timed(transaction, registry, keeps_aside, laps=laps, number=number)
        try:
            for projector, operation in pairs:
                add(operation)
                done.append((projector.name, operation.__class__))
        except ProjectionError:
            if not self.held.isolates:
                raise
            self.in_doubt = True
        self.operations.update(done)

    def _keeps_aside(self, projector: Projector, change: Change, transaction: Transaction) -> bool:
        """Keep the change of a key in quarantine; doubt what changes which keys those are."""
        unit = Unit(projector.name, change.relation.name)
        keys = self.held.of(unit)
        if not keys:
            return False
        if isinstance(change, Truncated):
            self.in_doubt = True
            return False
        known = [key in keys for key in keys_of(projector, change)]
        if not any(known):
            return False
        moves = isinstance(change, Updated) and change.old_key_values is not None
        if moves or (isinstance(change, Inserted) and change.copied):
            self.in_doubt = True
        self.aside.append(set_aside(projector, change, transaction))
        return True

    def _touches_held(self, bulk: Bulk) -> bool:
        """Tell whether rows set apart are of keys in quarantine."""
        return bool(self.held) and any(
            unit.source == rows.relation.name and _any_held(rows, keys)
            for rows in bulk.rows
            for unit, keys in self.held.chains.items()
        )

    def reach(self, position: Lsn) -> None:
        """Note a position before which nothing is pending but what was added."""
        self.end_lsn = max(position, self.end_lsn or position)

    @property
    def can_commit(self) -> bool:
        """Tell whether there is something to apply that ends on a commit."""
        return self.complete and self.end_lsn is not None

    @property
    def complete(self) -> bool:
        """Tell whether it ends on a commit: only then may its checkpoint be stored.

        `unfinished` tells of one that more copied rows belong to, `continues` of one that began
        inside a transaction.
        """
        if self.unfinished:
            return False
        return self.transactions[-1].ends if self.transactions else not self.continues

    @property
    def commit_time(self) -> datetime | None:
        """When the last transaction committed."""
        return self.transactions[-1].commit_time if self.transactions else None


def _any_held(rows: Rows, keys: Mapping[QuarantinedKey, int]) -> bool:
    positions = rows.relation.key_positions
    if not positions:
        return True
    held = {key[0] if len(positions) == 1 else key for key in keys}
    return not held.isdisjoint(rows.keys(positions))


def _bulk_plans(
    bulk: Bulk, registry: Registry
) -> list[tuple[Rows, list[tuple[str, BulkPlan]]]] | None:
    """Give how the rows are written in bulk; None where some cannot be.

    Nor where the source has dropped a column that the read table has still: a row deleted and made
    again does not keep what was in it, which a line without that column would.
    """
    try:
        plans = [(rows, registry.bulk_plans(rows.relation)) for rows in bulk.rows]
    except ProjectionError:
        return None
    is_whole = all(plan.shape.full or plan.appends for _, of_rows in plans for _, plan in of_rows)
    return plans if is_whole else None

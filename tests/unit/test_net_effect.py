"""Net effects: merged and applied in their documented order, they end as one by one."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.operation import (
    Append,
    Delete,
    Move,
    Operation,
    Truncate,
    Update,
    Upsert,
    shape_of,
)
from cdc.projection.batch import Batch, NetEffect, Segment

METADATA = sa.MetaData()
ONE, TWO = (
    sa.Table(
        name,
        METADATA,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.Integer),
    )
    for name in ("one", "two")
)
LOG = sa.Table("log", METADATA, sa.Column("a", sa.Integer))
Rows = dict[Any, dict[str, Any]]


@dataclass
class Model:
    """A read database of plain dictionaries. A column that was never set holds its default."""

    tables: dict[str, Rows] = field(default_factory=lambda: {"one": {}, "two": {}})
    log: list[Any] = field(default_factory=list)

    def apply(self, operation: Operation) -> None:
        match operation:
            case Truncate(table=table):
                self.log.clear() if table is LOG else self.tables[table.name].clear()
            case Append(values=values):
                self.log.append(values)
            case Move():
                self.make_way(operation)
                self.move(operation)
            case Delete():
                self.rows(operation).pop(operation.key, None)
            case Update():
                if operation.key in self.rows(operation):
                    self.set(operation)
            case Upsert():
                default = {"id": operation.key, "a": "default", "b": "default"}
                self.rows(operation).setdefault(operation.key, default)
                self.set(operation)

    def rows(self, operation: Any) -> Rows:
        return self.tables[operation.shape.table.name]

    def set(self, operation: Upsert | Update) -> None:
        values = zip(operation.shape.columns, operation.values, strict=True)
        self.rows(operation)[operation.key].update(values)

    def make_way(self, move: Move) -> None:
        rows = self.rows(move)
        if move.key != move.old_key and move.old_key in rows:
            rows.pop(move.key, None)

    def move(self, move: Move) -> None:
        rows = self.rows(move)
        if move.old_key in rows:
            row = rows.pop(move.old_key)
            assert move.key not in rows, "the move violates the primary key"
            rows[move.key] = row | {"id": move.key}

    def apply_segment(self, segment: Segment) -> None:
        for table, effects in segment.items():
            if effects.truncated:
                self.apply(Truncate(table))
        self.apply_moves([m for effects in segment.values() for m in effects.moves.values()])
        for kind in ("deletes", "writes"):
            for effects in segment.values():
                self.apply_all(getattr(effects, kind).values())
        for effects in segment.values():
            self.apply_all(effects.appends)

    def apply_moves(self, moves: list[Move]) -> None:
        for move in moves:
            self.make_way(move)
        for move in moves:
            self.move(move)

    def apply_all(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self.apply(operation)


KEYS = st.integers(1, 4)
TABLES = st.sampled_from([ONE, TWO])
COLUMNS = st.sampled_from([("id", "a", "b"), ("b", "id", "a"), ("id", "a"), ("b", "id"), ("id",)])


@st.composite
def writes(draw: st.DrawFn) -> Operation:
    columns, key = draw(COLUMNS), draw(KEYS)
    shape = shape_of(draw(TABLES), columns, text=draw(st.booleans()))
    values = tuple(key if name == "id" else draw(st.integers(0, 9)) for name in columns)
    return draw(st.sampled_from([Upsert, Update])).of(shape, values)


@st.composite
def moves(draw: st.DrawFn) -> Operation:
    shape = shape_of(draw(TABLES), ("id",), text=draw(st.booleans()))
    return Move.between(shape, (draw(KEYS),), (draw(KEYS),))


def delete(table: sa.Table, key: int) -> Operation:
    return Delete.of(shape_of(table, ("id",), text=True), (key,))


def append(value: int) -> Operation:
    return Append.of(shape_of(LOG, ("a",), text=True), (value,))


OPERATIONS = st.one_of(
    writes(),
    writes(),
    moves(),
    st.builds(delete, TABLES, KEYS),
    st.builds(append, KEYS),
    st.builds(Truncate, st.sampled_from([ONE, TWO, LOG])),
)


def ended(operations: list[Operation], *, start: list[Operation]) -> tuple[Model, Model]:
    one_by_one, merged = Model(), Model()
    for model in (one_by_one, merged):
        for operation in start:
            model.apply(operation)
    effect = NetEffect()
    for operation in operations:
        one_by_one.apply(operation)
        effect.add(operation)
    for segment in effect.segments:
        merged.apply_segment(segment)
    return one_by_one, merged


def upsert(key: int, **values: int) -> Operation:
    return Upsert(ONE, id=key, **values)


def move(old: int, new: int) -> Operation:
    return Move.between(shape_of(ONE, ("id",), text=False), (old,), (new,))


@given(st.lists(OPERATIONS, max_size=14), st.lists(writes(), max_size=6))
@example([move(1, 9), move(2, 1), move(9, 2)], [upsert(1, a=1), upsert(2, a=2)])
@example([move(1, 2), move(1, 3)], [upsert(1, a=1)])
@example([upsert(1, a=1), move(1, 2), upsert(1, b=2)], [])
@example([delete(ONE, 1), upsert(1, a=1)], [upsert(1, a=5, b=5)])
def test_merged_operations_end_as_one_by_one(
    operations: list[Operation], start: list[Operation]
) -> None:
    one_by_one, merged = ended(operations, start=start)
    assert merged == one_by_one


def test_operations_on_one_key_become_one() -> None:
    effect = NetEffect()
    for number in range(10):
        effect.add(upsert(1, a=number, b=number))
        effect.add(Update(ONE, id=1, a=number))
    assert len(effect.segments) == 1
    assert len(effect.segments[0][ONE].writes) == 1


def test_a_row_that_came_and_went_leaves_only_a_delete() -> None:
    effect = NetEffect()
    effect.add(upsert(1, a=1, b=1))
    effect.add(Delete(ONE, id=1))
    effects = effect.segments[0][ONE]
    assert (len(effects.writes), len(effects.deletes)) == (0, 1)


def test_a_truncate_forgets_what_came_before() -> None:
    effect = NetEffect()
    for operation in (upsert(1, a=1), Delete(ONE, id=2), move(3, 4), Truncate(ONE)):
        effect.add(operation)
    effects = effect.segments[0][ONE]
    assert effects.truncated
    assert not (effects.writes)
    assert not (effects.deletes)
    assert not (effects.moves)


def test_a_batch_that_begins_inside_a_transaction_is_not_complete_before_that_ends() -> None:
    assert Batch().complete
    assert not Batch(continues=True).complete

"""Projectors: functions from a change to operations on read models."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import sqlalchemy as sa

from cdc.change import Change, Deleted, Truncated, Updated
from cdc.errors import ProjectionError
from cdc.names import TableName
from cdc.operation import (
    Delete,
    Move,
    Operation,
    ReadModel,
    Shape,
    Truncate,
    Update,
    Upsert,
    key_columns,
    shape_of,
    table_of,
)
from cdc.values import UNCHANGED

_WRITES: Final = (Upsert, Update, Delete)

Returned = Iterable[Operation] | Operation | None
Function = Callable[[Any], Returned]


class Projector(Protocol):
    """What the projection asks of a projector, whether it is a function or a mirror."""

    @property
    def name(self) -> str:
        """What metrics and errors call it."""

    @property
    def sources(self) -> tuple[TableName, ...]:
        """The source tables whose changes it wants."""

    @property
    def into(self) -> tuple[sa.Table, ...]:
        """The read tables it may write."""

    def operations(self, change: Change) -> Iterable[Operation]:
        """Say what the change means for the read tables; the same for the same change."""


@dataclass(slots=True)
class Calls:
    """How often a function was called, and whether it is running."""

    count: int = 0
    running: bool = False


@dataclass(frozen=True, eq=False)
class FunctionProjector:
    """A function marked with `@projector`. Calling it calls the function.

    `empties` are the tables a truncate of a source table empties: those no other projector writes.
    """

    name: str
    sources: tuple[TableName, ...]
    into: tuple[sa.Table, ...]
    function: Function
    on_truncate: Function | None = None
    empties: tuple[sa.Table, ...] = ()
    calls: Calls = field(default_factory=Calls, repr=False)

    def __call__(self, change: Change) -> Returned:
        return self.function(change)

    def emptying(self, tables: tuple[sa.Table, ...]) -> "FunctionProjector":
        """Give the same projector with the tables that a truncate empties."""
        return replace(self, empties=tables)

    def operations(self, change: Change) -> Iterable[Operation]:
        if isinstance(change, Truncated):
            return self._truncated(change)
        if isinstance(change, Updated) and change.old_key_values is not None:
            return self._moved(change, change.old_key_values)
        return self._called(self.function, change)

    def _called(self, function: Function, change: Change) -> list[Operation]:
        """Call the function, and let it be seen from outside that it runs."""
        calls = self.calls
        calls.count += 1
        calls.running = True
        try:
            returned = function(change)
            if isinstance(returned, _WRITES):
                return [self._allowed(returned)]
            return self._checked(returned)
        except GeneratorExit:  # who calls us is a generator, which it would end
            raise ProjectionError("raised GeneratorExit") from None
        finally:
            calls.running = False

    def _truncated(self, change: Truncated) -> list[Operation]:
        if self.on_truncate is not None:
            return self._called(self.on_truncate, change)
        return [Truncate(table) for table in self.empties]

    def _moved(self, change: Updated, old_key: tuple[Any, ...]) -> list[Operation]:
        """Project an update that changed the key.

        What the function would delete for the old key tells which read rows belong to it: where
        it deletes and writes as many rows of a table, each moves to its new key, so that columns
        the server did not send stay. Otherwise old rows are deleted and new ones written.
        """
        before = Deleted(change.relation, old_key, change.old_values)
        gone = self._called(self.function, before)
        written = self._called(self.function, change)
        moved = _moved_instead(gone, written, partial=change.partial)
        return [*moved, *written]

    def _checked(self, returned: Returned) -> list[Operation]:
        if returned is None:
            return []
        if not isinstance(returned, Iterable):
            return [self._allowed(returned)]
        return [self._allowed(operation) for operation in returned]

    def _allowed(self, operation: Operation) -> Operation:
        if isinstance(operation, _WRITES):
            self._require(operation.shape.table)
            return without_unchanged(operation)
        if isinstance(operation, Truncate):
            self._require(operation.table)
            return operation
        raise ProjectionError(
            f"returned a {type(operation).__name__}, which is no operation "
            "(Upsert, Update, Delete, Truncate)"
        )

    def _require(self, table: sa.Table) -> None:
        if table not in self.into:
            raise ProjectionError(f"wrote to {table.name}, which is not in its `into`")


def _moved_instead(
    gone: list[Operation], written: list[Operation], *, partial: bool
) -> list[Operation]:
    """Turn the deletes into moves, table by table, where they pair with the writes."""
    kept: list[Operation] = [operation for operation in gone if not isinstance(operation, Delete)]
    deletes = [operation for operation in gone if isinstance(operation, Delete)]
    writes = [operation for operation in written if isinstance(operation, Upsert | Update)]
    for table in dict.fromkeys(delete.shape.table for delete in deletes):
        old = [delete for delete in deletes if delete.shape.table is table]
        new = [write for write in writes if write.shape.table is table]
        if len(old) == len(new):
            kept += [
                _move(*pair) for pair in zip(old, new, strict=True) if pair[0].key != pair[1].key
            ]
        elif partial and any(isinstance(write, Update) for write in new):
            raise ProjectionError(
                f"cannot tell which of {len(old)} rows of {table.name} became which of {len(new)} "
                "when the key changed, and columns were not sent (unchanged TOAST)",
                hint="alter table ... replica identity full: then every column is sent",
            )
        else:
            kept += old
    return kept


def _move(delete: Delete, write: Upsert | Update) -> Move:
    shape = _key_shape(write.shape)
    return Move.between(shape, _key_values(delete, shape), _key_values(write, shape))


def _key_shape(shape: Shape) -> Shape:
    return shape.subset(key_columns(shape.table))


def _key_values(operation: Upsert | Update | Delete, shape: Shape) -> tuple[Any, ...]:
    values = dict(zip(operation.shape.columns, operation.values, strict=True))
    return tuple(values[name] for name in shape.columns)


def without_unchanged(operation: Upsert | Update | Delete) -> Operation:
    """Leave out the columns that were not sent: then it is an Update, for the row must exist."""
    for value in operation.values:  # not `in`, which compares
        if value is UNCHANGED:
            break
    else:
        return operation
    known = {
        name: value
        for name, value in zip(operation.shape.columns, operation.values, strict=True)
        if value is not UNCHANGED
    }
    if any(name not in known for name in key_columns(operation.shape.table)):
        raise ProjectionError(f"gave UNCHANGED as a key of {operation.shape.table.name}")
    shape = shape_of(operation.shape.table, tuple(known), text=operation.shape.text)
    return Update.of(shape, tuple(known.values()))


def projector(
    *tables: str,
    into: ReadModel | tuple[ReadModel, ...],
    name: str | None = None,
    on_truncate: Function | None = None,
) -> Callable[[Function], FunctionProjector]:
    """Mark a function as the projector of one or more source tables.

    `tables` are `schema.table` names. `into` is the read model, or a tuple of them, that it
    writes. It is called with each Inserted, Updated and Deleted and returns nothing, an operation
    or several. When a source table is truncated, the read tables in `into` that only this
    projector writes are emptied; `on_truncate` (called with a Truncated) says otherwise.

    Raise ValueError for a malformed table name, ProjectionError for something in `into` that is
    no read model.
    """
    sources = tuple(TableName.parse(table) for table in tables)
    models = into if isinstance(into, tuple) else (into,)
    read_tables = tuple(table_of(model) for model in models)

    def mark(function: Function) -> FunctionProjector:
        label = name or str(getattr(function, "__name__", "projector"))
        return FunctionProjector(label, sources, read_tables, function, on_truncate)

    return mark

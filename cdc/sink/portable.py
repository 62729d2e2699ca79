"""What writing net effects to MySQL and to SQLite has in common.

Neither knows constraints that wait, and both hold each row to them as it is written. So where the
end of a batch is unique but a step on the way is not (two rows swap the values of a unique column),
the rows involved are set aside: worked out in a scratch table without constraints, and put back.
"""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import sqlalchemy as sa

from cdc.operation import Append, Move, Shape, Update, Upsert, key_columns
from cdc.projection.batch import Effects, Segment
from cdc.projection.registry import sorted_tables
from cdc.sink.binding import Binding, Row
from cdc.sink.refused import RowsRefused, values_refused
from cdc.sink.sink import Sink

Writes = dict[tuple[type, Shape], list[Row]]


class PortableSink(Sink):
    """A sink whose commits are durable when they return: to flush them is nothing to do.

    `sign` stands for a parameter.
    """

    takes_lines = False

    def __init__(self, connection: sa.Connection, binding: Binding, *, sign: str) -> None:
        self._connection = connection
        self._binding = binding
        self._sign = sign
        self._preparer = connection.dialect.identifier_preparer

    @abstractmethod
    def _delete_rows(self, shape: Shape, rows: list[Row]) -> None:
        """Delete the rows with these keys."""

    @abstractmethod
    def _upsert(self, shape: Shape, rows: list[Row]) -> None:
        """Insert rows, or set the columns of those that have their keys."""

    @abstractmethod
    def _update(self, shape: Shape, rows: list[Row]) -> None:
        """Set the columns of the rows that have these keys."""

    @abstractmethod
    def _is_not_unique(self, error: BaseException | None) -> bool:
        """Tell whether the driver's error is a violated uniqueness."""

    @abstractmethod
    def _set_aside(self, table: sa.Table, writes: Writes) -> None:
        """Give the rows that have the writes' keys their new values, in one step."""

    def positions(self) -> tuple[int, int]:
        """Tell that what is committed is durable."""
        return 0, 0

    def together(self) -> AbstractContextManager[object]:
        """Send statements one by one, as ever."""
        return nullcontext()

    def defer_constraints(self) -> None:
        """Do nothing: constraints wait where they are declared so, or nowhere."""

    def fits(self, values: Row) -> bool:  # noqa: ARG002  nearly every row does
        """Tell yes."""
        return True

    def copied_directly(self) -> bool:
        """Tell no: rows are always looked for."""
        return False

    def apply(self, segment: Segment, *, in_sets: bool = False) -> None:  # noqa: ARG002  no sets
        """Write one segment of net effects: children's deletes first, parents' writes first."""
        tables = sorted_tables(segment) if len(segment) > 1 else list(segment)
        for table in reversed(tables):
            if segment[table].truncated:
                # Not `truncate`: MySQL commits by it.
                self._run(f"delete from {self._name(table)}")
        for table in tables:
            for move in segment[table].moves.values():
                self._move(table, move)
        for table in reversed(tables):
            self._delete(segment[table])
        for table in tables:
            self._write(table, segment[table])

    def _move(self, table: sa.Table, move: Move) -> None:
        """Change a key; a stale row that stands where a row moves to makes way for it."""
        key = key_columns(table)
        name, is_key = self._name(table), self._equal(key)
        new, old = self._key(move.shape, move.key), self._key(move.shape, move.old_key)
        if not self._run(f"select 1 from {name} where {is_key}", [old]).fetchall():
            return
        self._run(f"delete from {name} where {is_key} and not ({is_key})", [(*new, *old)])
        assignments = ", ".join(f"{self._quote(c)} = {self._sign}" for c in key)
        self._run(f"update {name} set {assignments} where {is_key}", [(*new, *old)])

    def _key(self, shape: Shape, key: Any) -> Row:
        """Bind a key, in the order of the read table's key columns."""
        columns = key_columns(shape.table)
        values = (key,) if len(columns) == 1 else key
        return self._binding.row(shape.subset(columns), values)

    def _delete(self, effects: Effects) -> None:
        by_shape: dict[Shape, list[Row]] = defaultdict(list)
        for delete in effects.deletes.values():
            by_shape[delete.shape].append(delete.values)
        for shape, rows in by_shape.items():
            self._delete_rows(shape, self._binding.rows(shape, rows))

    def _write(self, table: sa.Table, effects: Effects) -> None:
        """Write a table's rows; where a step is not unique, all of them in one."""
        writes = self._bound_writes(effects)
        try:
            self._write_each(writes)
        except sa.exc.DBAPIError as error:
            if not self._is_not_unique(error.orig):
                raise
            self._set_aside(table, writes)
            self._write_each(writes)  # the rows that are new; the others are as they should be
        self._append(effects.appends)

    def _bound_writes(self, effects: Effects) -> Writes:
        by_shape: Writes = defaultdict(list)
        for write in effects.writes.values():
            by_shape[type(write), write.shape].append(write.values)
        return {
            (kind, shape): self._binding.rows(shape, rows)
            for (kind, shape), rows in by_shape.items()
        }

    def _write_each(self, writes: Writes) -> None:
        for (kind, shape), rows in writes.items():
            if kind is Upsert:
                self._upsert(shape, rows)
            elif kind is Update and not_key(shape):
                self._update(shape, rows)

    def _append(self, appends: Sequence[Append]) -> None:
        by_shape: dict[Shape, list[Row]] = defaultdict(list)
        for append in appends:
            by_shape[append.shape].append(append.values)
        for shape, rows in by_shape.items():
            self._insert(self._name(shape.table), shape, self._binding.rows(shape, rows))

    def _insert(self, name: str, shape: Shape, rows: list[Row]) -> None:
        placeholders = ", ".join([self._sign] * len(shape.columns))
        # VALUES in capitals and alone at the end: so PyMySQL sends many rows in one statement.
        self._run(f"INSERT INTO {name} ({self._columns(shape)}) VALUES ({placeholders})", rows)

    def _update_each(self, name: str, shape: Shape, rows: list[Row]) -> int:
        """Set the columns of rows of a table by their keys; give how many there were."""
        changed, key = not_key(shape), key_columns(shape.table)
        order = [shape.columns.index(c) for c in (*changed, *key)]
        assignments = ", ".join(f"{self._quote(c)} = {self._sign}" for c in changed)
        statement = f"update {name} set {assignments} where {self._equal(key)}"
        return self._run(statement, [tuple(row[p] for p in order) for row in rows]).rowcount

    def _run(self, statement: str, rows: Sequence[Row] = ()) -> "sa.CursorResult[Any]":
        with values_refused():
            if len(rows) == 1:
                return self._connection.exec_driver_sql(statement, rows[0])
            return self._connection.exec_driver_sql(statement, list(rows) or None)

    def _keys(self, shape: Shape, rows: Iterable[Row]) -> list[Row]:
        """Give the keys of bound rows, in the order of the read table's key."""
        order = [shape.columns.index(c) for c in key_columns(shape.table)]
        return [tuple(row[position] for position in order) for row in rows]

    def _equal(self, columns: Iterable[str]) -> str:
        return " and ".join(f"{self._quote(c)} = {self._sign}" for c in columns)

    def _columns(self, shape: Shape) -> str:
        return ", ".join(map(self._quote, shape.columns))

    def _quote(self, name: str) -> str:
        return str(self._preparer.quote_identifier(name))

    def _name(self, table: sa.Table) -> str:
        return ".".join(self._quote(part) for part in (table.schema, table.name) if part)


def not_key(shape: Shape) -> list[str]:
    """Name the columns that are not part of the key."""
    key = key_columns(shape.table)
    return [name for name in shape.columns if name not in key]


def tied(table: sa.Table) -> RowsRefused:
    """Say that a table's rows cannot be set aside."""
    return RowsRefused(
        f"a unique constraint of {table.name} is violated on the way, and its rows cannot be set "
        "aside: a foreign key would change others with them"
    )

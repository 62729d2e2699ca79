"""Values as the drivers of MySQL and SQLite take them, exact or refused.

Neither server minds a value of another type as Postgres does: SQLite stores what it is given, and
MySQL makes the best of it. So the values are held to their columns' types here.
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from cdc.operation import Shape
from cdc.projection.mirror import PostgresType
from cdc.sink.refused import RowsRefused
from cdc.sink.storage import Storage, storage_of

Row = tuple[Any, ...]
Bind = Callable[[Any], Any]
Limit = Callable[["sa.Column[Any]"], int | None]

# What the drivers send as it is. A class that they only know a base of, they send as they like.
_SENT: Final = (bool, int, float, Decimal, str, bytes, datetime, date, time, timedelta)
_WANTED: Final[tuple[tuple[type, tuple[type, ...]], ...]] = (
    (sa.Enum, (object,)),
    (sa.String, (str,)),
    (sa.Integer, (int,)),
    (sa.Float, (int, float, Decimal)),
    (sa.Numeric, (int, float, Decimal)),
    (sa.LargeBinary, (bytes, bytearray, memoryview)),
    (sa.DateTime, (datetime,)),
    (sa.Date, (date,)),
    (sa.Time, (time,)),
)
_TRUTH: Final = {"t": 1, "f": 0, "true": 1, "false": 0}


class Binding:
    """Converts rows of any shape for one dialect.

    `limit` gives how many characters a column holds, where the server would cut what is longer.
    """

    def __init__(self, dialect: sa.Dialect, limit: Limit) -> None:
        self._dialect = dialect
        self._limit = limit
        self._bindings: dict[Shape, Callable[[Row], Row]] = {}

    def rows(self, shape: Shape, rows: Sequence[Row]) -> list[Row]:
        """Convert rows; raise RowsRefused, telling the column, where a value does not fit."""
        bind = self._bindings.get(shape)
        if bind is None:
            bind = self._bindings[shape] = self._binder(shape)
        return [bind(row) for row in rows]

    def row(self, shape: Shape, row: Row) -> Row:
        """Convert one row; raise RowsRefused."""
        return self.rows(shape, [row])[0]

    def stored(self, column: "sa.Column[Any]", text: str) -> Any:
        """Give what a mirror's column keeps of a text that the source printed."""
        return self._bind(column, text=True)(text)

    def _binder(self, shape: Shape) -> Callable[[Row], Row]:
        columns = {column.name: column for column in shape.table.columns}
        binds = [self._bind(columns[name], text=shape.text) for name in shape.columns]
        key = [i for i, name in enumerate(shape.columns) if columns[name].primary_key]

        def bind(row: Row) -> Row:
            if any(row[i] is None for i in key):  # SQLite would take it for "the next number"
                raise RowsRefused("a key is null")
            try:
                return tuple([None if v is None else b(v) for b, v in zip(binds, row, strict=True)])
            except Exception:  # noqa: BLE001  a type's processor may raise anything
                raise self._refused(shape, binds, row) from None

        return bind

    @staticmethod
    def _refused(shape: Shape, binds: list[Bind], row: Row) -> RowsRefused:
        """Find the column whose value cannot be bound."""
        for name, bind, value in zip(shape.columns, binds, row, strict=True):
            try:
                bind(value) if value is not None else None
            except Exception as error:  # noqa: BLE001  likewise
                ours = isinstance(error, RowsRefused)
                said = str(error) if ours else f"{type(error).__name__} while binding its value"
                return RowsRefused(f"column {name}: {said}")
        return RowsRefused("its values cannot be bound")

    def _bind(self, column: "sa.Column[Any]", *, text: bool) -> Bind:
        if text and isinstance(column.type, PostgresType):
            return self._of_text(column, storage_of(column.type))
        if text:
            return _same
        return self._of_value(column)

    def _of_text(self, column: "sa.Column[Any]", storage: Storage) -> Bind:
        """Convert Postgres's text to what a mirror's column is kept as."""
        match storage:
            case Storage.SMALLINT | Storage.INTEGER | Storage.BIGINT:
                return int
            case Storage.BOOLEAN:
                return _TRUTH.__getitem__
            case Storage.BYTES:
                return self._limited(column, _bytes)
            case _:
                return self._limited(column, _same)

    def _of_value(self, column: "sa.Column[Any]") -> Bind:
        """Convert a Python value as the column's SQLAlchemy type says, if it is one of its own."""
        type_ = column.type.dialect_impl(self._dialect)
        process = type_.bind_processor(self._dialect) or _same
        wanted = next((wanted for kind, wanted in _WANTED if isinstance(type_, kind)), (object,))
        limited = self._limited(column, _same) if isinstance(type_, sa.String) else _same
        in_utc, is_day = isinstance(type_, sa.DateTime), isinstance(type_, sa.Date)

        def bind(value: Any) -> Any:
            if not isinstance(value, wanted) or (is_day and isinstance(value, datetime)):
                raise RowsRefused(f"a {type(value).__name__} is no value of its type")
            value = process(_in_utc(value) if in_utc else value)
            return _sendable(limited(value))

        return bind

    def _limited(self, column: "sa.Column[Any]", bind: Bind) -> Bind:
        """Refuse what the server would cut, or might: it takes trailing spaces for nothing."""
        limit = self._limit(column)
        if limit is None:
            return bind

        def checked(value: Any) -> Any:
            bound = bind(value)
            if bound is not None and len(bound) > limit:
                raise RowsRefused(f"a value is longer than the {limit} it holds")
            return bound

        return checked


def _same(value: Any) -> Any:
    return value


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("\\x"))


def _in_utc(value: Any) -> Any:
    """Neither dialect keeps a zone: what has one is stored as UTC."""
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _sendable(value: Any) -> Any:
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if isinstance(value, UUID):
        value = str(value)
    if value is not None and type(value) not in _SENT:
        raise RowsRefused(f"a {type(value).__name__} cannot be sent")
    if isinstance(value, float) and math.isnan(value):
        raise RowsRefused("NaN is no value there: declare the column as a string")
    return value

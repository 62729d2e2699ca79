"""What to do to a read row: the operations projectors return."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from operator import itemgetter
from typing import Any, Final, NamedTuple, Self

import sqlalchemy as sa

from cdc.errors import ProjectionError
from cdc.values import Unchanged

_NUMBERS: Final = (int, float, Decimal)
_SHAPES: Final = "cdc shapes"

ReadModel = Any
"""A read table: a `sqlalchemy.Table`, or a class mapped to one."""

Key = Any
"""A read row's key: the value of the one key column, or a tuple of several."""


@dataclass(frozen=True, eq=False)
class Shape:
    """Which columns of which read table a row of values is for.

    `text` tells that the values are Postgres's text, not Python values. `full` tells that no
    column of the table is left out. `key_of` picks the key out of the values.
    """

    table: sa.Table
    columns: tuple[str, ...]
    text: bool
    full: bool
    key_of: Callable[[tuple[Any, ...]], Key]

    def subset(self, columns: tuple[str, ...]) -> "Shape":
        """Give the shape of fewer or other columns of the same table and kind."""
        return shape_of(self.table, columns, text=self.text)


def shape_of(table: sa.Table, columns: tuple[str, ...], *, text: bool) -> Shape:
    """Give the one shape of these columns; all of the table's key columns are among them.

    Shapes are kept with their table: each session has tables of its own, which go with it.
    """
    shapes: dict[tuple[tuple[str, ...], bool], Shape] = vars(table).setdefault(_SHAPES, {})
    known = shapes.get((columns, text))
    return known or shapes.setdefault((columns, text), _new_shape(table, columns, text=text))


def _new_shape(table: sa.Table, columns: tuple[str, ...], *, text: bool) -> Shape:
    positions = [columns.index(name) for name in key_columns(table)]
    full = {column.name for column in table.columns if column.computed is None} == set(columns)
    return Shape(table, columns, text, full, itemgetter(*positions) if positions else _no_key)


def _no_key(_values: tuple[Any, ...]) -> Key:
    return None


def key_columns(table: sa.Table) -> tuple[str, ...]:
    """Name the key columns of a read table, in order."""
    return tuple(column.name for column in table.primary_key.columns)


def table_of(target: ReadModel) -> sa.Table:
    """Give the table of a read model; raise ProjectionError where there is none."""
    if isinstance(target, sa.Table):
        return target
    table = getattr(sa.inspect(target, raiseerr=False), "local_table", None)
    if isinstance(table, sa.Table):
        return table
    raise ProjectionError(f"{target!r} is no read model: neither a Table nor a mapped class")


def _shape_for(target: ReadModel, names: tuple[str, ...]) -> Shape:
    """Resolve the names a projector used (attributes or columns) against its read model."""
    table = table_of(target)
    known = _column_names(target, table)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            suggestion = f'; did you mean "{near[0]}"?' if near else ""
            raise ProjectionError(f'read model {table.name} has no column "{name}"{suggestion}')
    columns = tuple(known[name] for name in names)
    missing = [name for name in key_columns(table) if name not in columns]
    if missing:
        raise ProjectionError(f'an operation on {table.name} lacks its key column "{missing[0]}"')
    return shape_of(table, columns, text=False)


class _KeyColumn(NamedTuple):
    """A key column: its name, its position in a shape, and the types its values may have.

    Operations of a batch are merged by key, so that a key must be spelled in one way. `surely` are
    types whose values need no further look.
    """

    name: str
    position: int
    allowed: tuple[type, ...]
    surely: frozenset[type]

    def require(self, table: sa.Table, value: Any) -> None:
        """Raise ProjectionError where the value is no key."""
        if not isinstance(value, self.allowed):
            raise _no_key_of(table, self.name, value, self.allowed)
        if value.__hash__ is None:
            raise _no_key_of(table, self.name, value, (Hashable,))


@cache
def _planned(target: ReadModel, names: tuple[str, ...]) -> tuple[Shape, tuple[_KeyColumn, ...]]:
    """Give the shape of the names a projector used, and its key columns."""
    shape = _shape_for(target, names)
    return shape, tuple(_key_column(column, shape) for column in shape.table.primary_key.columns)


def _key_column(column: "sa.Column[Any]", shape: Shape) -> _KeyColumn:
    allowed = _allowed(column.type)
    surely = frozenset(kind for kind in allowed if kind.__hash__ is not None) - {Hashable}
    return _KeyColumn(column.name, shape.columns.index(column.name), allowed, surely)


def _allowed(of: sa.types.TypeEngine[Any]) -> tuple[type, ...]:
    if isinstance(of, sa.types.TypeDecorator | sa.types.UserDefinedType):
        return (Hashable,)  # what it binds is its own affair
    try:
        python_type = of.python_type
    except NotImplementedError:
        return (Hashable,)
    # Numbers that are equal are one key, whatever their types.
    natural = _NUMBERS if issubclass(python_type, _NUMBERS) else (python_type,)
    return (*natural, Unchanged)


def _no_key_of(table: sa.Table, name: str, value: Any, allowed: tuple[type, ...]) -> Exception:
    given = "None" if value is None else f"a {type(value).__name__}"
    wanted = " or ".join(kind.__name__ for kind in allowed if kind is not Unchanged)
    return ProjectionError(
        f'the key column "{name}" of {table.name} was given {given}: a key is {wanted}, everywhere'
    )


def _column_names(target: ReadModel, table: sa.Table) -> dict[str, str]:
    if target is table:
        return {column.key: column.name for column in table.columns}
    mapper = sa.inspect(target)
    return {attribute.key: attribute.columns[0].name for attribute in mapper.column_attrs}


class _Write:
    """A row of values for a read table."""

    __slots__ = ("shape", "values")

    shape: Shape
    values: tuple[Any, ...]

    def __init__(self, target: ReadModel, /, **values: Any) -> None:
        self.shape, key = _planned(target, tuple(values))
        self.values = row = tuple(values.values())
        for column in key:
            if (value := row[column.position]).__class__ not in column.surely:
                column.require(self.shape.table, value)

    @classmethod
    def of(cls, shape: Shape, values: tuple[Any, ...]) -> Self:
        """Build from a resolved shape, unchecked."""
        write = cls.__new__(cls)
        write.shape = shape
        write.values = values
        return write

    @property
    def key(self) -> Key:
        return self.shape.key_of(self.values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Write):
            return NotImplemented
        return (type(self), self.shape, self.values) == (type(other), other.shape, other.values)

    def __hash__(self) -> int:
        return hash((type(self), self.shape, self.values))

    def __repr__(self) -> str:
        columns = ", ".join(self.shape.columns)
        return f"<{type(self).__name__} {self.shape.table.name}: {columns}>"


class Upsert(_Write):
    """Insert the row, or set these columns of the row that has its key.

    Raise ProjectionError for an unknown column or a missing key column.
    """

    __slots__ = ()


class Update(_Write):
    """Set these columns of the row that has this key; do nothing where there is none.

    Raise ProjectionError for an unknown column or a missing key column.
    """

    __slots__ = ()


class Append(_Write):
    """Add a row to a table without a key (`insert_only` mirrors)."""

    __slots__ = ()


class Delete(_Write):
    """Delete the row with this key: give the key columns, and nothing else.

    Raise ProjectionError for an unknown or missing key column.
    """

    __slots__ = ()

    def __init__(self, target: ReadModel, /, **key: Any) -> None:
        super().__init__(target, **key)
        table = self.shape.table
        extra = set(self.shape.columns) - set(key_columns(table))
        if extra:
            raise ProjectionError(f'Delete on {table.name}: "{extra.pop()}" is no key column')


class Move(_Write):
    """Give the row with `old_key` the key in the values; its other columns stay.

    Made by the daemon when a source key changes, never by a projector.
    """

    __slots__ = ("old_key",)

    old_key: Key

    @classmethod
    def between(cls, shape: Shape, old: tuple[Any, ...], new: tuple[Any, ...]) -> Self:
        """Build from the shape of the key columns and their values before and after."""
        move = cls.of(shape, new)
        move.old_key = shape.key_of(old)
        return move


class Truncate:
    """Delete every row of the read table."""

    __slots__ = ("table",)

    def __init__(self, target: ReadModel, /) -> None:
        self.table = table_of(target)

    def __repr__(self) -> str:
        return f"<Truncate {self.table.name}>"


Operation = Upsert | Update | Delete | Truncate | Move | Append

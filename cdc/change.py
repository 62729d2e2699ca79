"""What happened in the write database: relations, rows and changes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import psycopg
from msgspec import Struct

from cdc.errors import UnknownColumn, ValueUnreadable
from cdc.names import TableName
from cdc.values import UNCHANGED, Text, loader


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the stream describes it.

    `decoded_as` is the type its text is read as: its own, a domain's base type, or text.
    `typmod` is there where the plugin sends it.
    """

    name: str
    type_oid: int
    decoded_as: int
    typmod: int | None = None


@dataclass(frozen=True)
class Relation:
    """A source table as last described: its columns in order and the names of its key columns.

    `news` are the columns that are not as the catalog had them when it was read, for they changed
    since; `gone` those that its rows still have, and the table no longer when it was read.
    """

    name: TableName
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    news: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """The hash, once: relations are looked up for every change."""
        return hash((self.name, self.columns, self.key))

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def positions(self) -> dict[str, int]:
        return {column.name: position for position, column in enumerate(self.columns)}

    @cached_property
    def readers(self) -> dict[str, tuple[int, Callable[[str], Any]]]:
        """Each column's position, and what makes a Python value of its text."""
        return {
            column.name: (position, loader(column.decoded_as))
            for position, column in enumerate(self.columns)
        }

    @cached_property
    def key_positions(self) -> tuple[int, ...]:
        return tuple(self.positions[name] for name in self.key)

    @cached_property
    def key_part(self) -> "Relation":
        """The same table reduced to its key columns: what a key is a row of."""
        columns = tuple(self.columns[position] for position in self.key_positions)
        return Relation(self.name, columns, self.key)

    def key_of(self, values: tuple[Text, ...]) -> tuple[Text, ...]:
        """Pick the key's values out of a whole row's."""
        return tuple([values[position] for position in self.key_positions])


class Row(Mapping[str, Any]):
    """One row: column names to Python values, each decoded when it is looked at."""

    __slots__ = ("_values", "relation")

    def __init__(self, relation: Relation, values: tuple[Text, ...]) -> None:
        self.relation = relation
        self._values = values

    def __getitem__(self, name: str) -> Any:
        """Give the column's value: a natural Python value, None, or UNCHANGED.

        Raise UnknownColumn (a KeyError), or ValueUnreadable (a ValueError) where Python's type
        cannot hold the value.
        """
        try:
            position, load = self.relation.readers[name]
        except KeyError:
            raise _unknown_column(self.relation, name) from None
        value = self._values[position]
        if not isinstance(value, str):
            return value
        try:
            return load(value)
        except (ValueError, ArithmeticError, RecursionError, psycopg.DataError):
            raise ValueUnreadable(
                f'column "{name}" of {self.relation.name} holds a value that Python\'s own type '
                f'cannot; read it as text: row.text("{name}")'
            ) from None

    def text(self, name: str) -> Text:
        """Give the column's value as the server printed it."""
        return self._values[self._position(name)]

    def _position(self, name: str) -> int:
        try:
            return self.relation.positions[name]
        except KeyError:
            raise _unknown_column(self.relation, name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.relation.names)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<row of {self.relation.name}: {', '.join(self.relation.names)}>"


def _unknown_column(relation: Relation, name: str) -> UnknownColumn:
    near = get_close_matches(name, relation.names, n=1)
    suggestion = f'; did you mean "{near[0]}"?' if near else ""
    return UnknownColumn(f'{relation.name} has no column "{name}"{suggestion}')


# The structs below are made a million times a minute: no garbage-collector header (they hold
# strings and a long-lived relation, no cycles), and rows are wrapped only when looked at.


class _OfRelation(Struct, frozen=True, gc=False):
    relation: Relation

    def __repr__(self) -> str:
        """Name the table; values of rows are shown nowhere."""
        return f"<{type(self).__name__} {self.relation.name}>"


class Inserted(_OfRelation, frozen=True, gc=False):
    """A row came into being. `copied` tells a row that existed before streaming began."""

    values: tuple[Text, ...]
    copied: bool = False

    @property
    def row(self) -> Row:
        return Row(self.relation, self.values)

    @property
    def key(self) -> Row:
        return Row(self.relation.key_part, self.relation.key_of(self.values))


class Updated(_OfRelation, frozen=True, gc=False):
    """A row changed.

    `old_key_values` is set where the key itself changed; `old_values` is the whole row before,
    where the table has REPLICA IDENTITY FULL; `partial` tells that a value is UNCHANGED.
    """

    values: tuple[Text, ...]
    old_key_values: tuple[Text, ...] | None = None
    old_values: tuple[Text, ...] | None = None
    partial: bool = False

    @property
    def row(self) -> Row:
        return Row(self.relation, self.values)

    @property
    def key(self) -> Row:
        """The key after the update."""
        return Row(self.relation.key_part, self.relation.key_of(self.values))

    @property
    def old_key(self) -> Row | None:
        """The key before, where the update changed it."""
        if self.old_key_values is None:
            return None
        return Row(self.relation.key_part, self.old_key_values)

    @property
    def old(self) -> Row | None:
        """The whole row before the update, with REPLICA IDENTITY FULL."""
        return None if self.old_values is None else Row(self.relation, self.old_values)


class Deleted(_OfRelation, frozen=True, gc=False):
    """A row is gone. `old_values` is the whole row, with REPLICA IDENTITY FULL."""

    key_values: tuple[Text, ...]
    old_values: tuple[Text, ...] | None = None

    @property
    def key(self) -> Row:
        return Row(self.relation.key_part, self.key_values)

    @property
    def old(self) -> Row | None:
        """The whole row as it was, with REPLICA IDENTITY FULL."""
        return None if self.old_values is None else Row(self.relation, self.old_values)


class Truncated(_OfRelation, frozen=True, gc=False):
    """All rows of the table are gone."""


Change = Inserted | Updated | Deleted | Truncated


def updated(
    relation: Relation,
    values: tuple[Text, ...],
    *,
    old_key: tuple[Text, ...] | None,
    old_values: tuple[Text, ...] | None,
) -> Updated:
    """Build an Updated from what either plugin sends.

    Values that were not sent are filled from the old row or key where those hold them; an old key
    equal to the new one is dropped.
    """
    partial = UNCHANGED in values
    if partial:
        values = _filled(relation, values, old_key=old_key, old_values=old_values)
        partial = UNCHANGED in values
    if old_key is not None and old_key == relation.key_of(values):
        old_key = None
    return Updated(relation, values, old_key, old_values, partial)


def _filled(
    relation: Relation,
    values: tuple[Text, ...],
    *,
    old_key: tuple[Text, ...] | None,
    old_values: tuple[Text, ...] | None,
) -> tuple[Text, ...]:
    if old_values is not None:
        known = dict(enumerate(old_values))
    elif old_key is not None:
        known = dict(zip(relation.key_positions, old_key, strict=True))
    else:
        return values
    return tuple(
        known.get(position, UNCHANGED) if value is UNCHANGED else value
        for position, value in enumerate(values)
    )

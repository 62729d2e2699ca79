"""What is the same in all of wal2json's lines of one table and action: the text between values.

Nothing inside a JSON string can look like the text between two values: a quote stands there only
after a backslash.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, NamedTuple, Self, TypeVar

import msgspec
import numpy as np

from cdc.change import Relation
from cdc.names import TableName
from cdc.source.cut_rows import Column, Places
from cdc.source.frame import HEADER_BYTES, Numbers
from cdc.source.nulls import NUMBERS
from cdc.values import BYTEA

ACTION_AT: Final = HEADER_BYTES + len(b'{"action":"')
"""Where in a frame the action's letter is."""
VALUE: Final = b'"value":'
END: Final = b"}]}"
INSERT, DELETE = "ID"

_TRUE, _FALSE, _NULL, _QUOTE = b'tfn"'
_WORDS: Final = {word[0]: int.from_bytes(word, "big") for word in (b"true", b"fals", b"null")}

# By first byte and length (6: more than 5): whether it may be a value that is no string.
_FITS: Final = np.zeros((256, 7), np.bool_)
_FITS[list(b"-0123456789"), 1:] = True
_FITS[[_NULL, _TRUE], 4] = _FITS[_FALSE, 5] = True

UNREADABLE: Final = (IndexError, UnicodeDecodeError, RecursionError, msgspec.MsgspecError)
"""What is raised where something is no line."""

T = TypeVar("T")
F = TypeVar("F", bound="Form")


class Described(NamedTuple):
    """A reported table's relation, and which of its columns are generated: those are left out.

    Where it is `doubtful`, a null in a number column may be none, and is looked at one by one.
    `in_bulk` tells whether its rows are to be set apart.
    """

    relation: Relation
    generated: frozenset[str]
    doubtful: bool
    in_bulk: bool


Describe = Callable[[TableName], Described]
"""Gives what is known of a reported table."""


class ReportedColumn(msgspec.Struct, gc=False):
    """A column, as a line names it."""

    name: str
    typeoid: int


class Line(msgspec.Struct, gc=False):
    """What is the same in all lines of one form."""

    action: str
    schema: str
    table: str
    columns: list[ReportedColumn] = []
    identity: list[ReportedColumn] = []


_decode: Final = msgspec.json.Decoder(Line).decode


@dataclass(eq=False)
class Form:
    """What lines of one table and action have in common: the text before each value."""

    line: Line
    before: list[bytes]
    described: Described

    @classmethod
    def of(cls, places: Places, frame: int, describe: Describe) -> "Form":
        """Give the form of a frame's line; raise an error of UNREADABLE where it is none."""
        start, end = int(places.starts[frame]), int(places.ends[frame])
        line = _decode(places.data[start + HEADER_BYTES : end])
        if len(line.action) != 1:
            raise IndexError
        return cls(line, _texts_before(line), describe(TableName(line.schema, line.table)))

    @property
    def relation(self) -> Relation:
        """The table's relation."""
        return self.described.relation

    @cached_property
    def columns(self) -> list[ReportedColumn]:
        """The columns whose values a line has, in order."""
        return [*self.line.columns, *self.line.identity]

    def sources(self, columns: Sequence[T]) -> dict[str, T]:
        """Give the columns that a row's values come from, by name."""
        if self.line.action == DELETE:
            old = self.identity(columns)
            return {name: old[name] for name in self.relation.key}
        named = zip(self.line.columns, columns, strict=False)
        return {column.name: at for column, at in named if column.name in self.relation.positions}

    def identity(self, columns: Sequence[T]) -> dict[str, T]:
        """Give the columns of the replica identity, by name."""
        first = len(self.line.columns)
        named = zip(self.line.identity, columns[first:], strict=True)
        return {column.name: at for column, at in named}

    def is_bytea(self, number: int) -> bool:
        """Tell whether a value is a bytea."""
        return self.columns[number].typeoid == BYTEA

    @property
    def doubtful(self) -> list[int]:
        """The values of which a null may be none."""
        if not self.described.doubtful:
            return []
        return [n for n, column in enumerate(self.columns) if column.typeoid in NUMBERS]

    @property
    def is_usual(self) -> bool:
        """Tell whether the rows have just the relation's columns, in order."""
        relation, generated, _, in_bulk = self.described
        columns = [c for c in self.line.columns if c.name not in generated]
        is_whole = [(c.name, c.typeoid) for c in columns] == [
            (c.name, c.type_oid) for c in relation.columns
        ]
        identity = {(c.name, c.typeoid) for c in self.line.identity}
        key = {(c.name, c.type_oid) for c in relation.columns if c.name in relation.key}
        # A whole old row has no place among those set apart, and is part of a change.
        has_key = identity >= key if in_bulk else identity == key
        if self.line.action == DELETE:
            return has_key
        return is_whole and (has_key or self.line.action == INSERT)


def by_relation(forms: Iterable[F]) -> list[list[F]]:
    """Group forms by table; leave out tables with an unusual one, or of two descriptions.

    A table that was renamed is reported under either name, and may have been changed between.
    """
    groups: defaultdict[TableName, list[F]] = defaultdict(list)
    for form in forms:
        groups[form.relation.name].append(form)
    return [
        group
        for group in groups.values()
        if all(one.is_usual and one.relation == group[0].relation for one in group)
    ]


def _texts_before(line: Line) -> list[bytes]:
    """Give the text before each value's mark: what follows the LSN, then what joins two values."""
    texts = []
    head = f'"schema":{_json(line.schema)},"table":{_json(line.table)},'
    for part, columns in (("columns", line.columns), ("identity", line.identity)):
        for number, column in enumerate(columns):
            joint = "},{" if number else f'{head}"{part}":[{{'
            texts.append(f'{joint}"name":{_json(column.name)},"typeoid":{column.typeoid},')
        head = "}]," if columns else head
    return [text.encode() for text in texts]


@lru_cache(4096)
def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()


def places_of(places: Places, word: bytes) -> Numbers:
    """Find where a word of eight bytes is."""
    words = np.ndarray(
        (max(0, len(places.data) - 7),), dtype="<u8", buffer=places.data, strides=(1,)
    )
    return np.flatnonzero(words == int.from_bytes(word, "little"))


class Marks(NamedTuple):
    """Where values are announced in the frames, of which some are rows.

    By frame, how many there are, and the number of the first; by number, where it is.
    """

    rows: Numbers
    counts: Numbers
    first: Numbers
    at: Numbers

    @classmethod
    def of(cls, places: Places, rows: Numbers) -> Self:
        """Find them."""
        at = places_of(places, VALUE)
        of_frame = np.searchsorted(places.starts, at, side="right") - 1
        counts = np.bincount(of_frame, minlength=len(places.starts))
        return cls(rows, counts, np.cumsum(counts) - counts, at)


def values(places: Places, starts: Numbers, ends: Numbers, *, is_bytea: bool = False) -> Column:
    """Find the texts of values that stand between places; raise IndexError where one is none."""
    first, lengths = places.bytes[starts], ends - starts
    is_text, is_null = first == _QUOTE, first == _NULL
    is_bool = (first == _TRUE) | (first == _FALSE)
    usual = np.where(
        is_text, places.bytes[ends - 1] == _QUOTE, _FITS[first, np.minimum(lengths, 6)]
    )
    if not (usual.all() and _are_whole(places, starts[is_bool | is_null])):
        raise IndexError
    ends = np.where(is_bool, starts + 1, np.where(is_null, starts, ends - is_text))
    starts = starts + is_text
    return Column(starts, ends, is_null if is_null.any() else None, is_bytea)


def _are_whole(places: Places, literals: Numbers) -> bool:
    """Tell whether true, false and null stand there, by their first letters and lengths."""
    words = places.uint32[literals]
    is_false = words == _WORDS[_FALSE]
    is_whole = is_false | (words == _WORDS[_TRUE]) | (words == _WORDS[_NULL])
    return bool(is_whole.all() and (places.bytes[literals[is_false] + 4] == ord("e")).all())

"""Rows that are still where they came in, in the frames: cut out as lines, or as changes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from operator import eq
from typing import Final, NamedTuple, Protocol, Self, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from cdc import lines
from cdc.change import Change, Deleted, Inserted, Relation, Updated
from cdc.errors import ProtocolError
from cdc.rows import Key
from cdc.source.frame import HEADER_BYTES, Frame, Numbers, Stretch
from cdc.values import Text

Bytes: TypeAlias = NDArray[np.uint8]
Flags: TypeAlias = NDArray[np.bool_]

_TAB, _NEWLINE, _BLANK = b"\t\n "
_SEPARATOR_BYTES: Final = 1
_BYTEA_PREFIX: Final = b"\\x"


class Places:
    """Frames that stand together in some data, and where each begins and ends."""

    data: bytes
    starts: Numbers
    ends: Numbers
    bytes: Bytes
    uint32: NDArray[np.uint32]
    """The four bytes from any position on, as a number."""

    @classmethod
    def of(cls, stretch: Stretch) -> Self:
        """Find the frames of a stretch."""
        places = cls()
        places.data, places.starts, places.ends = stretch.data, stretch.starts, stretch.ends
        places.bytes = np.frombuffer(stretch.data, np.uint8)
        places.uint32 = np.ndarray(
            (max(0, len(stretch.data) - 3),), dtype=">u4", buffer=stretch.data, strides=(1,)
        )
        return places

    def picked(self, index: Numbers) -> "Places":
        """Give some of the frames, where they are."""
        places = Places()
        places.data, places.bytes, places.uint32 = self.data, self.bytes, self.uint32
        places.starts, places.ends = self.starts[index], self.ends[index]
        return places

    def frames(self, index: Numbers) -> list[Frame]:
        """Give frames by their index."""
        view = memoryview(self.data)
        bounds = zip(self.starts[index].tolist(), self.ends[index].tolist(), strict=True)
        return [view[start:end] for start, end in bounds]

    @cached_property
    def kinds(self) -> Bytes:
        """The first byte of each frame's message."""
        return self.bytes[self.starts + HEADER_BYTES]


class Column(NamedTuple):
    """Where a column's value is in each row; `is_null` None: nowhere.

    What stands before a value, three bytes at least, or one where it is NULL, is no value's.
    Where `is_bytea`, the values lack their prefix.
    """

    starts: Numbers
    ends: Numbers
    is_null: Flags | None
    is_bytea: bool = False

    def of_rows(self, index: Numbers) -> "Column":
        """Give the column of some rows."""
        is_null = None if self.is_null is None else self.is_null[index]
        return Column(self.starts[index], self.ends[index], is_null, self.is_bytea)

    def between(self, begin: int, end: int) -> "Column":
        """Give the column of the rows from one to another."""
        is_null = None if self.is_null is None else self.is_null[begin:end]
        if is_null is not None and not is_null.any():
            is_null = None
        return Column(self.starts[begin:end], self.ends[begin:end], is_null, self.is_bytea)

    @property
    def prefixed(self) -> tuple[Flags, bytes] | None:
        """Tell which values begin with something that is not in the frames, and with what."""
        if not self.is_bytea:  # an empty text is quoted, so that it is no NULL
            which, prefix = self.starts == self.ends, lines.EMPTY
        else:
            which, prefix = np.ones(len(self.starts), np.bool_), _BYTEA_PREFIX
        if self.is_null is not None:
            which &= ~self.is_null
        return (which, prefix) if which.any() else None


def cut_texts(places: Places, column: Column) -> list[str]:
    """Cut a column's values out, each byte as the character of the same number."""
    begins = column.starts - _SEPARATOR_BYTES
    lengths = column.ends - begins
    cut = places.bytes[joined(begins, lengths)]
    cut[np.cumsum(lengths) - lengths] = _NEWLINE
    texts = cut.tobytes().decode("latin-1").split("\n")
    if len(texts) == len(begins) + 1:
        return texts[1:]
    bounds = zip(column.starts.tolist(), column.ends.tolist(), strict=True)
    return [places.data[start:end].decode("latin-1") for start, end in bounds]


def are_equal(places: Places, one: Column, other: Column) -> bool:
    """Tell whether two columns without NULL have the same values in every row."""
    lengths = one.ends - one.starts
    if (lengths != other.ends - other.starts).any():
        return False
    some = lengths > 0
    at, and_at = (joined(column.starts[some], lengths[some]) for column in (one, other))
    return bool((places.bytes[at] == places.bytes[and_at]).all())


class Encoding(Protocol):
    """How values stand in the frames."""

    special: bytes
    """A value that holds one of these bytes is not what it is in a line."""

    def decode(self, value: bytes) -> str:
        """Give the text of a value; raise ProtocolError where it is none."""


def _no_text() -> ProtocolError:
    return ProtocolError(
        "the plugin sent a value that is no text in UTF-8",
        hint="its database has another encoding, or is damaged there",
    )


class PlainText:
    """As the server's text, in UTF-8."""

    special = lines.SPECIAL

    def decode(self, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _no_text() from None


class JsonText:
    """As the inside of JSON strings: what a line would quote is escaped by a backslash there."""

    special = b"\\"

    def decode(self, value: bytes) -> str:
        try:
            if b"\\" in value:
                return msgspec.json.decode(b'"' + value + b'"', type=str)
            return value.decode()
        except (UnicodeDecodeError, msgspec.DecodeError):
            raise _no_text() from None


class Together:
    """Rows of several relations that have as many columns.

    What is asked of one relation's rows is cut out for all: for each alone it would take longer,
    where there are few of each.
    """

    def __init__(self, places: Places, columns: Sequence[Column], encoding: Encoding) -> None:
        self._places = places
        self._columns = columns
        self._encoding = encoding
        self._texts: dict[int, list[str]] = {}

    @cached_property
    def lines(self) -> list[bytes]:
        """A line for each row, of all columns."""
        return _Cut(self._places, self._columns, self._encoding).lines()

    def texts(self, position: int) -> list[str] | None:
        """Give a column's texts; None where some rows have NULL there."""
        column = self._columns[position]
        if column.is_null is not None:
            return None
        if position not in self._texts:
            self._texts[position] = _texts(self._places, column, self._encoding)
        return self._texts[position]


def _texts(places: Places, column: Column, encoding: Encoding) -> list[str]:
    """Give a column's texts; it has no NULL."""
    found = cut_texts(places, column)
    together = "".join(found)
    if not together.isascii() or "\\" in together:
        found = [encoding.decode(one.encode("latin-1")) for one in found]
    return [f"\\x{one}" for one in found] if column.is_bytea else found


@dataclass(eq=False)
class CutRows:
    """Rows of one relation, with the places of the relation's columns in all of them.

    They may be among others, from the row `first` on, with the same columns.
    """

    relation: Relation
    inserted: Sequence[bool]
    deleted: Sequence[bool]
    places: Places
    columns: Sequence[Column]
    encoding: Encoding
    among: Together | None = None
    first: int = 0

    def keys(self, positions: Sequence[int]) -> list[Key]:
        """Give the texts of the key columns, by their positions in the relation."""
        parts = [self._texts(position) for position in positions]
        return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))

    def _texts(self, position: int) -> list[str]:
        """Give a column's texts; it has no NULL."""
        if self.among is not None and (texts := self.among.texts(position)) is not None:
            return texts[self.first : self.first + len(self.inserted)]
        return _texts(self.places, self.columns[position], self.encoding)

    def changes(self) -> list[Change]:
        """Give the change that each row is, without an old row; no row's key has changed."""
        relation = self.relation
        rows = zip(*map(self._values, self.columns), strict=True)
        return [
            Inserted(relation, row)
            if inserted
            else Deleted(relation, relation.key_of(row))
            if deleted
            else Updated(relation, row)
            for row, inserted, deleted in zip(rows, self.inserted, self.deleted, strict=True)
        ]

    def _values(self, column: Column) -> Sequence[Text]:
        if column.is_null is None:
            return _texts(self.places, column, self.encoding)
        values: list[Text] = [None] * len(column.starts)
        index = np.flatnonzero(~column.is_null)
        if len(index):
            there = Column(column.starts[index], column.ends[index], None, column.is_bytea)
            for position, text in zip(
                index.tolist(), _texts(self.places, there, self.encoding), strict=True
            ):
                values[position] = text
        return values

    def lines(self, picked: Sequence[int], positions: Sequence[int]) -> list[bytes]:
        """Encode columns of the rows picked: cut out of the frames, with separators put between."""
        if self.among is not None and self._are_all(positions):
            every, first = self.among.lines, self.first
            return [every[first + row] for row in picked]
        return self._cut(picked, positions).lines()

    def _are_all(self, positions: Sequence[int]) -> bool:
        return len(positions) == len(self.columns) and all(map(eq, positions, count()))

    def text(self, picked: Sequence[int], positions: Sequence[int]) -> bytes:
        """Encode them together, each line with its end."""
        if self.among is not None and self._are_all(positions):
            return lines.joined(self.lines(picked, positions))
        return self._cut(picked, positions).text()

    def _cut(self, picked: Sequence[int], positions: Sequence[int]) -> "_Cut":
        places, columns = self.places, [self.columns[position] for position in positions]
        if len(picked) < len(self.inserted):
            index = np.array(picked, np.int64)
            places = self.places.picked(index)
            columns = [column.of_rows(index) for column in columns]
        return _Cut(places, columns, self.encoding)


class _Cut:
    """Lines cut out of the frames, each value with a separator before it."""

    def __init__(self, places: Places, columns: Sequence[Column], encoding: Encoding) -> None:
        self._places = places
        self._columns = columns
        self._encoding = encoding
        shape = (len(columns[0].starts), len(columns))
        begins, lengths = np.empty(shape, np.int64), np.empty(shape, np.int64)
        prefixes = [column.prefixed for column in columns]
        for number, (column, prefixed) in enumerate(zip(columns, prefixes, strict=True)):
            begins[:, number] = column.starts - _SEPARATOR_BYTES
            if prefixed is not None:
                which, prefix = prefixed
                begins[which, number] -= len(prefix)
            lengths[:, number] = column.ends - begins[:, number]
        self._ends = np.cumsum(lengths).reshape(shape)
        self._begins = self._ends - lengths
        self._bytes = places.bytes[joined(begins.ravel(), lengths.ravel())]
        self._written: Counter[int] = Counter()
        self._separate()
        for number, prefixed in enumerate(prefixes):
            if prefixed is not None:
                self._prefix(number, *prefixed)

    def _separate(self) -> None:
        self._bytes[self._begins] = _TAB
        self._bytes[self._begins[:, 0]] = _NEWLINE
        rows, columns = self._begins.shape
        self._written.update({_TAB: rows * (columns - 1), _NEWLINE: rows})

    def _prefix(self, number: int, which: Flags, prefix: bytes) -> None:
        at = self._begins[which, number] + _SEPARATOR_BYTES
        for offset, byte in enumerate(prefix):
            self._bytes[at + offset] = byte
            self._written[byte] += len(at)

    def text(self) -> bytes:
        """Give the lines, each with its end."""
        cut = self._bytes.tobytes()
        return cut[1:] + b"\n" if self._is_plain(cut) else lines.joined(self._encoded())

    def lines(self) -> list[bytes]:
        """Give a line for each row."""
        cut = self._bytes.tobytes()
        return cut.split(b"\n")[1:] if self._is_plain(cut) else self._encoded()

    def _is_plain(self, cut: bytes) -> bool:
        """Tell whether all special bytes are those written here."""
        alone = len(self._columns) == 1 and b"\\." in cut  # such a line would end the data
        return not alone and all(
            np.count_nonzero(self._bytes == byte) == self._written[byte]
            for byte in self._encoding.special
        )

    def _encoded(self) -> list[bytes]:
        """Give the lines, of rows with something special encoded from their values."""
        rows = self._special_rows()
        found = self._bytes.tobytes().split(b"\n")[1:]
        for row in rows:
            found[row] = lines.encode([self._value(column, row) for column in self._columns])
        return found

    def _special_rows(self) -> Sequence[int]:
        """Find the rows with something special, and blank it, so that lines can be told apart."""
        is_special = np.zeros(256, np.bool_)
        is_special[list(self._encoding.special)] = True
        special = is_special[self._bytes]
        special[self._begins] = False
        self._bytes[special] = _BLANK
        if len(self._columns) == 1:
            return range(len(self._begins))
        rows = np.searchsorted(self._ends[:, -1], np.flatnonzero(special), side="right")
        return np.unique(rows).tolist()  # type: ignore[no-any-return]

    def _value(self, column: Column, row: int) -> str | None:
        if column.is_null is not None and column.is_null[row]:
            return None
        value = self._places.data[column.starts[row] : column.ends[row]]
        text = self._encoding.decode(value)
        return f"\\x{text}" if column.is_bytea else text


def joined(begins: Numbers, lengths: Numbers) -> Numbers:
    """Give the positions of all bytes of ranges, one range after the other; none is empty."""
    steps = np.ones(int(lengths.sum()), np.int64)
    steps[:1] = begins[:1]
    steps[np.cumsum(lengths)[:-1]] = begins[1:] - (begins[:-1] + lengths[:-1] - 1)
    return np.cumsum(steps, out=steps)

"""Set rows apart from many of pgoutput's frames at once: columns found for all rows in a few steps.

The usual row has every value, as text or NULL. A table that has anything else among these frames
is left to be read change by change (`cdc.source.pgoutput`), which also tells what is wrong with a
frame that is not as it should be.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cdc import lines
from cdc.change import Relation
from cdc.rows import Key, Rows
from cdc.source.frame import HEADER_BYTES, Frame, Stretch

Numbers: TypeAlias = NDArray[np.int64]
Bytes: TypeAlias = NDArray[np.uint8]

_OID, _MARKER = HEADER_BYTES + 1, HEADER_BYTES + 5
_COUNT, _TUPLE = HEADER_BYTES + 6, HEADER_BYTES + 8
_INSERT, _UPDATE, _DELETE = b"IUD"
_NEW, _KEY, _OLD = b"NKO"
_TEXT, _NULL = b"tn"
_LENGTH_BYTES: Final = 4
_TAB, _NEWLINE, _QUOTE, _BLANK = b"\t\n\x01 "

# What a kind of message means here: rows; what may stand between them; anything else has them all
# read one by one, for it may change what rows mean.
_ROW, _BETWEEN = 2, 1
_MEANING: Final = np.zeros(256, np.uint8)
_MEANING[list(b"IUD")] = _ROW
_MEANING[list(b"BCMOY")] = _BETWEEN

_IS_SPECIAL: Final = np.zeros(256, np.bool_)
_IS_SPECIAL[list(lines.SPECIAL)] = True


class Described(NamedTuple):
    """A relation, how many columns are sent for it, and which of them are kept; None: all."""

    relation: Relation
    sent: int
    kept: tuple[int, ...] | None


def set_apart(
    frames: Sequence[Frame], described: Mapping[int, Described]
) -> tuple[list[Rows], list[Frame]]:
    """Give the rows of the relations described (by oid), and the frames that are left, in order."""
    try:
        return _set_apart(_Places(frames), frames, described)
    except IndexError:  # a frame ends before its time: reading it alone tells which
        return [], list(frames)


def _set_apart(
    places: "_Places", frames: Sequence[Frame], described: Mapping[int, Described]
) -> tuple[list[Rows], list[Frame]]:
    meaning = _MEANING[places.kinds]
    if not meaning.all():
        return [], list(frames)
    rows = np.flatnonzero(meaning == _ROW)
    oids = places.uint32[places.starts[rows] + _OID]
    wanted = np.isin(oids, list(described))
    rows, oids = rows[wanted], oids[wanted]
    left = np.ones(len(frames), np.bool_)
    found: list[Rows] = []
    for oid in np.unique(oids).tolist():
        index = rows[oids == oid]
        one = _rows([frames[i] for i in index.tolist()], described[oid])
        if one is not None:
            found.append(one)
            left[index] = False
    return found, [frames[i] for i in np.flatnonzero(left).tolist()]


class _Places:
    """Frames joined, and where each begins and ends."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        stretch = Stretch(frames)
        self.data = stretch.data
        self.bytes: Bytes = np.frombuffer(self.data, np.uint8)
        # The four bytes from any position on, as a number.
        self.uint32: NDArray[np.uint32] = np.ndarray(
            (max(0, len(self.data) - 3),), dtype=">u4", buffer=self.data, strides=(1,)
        )
        lengths = np.array(stretch.lengths, np.int64)
        self.ends: Numbers = np.cumsum(lengths)
        self.starts: Numbers = self.ends - lengths

    def picked(self, index: Numbers) -> "_Places":
        """Give some of the frames."""
        view = memoryview(self.data)
        bounds = zip(self.starts[index].tolist(), self.ends[index].tolist(), strict=True)
        return _Places([view[start:end] for start, end in bounds])

    @cached_property
    def kinds(self) -> Bytes:
        """The kind of each frame's message."""
        return self.bytes[self.starts + HEADER_BYTES]

    @cached_property
    def text(self) -> str:
        """The bytes as characters of the same numbers: to cut keys out of."""
        return self.data.decode("latin-1")


class _Column(NamedTuple):
    """Where a column's kind byte and value are in each row; `is_null` None: nowhere."""

    kind_at: Numbers
    starts: Numbers
    ends: Numbers
    is_null: NDArray[np.bool_] | None

    def of_rows(self, index: Numbers, moved: Numbers) -> "_Column":
        """Give the column of some rows, which stand so many bytes further on."""
        is_null = None if self.is_null is None else self.is_null[index]
        kind_at, starts, ends = (
            positions[index] + moved for positions in (self.kind_at, self.starts, self.ends)
        )
        return _Column(kind_at, starts, ends, is_null)


def _rows(frames: Sequence[Frame], described: Described) -> "PgOutputRows | None":
    """Find the columns of a relation's rows; None where a row is not the usual one."""
    places = _Places(frames)
    starts, kinds = places.starts, places.kinds
    marker = places.bytes[starts + _MARKER]
    deleted = kinds == _DELETE
    as_usual = np.where(deleted, (marker == _KEY) | (marker == _OLD), marker == _NEW)
    counts = places.uint32[starts + _COUNT - 2] & 0xFFFF
    if not as_usual.all() or (counts != described.sent).any():
        return None
    columns = _columns(places, starts + _TUPLE, described.sent)
    if columns is None or (columns[-1].ends != places.ends).any():
        return None
    kept = columns if described.kept is None else [columns[i] for i in described.kept]
    if any(kept[i].is_null is not None for i in described.relation.key_positions):
        return None
    return PgOutputRows(described.relation, kinds == _INSERT, deleted, places, kept)


def _columns(places: _Places, position: Numbers, count: int) -> list[_Column] | None:
    columns = []
    for _ in range(count):
        kind = places.bytes[position]
        is_text = kind == _TEXT
        if is_text.all():
            starts = position + 1 + _LENGTH_BYTES
            column = _Column(position, starts, starts + places.uint32[position + 1], None)
        elif (is_text | (kind == _NULL)).all():
            starts = position + 1
            starts[is_text] += _LENGTH_BYTES
            ends = starts.copy()
            ends[is_text] += places.uint32[position[is_text] + 1]
            column = _Column(position, starts, ends, ~is_text)
        else:
            return None
        columns.append(column)
        position = column.ends
    return columns or None


class PgOutputRows:
    """Rows of one relation, still where they are in the frames."""

    def __init__(
        self,
        relation: Relation,
        inserted: NDArray[np.bool_],
        deleted: NDArray[np.bool_],
        places: _Places,
        columns: list[_Column],
    ) -> None:
        """Take the places of the relation's columns in all rows."""
        self.relation = relation
        self.inserted: Sequence[bool] = inserted.tolist()
        self.deleted: Sequence[bool] = deleted.tolist()
        self._places = places
        self._columns = columns

    def keys(self, positions: Sequence[int]) -> list[Key]:
        """Give the texts of the key columns, by their positions in the relation."""
        parts = [self._texts(self._columns[position]) for position in positions]
        return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))

    def _texts(self, column: _Column) -> list[str]:
        text = self._places.text
        bounds = zip(column.starts.tolist(), column.ends.tolist(), strict=True)
        found = [text[start:end] for start, end in bounds]
        if "".join(found).isascii():
            return found
        return [one.encode("latin-1").decode(errors="surrogateescape") for one in found]

    def lines(self, picked: Sequence[int], positions: Sequence[int]) -> list[bytes]:
        """Encode columns of the rows picked: cut out of the frames, with separators put between."""
        return self._cut(picked, positions).lines()

    def text(self, picked: Sequence[int], positions: Sequence[int]) -> bytes:
        """Encode them together, each line with its end."""
        return self._cut(picked, positions).text()

    def _cut(self, picked: Sequence[int], positions: Sequence[int]) -> "_Cut":
        places, columns = self._places, [self._columns[position] for position in positions]
        if len(picked) < len(self.inserted):
            index = np.array(picked, np.int64)
            places = self._places.picked(index)
            moved = places.starts - self._places.starts[index]
            columns = [column.of_rows(index, moved) for column in columns]
        return _Cut(places, columns)


class _Cut:
    """Lines cut out of the frames: each value's kind byte becomes the separator before it."""

    def __init__(self, places: _Places, columns: Sequence[_Column]) -> None:
        self._places = places
        self._bytes = places.bytes.copy()
        self._edges = np.zeros(len(self._bytes) + 1, np.bool_)
        self._columns = columns
        self._empty = 0
        for number, column in enumerate(columns):
            self._bytes[column.kind_at] = _TAB if number else _NEWLINE
            self._keep(column.kind_at, column.kind_at + 1)
            self._keep(column.starts, column.ends)
            self._quote_empty(column)
        self._kept = np.logical_xor.accumulate(self._edges[:-1])

    def _keep(self, starts: Numbers, ends: Numbers) -> None:
        """Note ranges to keep: they do not overlap, so each edge turns keeping on or off."""
        self._edges[starts] ^= True
        self._edges[ends] ^= True

    def _quote_empty(self, column: _Column) -> None:
        """Write an empty text into the place of its length, so that it is no NULL."""
        empty = column.starts == column.ends
        if column.is_null is not None:
            empty &= ~column.is_null
        if empty.any():
            after = column.kind_at[empty] + 1
            self._bytes[after] = self._bytes[after + 1] = _QUOTE
            self._keep(after, after + len(lines.EMPTY))
            self._empty += len(after)

    def text(self) -> bytes:
        """Give the lines, each with its end."""
        cut = self._bytes[self._kept].tobytes()
        return cut[1:] + b"\n" if self._is_plain(cut) else lines.joined(self._quoted_lines())

    def lines(self) -> list[bytes]:
        """Give a line for each row."""
        cut = self._bytes[self._kept].tobytes()
        return cut.split(b"\n")[1:] if self._is_plain(cut) else self._quoted_lines()

    def _quoted_lines(self) -> list[bytes]:
        """Encode the rows anew that hold something to quote."""
        special = self._special_rows()
        encoded = self._bytes[self._kept].tobytes().split(b"\n")[1:]
        for row in special:
            encoded[row] = lines.encode([self._value(column, row) for column in self._columns])
        return encoded

    def _value(self, column: _Column, row: int) -> str | None:
        if column.is_null is not None and column.is_null[row]:
            return None
        value = self._places.data[column.starts[row] : column.ends[row]]
        return value.decode(errors="surrogateescape")

    def _is_plain(self, cut: bytes) -> bool:
        rows, columns = len(self._columns[0].kind_at), len(self._columns)
        return (
            cut.count(b"\n") == rows
            and cut.count(b"\t") == rows * (columns - 1)
            and b"\r" not in cut
            and cut.count(lines.QUOTE) == len(lines.EMPTY) * self._empty
            and not (columns == 1 and b"\\." in cut)
        )

    def _special_rows(self) -> Sequence[int]:
        """Find the rows with something to quote, and blank it, so that lines can be told apart."""
        special = _IS_SPECIAL[self._places.bytes] & self._kept
        for column in self._columns:
            special[column.kind_at] = False
        self._bytes[special] = _BLANK
        found = np.flatnonzero(special)
        if len(self._columns) == 1:
            return range(len(self._columns[0].kind_at))
        rows = np.searchsorted(self._columns[0].kind_at, found, side="right") - 1
        return np.unique(rows).tolist()  # type: ignore[no-any-return]

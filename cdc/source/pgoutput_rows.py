"""Tell the rows in many of pgoutput's frames: columns found for all rows in a few steps.

They are set apart, or become changes in their places (`cdc.source.apart`).

The usual row has every value, as text or NULL. A table that has anything else among these frames
is left to be read change by change (`cdc.source.pgoutput`), which also tells what is wrong with a
frame that is not as it should be.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdc.change import Relation
from cdc.rows import Rows
from cdc.source.apart import Apart, Left
from cdc.source.cut_rows import Column, CutRows, Flags, Places, PlainText, Together
from cdc.source.frame import HEADER_BYTES, Numbers, Stretch

_OID, _MARKER = HEADER_BYTES + 1, HEADER_BYTES + 5
_COUNT, _TUPLE = HEADER_BYTES + 6, HEADER_BYTES + 8
_INSERT, _DELETE = b"ID"
_NEW, _KEY, _OLD = b"NKO"
_TEXT, _NULL = b"tn"
_LENGTH_BYTES: Final = 4
_FEW_ROWS: Final = 1000  # of a relation: with more it takes no longer to cut each out by itself

# What a kind of message means here: rows; what may stand between them; anything else has them all
# read one by one, for it may change what rows mean.
_ROW, _BETWEEN = 2, 1
_MEANING: Final = np.zeros(256, np.uint8)
_MEANING[list(b"IUD")] = _ROW
_MEANING[list(b"BCMOY")] = _BETWEEN


class Described(NamedTuple):
    """A relation, how many columns are sent for it, and which of them are kept; None: all.

    `in_bulk` tells whether its rows are to be set apart.
    """

    relation: Relation
    sent: int
    kept: tuple[int, ...] | None
    in_bulk: bool


Describe = Callable[[int], Described | None]
"""Gives the relation with an oid; None where its rows are to be read one by one."""


def set_apart(stretch: Stretch, describe: Describe) -> tuple[list[Rows], Left]:
    """Give rows of the relations for bulk, and what is left, in order."""
    try:
        return _set_apart(Places.of(stretch), describe)
    except IndexError:  # a frame ends before its time: reading it alone tells which
        return [], list(stretch)


def _set_apart(places: Places, describe: Describe) -> tuple[list[Rows], Left]:
    meaning = _MEANING[places.kinds]
    apart = Apart(places)
    rows = np.flatnonzero(meaning == _ROW) if meaning.all() else np.empty(0, np.int64)
    oids = places.uint32[places.starts[rows] + _OID]
    order = np.argsort(oids, kind="stable")
    groups = _groups(places, rows[order], oids[order], describe)
    for kind in dict.fromkeys(map(_kind, groups)):
        alike = [group for group in groups if _kind(group) == kind]
        for group, found in _found(places, alike, kind):
            apart.put(found, group.at, in_bulk=kind.in_bulk)
    return apart.rows, apart.left()


class _Group(NamedTuple):
    """The rows of a relation: which frames they are."""

    described: Described
    at: Numbers


def _groups(
    places: Places, rows: Numbers, oids: NDArray[np.uint32], describe: Describe
) -> list[_Group]:
    """Group rows, which are ordered by oid; leave out relations with one that is not as usual."""
    begins = np.flatnonzero(np.concatenate(([len(oids) > 0], oids[1:] != oids[:-1])))
    bounds = [*begins.tolist(), len(rows)]
    known = [
        _Group(described, rows[begin:end])
        for oid, begin, end in zip(oids[begins].tolist(), bounds, bounds[1:], strict=False)
        if (described := describe(oid)) is not None
    ]
    # Not two oids of one table: their rows have one order. Partitions are such where a publication
    # names them.
    times = Counter(group.described.relation.name for group in known)
    return [
        group
        for group in known
        if times[group.described.relation.name] == 1 and _is_usual(places, *group)
    ]


def _is_usual(places: Places, described: Described, index: Numbers) -> bool:
    """Tell whether each row has just a new tuple, or one that tells its key, of all columns."""
    starts = places.starts[index]
    marker = places.bytes[starts + _MARKER]
    is_old = (marker == _KEY) | ((marker == _OLD) & described.in_bulk)  # else it is a row's change
    as_usual = np.where(places.kinds[index] == _DELETE, is_old, marker == _NEW)
    counts = places.uint32[starts + _COUNT - 2] & 0xFFFF
    return bool(as_usual.all() and (counts == described.sent).all())


class _Kind(NamedTuple):
    """What groups that are looked at together have in common: how many columns, what becomes."""

    sent: int
    in_bulk: bool
    of_few_rows: bool


def _kind(group: _Group) -> _Kind:
    described, at = group
    return _Kind(described.sent, described.in_bulk, len(at) < _FEW_ROWS)


def _found(
    places: Places, groups: Sequence[_Group], kind: _Kind
) -> Iterator[tuple[_Group, CutRows]]:
    """Find the columns of the rows of one kind, together; pass over groups with an odd row.

    For each group alone it would take longer where there are many of few rows.
    """
    index = np.concatenate([group.at for group in groups])
    columns, sound = _columns(places, index, kind.sent)
    together = None
    if kind.in_bulk and kind.of_few_rows and len(groups) > 1 and sound.all():
        together = Together(places.picked(index), columns, PlainText())
    end = 0
    for group in groups:
        begin, end = end, end + len(group.at)
        if sound[begin:end].all():
            own = [column.between(begin, end) for column in columns]
            rows = _rows(places.picked(group.at), group.described, own)
            if rows is not None:
                if group.described.kept is None:
                    rows.among, rows.first = together, begin
                yield group, rows


def _rows(places: Places, described: Described, columns: Sequence[Column]) -> CutRows | None:
    """Give a relation's rows; None where a key has no value."""
    kept = columns if described.kept is None else [columns[i] for i in described.kept]
    if any(kept[i].is_null is not None for i in described.relation.key_positions):
        return None
    inserted, deleted = places.kinds == _INSERT, places.kinds == _DELETE
    return CutRows(
        described.relation, inserted.tolist(), deleted.tolist(), places, kept, PlainText()
    )


def _columns(places: Places, index: Numbers, count: int) -> tuple[list[Column], Flags]:
    """Find the columns of rows, and tell which have text or NULL in all, and nothing after."""
    position = places.starts[index] + _TUPLE
    sound = np.ones(len(index), np.bool_)
    columns = []
    for _ in range(count):
        kind = places.bytes[position]
        is_text = kind == _TEXT
        if is_text.all():
            starts = position + 1 + _LENGTH_BYTES
            column = Column(starts, starts + places.uint32[position + 1], None)
        else:
            is_null = ~is_text
            sound &= is_text | (kind == _NULL)
            starts = position + 1
            starts[is_text] += _LENGTH_BYTES
            ends = starts.copy()
            ends[is_text] += places.uint32[position[is_text] + 1]
            column = Column(starts, ends, is_null)
        columns.append(column)
        # Of a row that is not sound no more is looked at.
        position = column.ends if sound.all() else np.where(sound, column.ends, position)
    return columns, sound & (position == places.ends[index])

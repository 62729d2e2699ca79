"""Set rows apart from many of pgoutput's frames at once: columns found for all rows in a few steps.

The usual row has every value, as text or NULL. A table that has anything else among these frames
is left to be read change by change (`cdc.source.pgoutput`), which also tells what is wrong with a
frame that is not as it should be.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from cdc.change import Relation
from cdc.rows import Rows
from cdc.source.apart import Apart, Left
from cdc.source.cut_rows import Column, CutRows, Places, PlainText
from cdc.source.frame import HEADER_BYTES, Numbers, Stretch

_OID, _MARKER = HEADER_BYTES + 1, HEADER_BYTES + 5
_COUNT, _TUPLE = HEADER_BYTES + 6, HEADER_BYTES + 8
_INSERT, _DELETE = b"ID"
_NEW, _KEY, _OLD = b"NKO"
_TEXT, _NULL = b"tn"
_LENGTH_BYTES: Final = 4

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
    for oid, described in _alone(np.unique(oids).tolist(), describe):
        index = rows[oids == oid]
        one = _rows(places.picked(index), described)
        if one is not None:
            apart.put(one, index, in_bulk=described.in_bulk)
    return apart.rows, apart.left()


def _alone(oids: list[int], describe: Describe) -> list[tuple[int, Described]]:
    """Give those that are described; not two of one table: their rows have one order.

    Partitions are such where a publication names them.
    """
    known = [(oid, described) for oid in oids if (described := describe(oid)) is not None]
    times = Counter(described.relation.name for _, described in known)
    return [(oid, described) for oid, described in known if times[described.relation.name] == 1]


def _rows(places: Places, described: Described) -> CutRows | None:
    """Find the columns of a relation's rows; None where a row is not the usual one."""
    starts, kinds = places.starts, places.kinds
    marker = places.bytes[starts + _MARKER]
    deleted = kinds == _DELETE
    is_old = (marker == _KEY) | ((marker == _OLD) & described.in_bulk)  # else it is a row's change
    as_usual = np.where(deleted, is_old, marker == _NEW)
    counts = places.uint32[starts + _COUNT - 2] & 0xFFFF
    if not as_usual.all() or (counts != described.sent).any():
        return None
    columns = _columns(places, starts + _TUPLE, described.sent)
    if columns is None or (columns[-1].ends != places.ends).any():
        return None
    kept = columns if described.kept is None else [columns[i] for i in described.kept]
    if any(kept[i].is_null is not None for i in described.relation.key_positions):
        return None
    inserted = kinds == _INSERT
    return CutRows(
        described.relation, inserted.tolist(), deleted.tolist(), places, kept, PlainText()
    )


def _columns(places: Places, position: Numbers, count: int) -> list[Column] | None:
    columns = []
    for _ in range(count):
        kind = places.bytes[position]
        is_text = kind == _TEXT
        if is_text.all():
            starts = position + 1 + _LENGTH_BYTES
            column = Column(starts, starts + places.uint32[position + 1], None)
        elif (is_text | (kind == _NULL)).all():
            starts = position + 1
            starts[is_text] += _LENGTH_BYTES
            ends = starts.copy()
            ends[is_text] += places.uint32[position[is_text] + 1]
            column = Column(starts, ends, ~is_text)
        else:
            return None
        columns.append(column)
        position = column.ends
    return columns or None

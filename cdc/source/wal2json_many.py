"""Tell the rows of many tables in wal2json's lines, where each has too few to be looked at alone.

Which form a line has is told by its head: the text from the schema's name to the first value. Then
the text between all values of all lines is compared at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cdc.change import Relation
from cdc.source.cut_rows import (
    Column,
    CutRows,
    Flags,
    JsonText,
    Places,
    Together,
    are_equal,
    joined,
)
from cdc.source.frame import HEADER_BYTES, Numbers
from cdc.source.wal2json_lines import (
    ACTION_AT,
    DELETE,
    END,
    INSERT,
    VALUE,
    Describe,
    Form,
    by_relation,
    places_of,
    values,
)
from cdc.values import BYTEA

_SCHEMA: Final = b'"schema"'


class Marks(NamedTuple):
    """Where values are announced in some frames, the rows.

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


@dataclass(eq=False)
class _Few(Form):
    """A form, and its lines, which are few; where their values are, by line and value."""

    index: Numbers  # which frames
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    is_null: NDArray[np.bool_]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The numbers of the values that a row's columns come from, by name."""
        return self.sources(range(len(self.before)))

    @cached_property
    def keys(self) -> list[tuple[int, int]]:
        """The numbers of each key column's value and of the one before, which may be the same."""
        new, old = self.numbers, self.identity(range(len(self.before)))
        return [(new[name], old.get(name, new[name])) for name in self.relation.key]

    def column(self, number: int) -> Column:
        """Give a value of all lines."""
        is_null = self.is_null[:, number]
        return Column(
            self.starts[:, number], self.ends[:, number], is_null if is_null.any() else None
        )


def found_together(
    places: Places, marks: Marks, describe: Describe
) -> Iterator[tuple[CutRows, Numbers, bool]]:
    """Give the rows of each table, which frames they are, and whether they are to be set apart.

    Raise IndexError where a line is not as wal2json writes them.
    """
    groups = by_relation(_forms(places, marks, describe))
    keys_stay = _keys_stay(places, [form for group in groups for form in group])
    groups = [
        group
        for group in groups
        if all(_is_sound(places, form, keys_stay=keys_stay) for form in group)
    ]
    for _, alike in groupby(sorted(groups, key=_kind), _kind):
        yield from _rows(places, list(alike))


def _forms(places: Places, marks: Marks, describe: Describe) -> list[_Few]:
    """Find the forms of all rows, and where their values are; none where one has no value."""
    rows = marks.rows
    if not len(rows) or not marks.counts[rows].all():
        return []
    number_of = _numbers(places, marks)
    order = np.argsort(number_of, kind="stable")
    rows = rows[order]
    begins = np.flatnonzero(np.diff(number_of[order], prepend=-1))
    forms = [Form.of(places, frame, describe) for frame in rows[begins].tolist()]
    counts = marks.counts[rows]
    at = marks.at[joined(marks.first[rows], counts)]
    lines = np.diff(begins, append=len(rows)).tolist()
    starts, ends = _between(places, rows, at, forms, lines)
    found = values(places, starts, ends)
    is_null = np.zeros(len(at), np.bool_) if found.is_null is None else found.is_null
    few, row, value = [], 0, 0
    for form, count in zip(forms, lines, strict=True):
        shape = (count, len(form.before))
        own, index = slice(value, value + count * shape[1]), rows[row : row + count]
        cut = (part[own].reshape(shape) for part in (found.starts, found.ends, is_null))
        few.append(_Few(form.line, form.before, form.described, index, *cut))
        row, value = row + count, own.stop
    return few


def _numbers(places: Places, marks: Marks) -> Numbers:
    """Give a number to the form of each row, by its head."""
    schemas = places_of(places, _SCHEMA)
    starts = places.starts[marks.rows]
    heads = schemas[np.searchsorted(schemas, starts)].tolist()
    values_at = marks.at[marks.first[marks.rows]].tolist()
    actions = places.bytes[starts + ACTION_AT].tolist()
    counts = marks.counts[marks.rows].tolist()
    data, known = places.data, dict[tuple[bytes, int, int], int]()
    return np.array(
        [
            known.setdefault((data[begin:end], action, count), len(known))
            for begin, end, action, count in zip(heads, values_at, actions, counts, strict=True)
        ],
        np.int64,
    )


def _between(
    places: Places, rows: Numbers, at: Numbers, forms: Sequence[Form], lines: Sequence[int]
) -> tuple[Numbers, Numbers]:
    """Find where values stand between what is the same in all lines of a form.

    `at` are the marks of the rows' values, `lines` tells how many of the rows have each form.
    """
    alike = list(zip(forms, lines, strict=True))
    lengths = np.array(
        [size for form, count in alike for size in [len(text) for text in form.before] * count],
        np.int64,
    )
    if len(lengths) != len(at):
        raise IndexError
    before = at - lengths
    is_there = places.bytes[joined(before, lengths)].tobytes()
    last = np.cumsum([len(form.before) for form, count in alike for _ in range(count)]) - 1
    frame_ends = places.ends[rows] - len(END)
    tails = places.bytes[joined(frame_ends, np.full(len(rows), len(END)))].tobytes()
    if is_there != b"".join(
        b"".join(form.before) * count for form, count in alike
    ) or tails != END * len(rows):
        raise IndexError
    ends = np.append(before[1:], 0)
    ends[last] = frame_ends
    return at + len(VALUE), ends


def _is_sound(places: Places, form: _Few, *, keys_stay: bool) -> bool:
    """Tell whether no key has a NULL or has changed, and no null may be none."""
    has_null: list[bool] = np.any(form.is_null, axis=0).tolist()
    if any(has_null[number] for number in (*form.doubtful, *(new for new, _ in form.keys))):
        return False
    return keys_stay or all(
        new == old or are_equal(places, form.column(new), form.column(old))
        for new, old in form.keys
    )


def _keys_stay(places: Places, forms: Sequence[_Few]) -> bool:
    """Tell whether all keys are as they were before."""
    both = [
        (form.starts[:, pair], form.ends[:, pair])
        for form in forms
        for pair in form.keys
        if pair[0] != pair[1]
    ]
    if not both:
        return True
    starts, ends = (np.concatenate(parts) for parts in zip(*both, strict=True))
    new, old = (Column(starts[:, side], ends[:, side], None) for side in (0, 1))
    return are_equal(places, new, old)


_Kind = tuple[int, bool, tuple[int, ...]]


def _kind(group: Sequence[_Few]) -> _Kind:
    """Tell what tables have in common whose rows are cut out together."""
    relation: Relation = group[0].relation
    byteas = [n for n, column in enumerate(relation.columns) if column.type_oid == BYTEA]
    return len(relation.columns), group[0].described.in_bulk, tuple(byteas)


def _rows(
    places: Places, groups: Sequence[Sequence[_Few]]
) -> Iterator[tuple[CutRows, Numbers, bool]]:
    """Give the rows of tables of one kind."""
    count, in_bulk, byteas = _kind(groups[0])
    indexes = [np.sort(np.concatenate([form.index for form in group])) for group in groups]
    every = places.picked(np.concatenate(indexes))
    total = len(every.starts)
    starts = np.tile(every.starts + HEADER_BYTES, (count, 1))
    ends, is_null = starts.copy(), np.ones((count, total), np.bool_)
    first = 0
    for group, index in zip(groups, indexes, strict=True):
        for form in group:
            at = first + np.searchsorted(index, form.index)
            to = np.array([form.relation.positions[name] for name in form.numbers])[:, None]
            which = list(form.numbers.values())
            starts[to, at] = form.starts[:, which].T
            ends[to, at] = form.ends[:, which].T
            is_null[to, at] = form.is_null[:, which].T
        first += len(index)
    columns = [_column(starts[n], ends[n], is_null[n], is_bytea=n in byteas) for n in range(count)]
    together = Together(every, columns, JsonText()) if in_bulk and len(groups) > 1 else None
    first = 0
    for group, index in zip(groups, indexes, strict=True):
        own, last = places.picked(index), first + len(index)
        actions = own.bytes[own.starts + ACTION_AT]
        inserted, deleted = actions == ord(INSERT), actions == ord(DELETE)
        cut = [column.between(first, last) for column in columns]
        yield (
            CutRows(
                group[0].relation,
                inserted.tolist(),
                deleted.tolist(),
                own,
                cut,
                JsonText(),
                together,
                first,
            ),
            index,
            in_bulk,
        )
        first = last


def _column(starts: Numbers, ends: Numbers, is_null: Flags, *, is_bytea: bool) -> Column:
    return Column(starts, ends, is_null if is_null.any() else None, is_bytea)

"""Tell the rows of many tables in wal2json's lines, where each has too few to be looked at alone.

Lines are grouped by their heads, the text from the schema's name to the first value, and by how
many values follow. Then the text between all values of all lines is compared at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Final, NamedTuple

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
    Marks,
    by_relation,
    places_of,
    values,
)
from cdc.values import BYTEA

_SCHEMA: Final = b'"schema"'


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
        at = (slice(None), number)
        return _column(self.starts[at], self.ends[at], self.is_null[at])


def found_together(
    places: Places, marks: Marks, describe: Describe
) -> Iterator[tuple[CutRows, Numbers, bool]]:
    """Give the rows of each table, which frames they are, and whether they are to be set apart.

    Tables with an unusual line are left out. Raise IndexError where one is not as wal2json writes
    them.
    """
    forms, odd = _forms(places, marks, describe)
    left_out = {form.relation.name for form in odd}
    groups = [group for group in by_relation(forms) if group[0].relation.name not in left_out]
    keys_stay = _keys_stay(places, [form for group in groups for form in group])
    groups = [
        group
        for group in groups
        if all(_is_sound(places, form, keys_stay=keys_stay) for form in group)
    ]
    for _, alike in groupby(sorted(groups, key=_kind), _kind):
        yield from _rows(places, list(alike))


def _forms(places: Places, marks: Marks, describe: Describe) -> tuple[list[_Few], list[Form]]:
    """Find the forms of all rows and where their values are; and forms that not all lines have."""
    has_values = marks.counts[marks.rows] > 0
    odd = [Form.of(places, frame, describe) for frame in marks.rows[~has_values].tolist()]
    alike = _alike(places, marks, marks.rows[has_values], describe)
    differing = _differing(places, marks, alike)
    if differing:
        odd += [alike[number].form for number in differing]
        alike = [one for number, one in enumerate(alike) if number not in differing]
    return _few(places, marks, alike), odd


class _Alike(NamedTuple):
    """Lines with one head; the form of the first."""

    form: Form
    frames: Numbers

    @property
    def lengths(self) -> list[int]:
        """The lengths of the texts before all values of all lines."""
        return [len(text) for text in self.form.before] * len(self.frames)


def _alike(places: Places, marks: Marks, rows: Numbers, describe: Describe) -> list[_Alike]:
    """Group rows, which have values, by their heads, actions and how many values they have."""
    schemas = places_of(places, _SCHEMA)
    starts = places.starts[rows]
    heads = schemas[np.searchsorted(schemas, starts)].tolist()
    values_at = marks.at[marks.first[rows]].tolist()
    actions = places.bytes[starts + ACTION_AT].tolist()
    counts = marks.counts[rows].tolist()
    data, known = places.data, dict[tuple[bytes, int, int], int]()
    numbers = np.array(
        [
            known.setdefault((data[begin:end], action, count), len(known))
            for begin, end, action, count in zip(heads, values_at, actions, counts, strict=True)
        ],
        np.int64,
    )
    order = np.argsort(numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=len(known)))
    return [
        _Alike(Form.of(places, int(own[0]), describe), own)
        for own in np.split(rows[order], bounds[1:-1])
        if len(own)
    ]


def _marks_of(marks: Marks, alike: Sequence[_Alike]) -> Numbers:
    """Give the marks of all values, line by line."""
    index = np.concatenate([one.frames for one in alike])
    return marks.at[joined(marks.first[index], marks.counts[index])]


def _differing(places: Places, marks: Marks, alike: Sequence[_Alike]) -> set[int]:
    """Tell of which groups a line has another form than the first."""
    number_of_values = [int(marks.counts[one.frames[0]]) for one in alike]
    odd = {n for n, one in enumerate(alike) if len(one.form.before) != number_of_values[n]}
    if odd or not alike:  # not even the line it was made from: wal2json writes it in another way
        return set(range(len(alike)))
    lengths = np.array([size for one in alike for size in one.lengths], np.int64)
    found = places.bytes[joined(_marks_of(marks, alike) - lengths, lengths)].tobytes()
    expected = [b"".join(one.form.before) * len(one.frames) for one in alike]
    if found != b"".join(expected):
        ends = np.cumsum([len(text) for text in expected]).tolist()
        odd |= {
            number
            for number, (text, end) in enumerate(zip(expected, ends, strict=True))
            if found[end - len(text) : end] != text
        }
    for number, one in enumerate(alike):
        tails = [places.data[end - len(END) : end] for end in places.ends[one.frames].tolist()]
        if tails != [END] * len(tails):
            odd.add(number)
    return odd


def _few(places: Places, marks: Marks, alike: Sequence[_Alike]) -> list[_Few]:
    """Find where the values are; they stand between what is the same in all lines of a form."""
    if not alike:
        return []
    at = _marks_of(marks, alike)
    lengths = np.array([size for one in alike for size in one.lengths], np.int64)
    ends = np.append((at - lengths)[1:], 0)
    counts = [len(one.form.before) for one in alike for _ in range(len(one.frames))]
    ends[np.cumsum(counts) - 1] = np.concatenate([places.ends[one.frames] for one in alike]) - len(
        END
    )
    found = values(places, at + len(VALUE), ends)
    is_null = np.zeros(len(at), np.bool_) if found.is_null is None else found.is_null
    few, begin = [], 0
    for form, frames in alike:
        shape = (len(frames), len(form.before))
        own = slice(begin, begin := begin + shape[0] * shape[1])
        few.append(
            _Few(
                form.line,
                form.before,
                form.described,
                frames,
                found.starts[own].reshape(shape),
                found.ends[own].reshape(shape),
                is_null[own].reshape(shape),
            )
        )
    return few


def _is_sound(places: Places, form: _Few, *, keys_stay: bool) -> bool:
    """Tell whether no key has a NULL or has changed, and no null may be none."""
    has_null: list[bool] = np.any(form.is_null, axis=0).tolist()
    if any(has_null[number] for number in (*form.doubtful, *chain(*form.keys))):
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
    columns = _columns(every, groups, indexes, count, byteas)
    together = Together(every, columns, JsonText()) if in_bulk and len(groups) > 1 else None
    first = 0
    for group, index in zip(groups, indexes, strict=True):
        own, last = places.picked(index), first + len(index)
        actions = own.bytes[own.starts + ACTION_AT]
        inserted, deleted = (actions == ord(action) for action in (INSERT, DELETE))
        cut = [column.between(first, last) for column in columns]
        rows = CutRows(group[0].relation, inserted.tolist(), deleted.tolist(), own, cut, JsonText())
        rows.among, rows.first = together, first
        yield rows, index, in_bulk
        first = last


def _columns(
    every: Places,
    groups: Sequence[Sequence[_Few]],
    indexes: Sequence[Numbers],
    count: int,
    byteas: Sequence[int],
) -> list[Column]:
    """Fill the columns of all rows, table by table; what a line does not tell is NULL."""
    starts = np.tile(every.starts + HEADER_BYTES, (count, 1))
    ends, is_null = starts.copy(), np.ones(starts.shape, np.bool_)
    first = 0
    for group, index in zip(groups, indexes, strict=True):
        for form in group:
            at = first + np.searchsorted(index, form.index)
            to = np.array([form.relation.positions[n] for n in form.numbers], np.int64)[:, None]
            which = list(form.numbers.values())
            starts[to, at] = form.starts[:, which].T
            ends[to, at] = form.ends[:, which].T
            is_null[to, at] = form.is_null[:, which].T
        first += len(index)
    return [_column(starts[n], ends[n], is_null[n], is_bytea=n in byteas) for n in range(count)]


def _column(starts: Numbers, ends: Numbers, is_null: Flags, *, is_bytea: bool = False) -> Column:
    return Column(starts, ends, is_null if is_null.any() else None, is_bytea)

"""Tell the rows in many of wal2json's lines at once: set apart, or as changes in their places.

A template is made from the first line of a form (`cdc.source.wal2json_lines`); where another has
the same text between its values, they are known by their places. Where many forms have few lines
each, they are found together (`cdc.source.wal2json_many`). Tables with lines of another form among
these are left to be read one by one (`cdc.source.wal2json`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cdc.rows import Rows
from cdc.source.apart import Apart, Left
from cdc.source.cut_rows import Bytes, Column, CutRows, Flags, JsonText, Places, are_equal
from cdc.source.frame import Numbers, Stretch
from cdc.source.wal2json_lines import (
    ACTION_AT,
    DELETE,
    END,
    INSERT,
    UNREADABLE,
    VALUE,
    Describe,
    Form,
    Marks,
    by_relation,
    values,
)
from cdc.source.wal2json_many import found_together

_LEAST_ALIKE: Final = 64  # lines a template, on average: with fewer all are sooner found together
_FIRST_TEMPLATES: Final = 4  # that tell

_ROW, _BETWEEN = 2, 1  # as in cdc.source.pgoutput_rows
_MEANING: Final = np.zeros(256, np.uint8)
_MEANING[list(b"IUD")] = _ROW
_MEANING[list(b"BCM")] = _BETWEEN


@dataclass(eq=False)
class _Template(Form):
    """A form, and the lines that follow it."""

    index: Numbers  # which frames
    value_at: NDArray[np.int64]  # by frame and value: where its mark stands


def set_apart(stretch: Stretch, describe: Describe) -> tuple[list[Rows], Left]:
    """Give rows of the tables for bulk, and what is left, in order."""
    try:
        return _set_apart(Places.of(stretch), describe)
    except UNREADABLE:  # reading it alone tells which
        return [], list(stretch)


def _set_apart(places: Places, describe: Describe) -> tuple[list[Rows], Left]:
    meaning = _MEANING[places.bytes[places.starts + ACTION_AT]]
    apart = Apart(places)
    if not meaning.all():
        return apart.rows, apart.left()
    marks = Marks.of(places, np.flatnonzero(meaning == _ROW))
    templates = _templates(places, marks, describe)
    if templates is None:
        for found, index, in_bulk in found_together(places, marks, describe):
            apart.put(found, index, in_bulk=in_bulk)
        return apart.rows, apart.left()
    for alike in by_relation(templates):
        index = np.sort(np.concatenate([template.index for template in alike]))
        rows = _rows(places, alike, index)
        if rows is not None:
            apart.put(rows, index, in_bulk=alike[0].described.in_bulk)
    return apart.rows, apart.left()


def _templates(places: Places, marks: Marks, describe: Describe) -> list[_Template] | None:
    """Find the templates of all rows; None where too few rows are alike."""
    waiting = marks.rows
    templates: list[_Template] = []
    found = 0
    while len(waiting):
        if len(templates) >= _FIRST_TEMPLATES and found < len(templates) * _LEAST_ALIKE:
            return None
        form = Form.of(places, int(waiting[0]), describe)
        count = len(form.before)
        action = places.bytes[places.starts[waiting] + ACTION_AT]
        alike = (marks.counts[waiting] == count) & (action == ord(form.line.action))
        candidates = waiting[alike]
        value_at = marks.at[marks.first[candidates][:, None] + np.arange(count)]
        same = _stands_before(places, value_at, form.before)
        if not same[:1].all() or not len(candidates):
            return []  # not even the line it was made from: wal2json writes it in another way
        found += int(same.sum())
        templates.append(
            _Template(form.line, form.before, form.described, candidates[same], value_at[same])
        )
        waiting = np.setdiff1d(waiting, candidates[same], assume_unique=True)
    return templates


def _stands_before(places: Places, value_at: Numbers, before: list[bytes]) -> Flags:
    """Tell which frames have just these texts before their values."""
    same = np.ones(len(value_at), np.bool_)
    for number, text in enumerate(before):
        same &= _is_at(places, np.maximum(value_at[:, number] - len(text), 0), text)
    return same


def _is_at(places: Places, positions: Numbers, text: bytes) -> Flags:
    """Tell at which positions a text is; quickly where it is at all of them."""
    count = max(0, len(places.data) - len(text) + 1)
    cut = np.ndarray((count,), dtype=f"V{len(text)}", buffer=places.data, strides=(1,))[positions]
    if cut.tobytes() == text * len(positions):
        return np.ones(len(positions), np.bool_)
    rows: Bytes = cut.view(np.uint8).reshape(len(positions), len(text))
    same: Flags = (rows == np.frombuffer(text, np.uint8)).all(axis=1)
    return same


def _rows(places: Places, templates: Sequence[_Template], index: Numbers) -> CutRows | None:
    """Give the rows of a relation's templates, the frames at `index`; None: one is unusual."""
    relation = templates[0].relation
    own = places.picked(index)
    if not _is_at(own, own.ends - len(END), END).all():
        return None
    filled = {name: _Filled(len(index)) for name in relation.names}
    for template in templates:
        at = np.searchsorted(index, template.index)
        columns = [
            _column(own, template, number, own.ends[at]) for number in range(len(template.before))
        ]
        if not _keys_are_usual(own, template, columns) or _has_doubtful_null(template, columns):
            return None
        for name, column in template.sources(columns).items():
            filled[name].fill(at, column)
    actions = own.bytes[own.starts + ACTION_AT]
    inserted, deleted = actions == ord(INSERT), actions == ord(DELETE)
    whole = [column.done() for column in filled.values()]
    return CutRows(relation, inserted.tolist(), deleted.tolist(), own, whole, JsonText())


def _keys_are_usual(places: Places, template: _Template, columns: Sequence[Column]) -> bool:
    """Tell whether no key has a NULL, and none has changed."""
    new, old = template.sources(columns), template.identity(columns)
    for name in template.relation.key:
        key = new[name]
        if key.is_null is not None:
            return False
        before = old.get(name)
        if before is not None and (
            before.is_null is not None or not are_equal(places, key, before)
        ):
            return False
    return True


def _has_doubtful_null(template: _Template, columns: Sequence[Column]) -> bool:
    return any(columns[number].is_null is not None for number in template.doubtful)


def _column(places: Places, template: _Template, number: int, frame_ends: Numbers) -> Column:
    """Find a value's text in all lines of a template."""
    if number == len(template.before) - 1:
        ends = frame_ends - len(END)
    else:
        ends = template.value_at[:, number + 1] - len(template.before[number + 1])
    starts = template.value_at[:, number] + len(VALUE)
    return values(places, starts, ends, is_bytea=template.is_bytea(number))


class _Filled:
    """A column of all rows of a relation, filled from one template after the other."""

    def __init__(self, count: int) -> None:
        self._places = np.zeros((2, count), np.int64)
        self._is_null = np.zeros(count, np.bool_)
        self._is_bytea = False

    def fill(self, at: Numbers, column: Column) -> None:
        """Set the rows at these positions."""
        self._places[:, at] = column.starts, column.ends
        self._is_null[at] = False if column.is_null is None else column.is_null
        self._is_bytea = column.is_bytea

    def done(self) -> Column:
        """Give the whole column."""
        is_null = self._is_null if self._is_null.any() else None
        starts, ends = self._places
        return Column(starts, ends, is_null, self._is_bytea)

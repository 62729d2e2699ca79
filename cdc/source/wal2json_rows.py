"""Tell the rows in many of wal2json's lines at once: set apart, or as changes in their places.

Lines of one table and action differ only in their values and in what comes before the schema's
name. So a template is made from the first such line; where another has the same text between its
values, they are known by their places. Nothing inside a JSON string can look like that text: a
quote stands there only after a backslash. Tables with lines of another form among these are left to
be read one by one (`cdc.source.wal2json`).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from cdc.change import Relation
from cdc.names import TableName
from cdc.rows import Rows
from cdc.source.apart import Apart, Left
from cdc.source.cut_rows import Bytes, Column, CutRows, Flags, JsonText, Places, are_equal
from cdc.source.frame import HEADER_BYTES, Numbers, Stretch
from cdc.source.nulls import NUMBERS
from cdc.values import BYTEA

_ACTION: Final = b'{"action":"'
_ACTION_AT: Final = HEADER_BYTES + len(_ACTION)
_VALUE: Final = b'"value":'
_END: Final = b"}]}"
_TRUE, _FALSE, _NULL, _QUOTE = b'tfn"'
_WORDS: Final = {word[0]: int.from_bytes(word, "big") for word in (b"true", b"fals", b"null")}
_INSERT, _DELETE = "ID"
_LEAST_ALIKE: Final = 64  # lines a template, on average: with fewer each is sooner read by itself
_FIRST_TEMPLATES: Final = 12  # that tell

_ROW, _BETWEEN = 2, 1  # as in cdc.source.pgoutput_rows
_MEANING: Final = np.zeros(256, np.uint8)
_MEANING[list(b"IUD")] = _ROW
_MEANING[list(b"BCM")] = _BETWEEN


# By first byte and length (6: more than 5): whether it may be a value that is no string.
_FITS: Final = np.zeros((256, 7), np.bool_)
_FITS[list(b"-0123456789"), 1:] = True
_FITS[[_NULL, _TRUE], 4] = _FITS[_FALSE, 5] = True


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


class _Column(msgspec.Struct, gc=False):
    name: str
    typeoid: int


class _Line(msgspec.Struct, gc=False):
    action: str
    schema: str
    table: str
    columns: list[_Column] = []
    identity: list[_Column] = []


_decode: Final = msgspec.json.Decoder(_Line).decode


@dataclass(eq=False)
class _Template:
    """What lines of one table and action have in common: the text before each value."""

    line: _Line
    before: list[bytes]
    index: Numbers  # which frames follow it
    described: Described
    value_at: NDArray[np.int64]  # by frame and value: where its mark stands

    @property
    def relation(self) -> Relation:
        """The table's relation."""
        return self.described.relation

    @property
    def columns(self) -> list[_Column]:
        """The columns whose values a line has, in order."""
        return [*self.line.columns, *self.line.identity]

    def sources(self, columns: Sequence[Column]) -> dict[str, Column]:
        """Give the columns that a row's values come from, by name."""
        if self.line.action == _DELETE:
            old = self.identity(columns)
            return {name: old[name] for name in self.relation.key}
        named = zip(self.line.columns, columns, strict=False)
        return {column.name: at for column, at in named if column.name in self.relation.positions}

    def identity(self, columns: Sequence[Column]) -> dict[str, Column]:
        """Give the columns of the replica identity, by name."""
        first = len(self.line.columns)
        named = zip(self.line.identity, columns[first:], strict=True)
        return {column.name: at for column, at in named}

    @property
    def is_usual(self) -> bool:
        """Tell whether the rows have just the relation's columns, in order."""
        relation, generated, _, in_bulk = self.described
        columns = [c for c in self.line.columns if c.name not in generated]
        is_whole = [(c.name, c.typeoid) for c in columns] == [
            (c.name, c.type_oid) for c in relation.columns
        ]
        identity = {c.name for c in self.line.identity}
        # A whole old row has no place among those set apart, and is part of a change.
        has_key = identity >= set(relation.key) if in_bulk else identity == set(relation.key)
        if self.line.action == _DELETE:
            return has_key
        return is_whole and (has_key or self.line.action == _INSERT)


def set_apart(stretch: Stretch, describe: Describe) -> tuple[list[Rows], Left]:
    """Give rows of the tables for bulk, and what is left, in order."""
    try:
        return _set_apart(Places.of(stretch), describe)
    except (IndexError, UnicodeDecodeError, msgspec.MsgspecError):  # reading it alone tells which
        return [], list(stretch)


def _set_apart(places: Places, describe: Describe) -> tuple[list[Rows], Left]:
    meaning = _MEANING[places.bytes[places.starts + _ACTION_AT]]
    templates = _templates(places, meaning == _ROW, describe) if meaning.all() else []
    apart = Apart(places)
    for alike in _by_relation(templates):
        index = np.sort(np.concatenate([template.index for template in alike]))
        rows = _rows(places, alike, index)
        if rows is not None:
            apart.put(rows, index, in_bulk=alike[0].described.in_bulk)
    return apart.rows, apart.left()


def _by_relation(templates: list[_Template]) -> list[list[_Template]]:
    """Group the templates by table; leave out those with an unusual one, or of two descriptions.

    A table that was renamed is reported under either name, and may have been changed between.
    """
    groups: defaultdict[TableName, list[_Template]] = defaultdict(list)
    for template in templates:
        groups[template.relation.name].append(template)
    return [
        group
        for group in groups.values()
        if all(one.is_usual and one.relation == group[0].relation for one in group)
    ]


def _templates(places: Places, is_row: Flags, describe: Describe) -> list[_Template]:
    """Find the templates of all rows; none where too few rows are alike."""
    marks = _marks(places)
    of_frame = np.searchsorted(places.starts, marks, side="right") - 1
    counts = np.bincount(of_frame, minlength=len(places.starts))
    first = np.cumsum(counts) - counts
    waiting = np.flatnonzero(is_row)
    templates: list[_Template] = []
    found = 0
    while len(waiting):
        enough = len(templates) * _LEAST_ALIKE
        if len(templates) >= _FIRST_TEMPLATES and found < enough:
            return []
        line = _line(places, int(waiting[0]))
        before = _texts_before(line)
        action = places.bytes[places.starts[waiting] + _ACTION_AT]
        alike = (counts[waiting] == len(before)) & (action == ord(line.action))
        candidates = waiting[alike]
        value_at = marks[first[candidates][:, None] + np.arange(len(before))]
        same = _stands_before(places, value_at, before)
        if not same[:1].all() or not len(candidates):
            return []  # not even the line it was made from: wal2json writes it in another way
        name = TableName(line.schema, line.table)
        found += int(same.sum())
        templates.append(_Template(line, before, candidates[same], describe(name), value_at[same]))
        waiting = np.setdiff1d(waiting, candidates[same], assume_unique=True)
    return templates


def _marks(places: Places) -> Numbers:
    """Find where values are announced."""
    words = np.ndarray(
        (max(0, len(places.data) - 7),), dtype="<u8", buffer=places.data, strides=(1,)
    )
    return np.flatnonzero(words == int.from_bytes(_VALUE, "little"))


def _line(places: Places, frame: int) -> _Line:
    start, end = int(places.starts[frame]), int(places.ends[frame])
    return _decode(places.data[start + HEADER_BYTES : end])


def _texts_before(line: _Line) -> list[bytes]:
    """Give the text before each value's mark: what follows the LSN, then what joins two values."""
    texts = []
    head = f'"schema":{_json(line.schema)},"table":{_json(line.table)},'
    for part, columns in (("columns", line.columns), ("identity", line.identity)):
        for number, column in enumerate(columns):
            joint = "},{" if number else f'{head}"{part}":[{{'
            texts.append(f'{joint}"name":{_json(column.name)},"typeoid":{column.typeoid},')
        head = "}]," if columns else head
    return [text.encode() for text in texts]


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()


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
    if not _is_at(own, own.ends - len(_END), _END).all():
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
    actions = own.bytes[own.starts + _ACTION_AT]
    inserted, deleted = actions == ord(_INSERT), actions == ord(_DELETE)
    whole = [column.done() for column in filled.values()]
    return CutRows(relation, inserted.tolist(), deleted.tolist(), own, whole, JsonText())


def _keys_are_usual(places: Places, template: _Template, columns: Sequence[Column]) -> bool:
    """Tell whether no key has a NULL, and none has changed."""
    new, old = template.sources(columns), template.identity(columns)
    for name in template.relation.key:
        key = new[name]
        if key.is_null is not None:
            return False
        if name in old and not are_equal(places, key, old[name]):
            return False
    return True


def _has_doubtful_null(template: _Template, columns: Sequence[Column]) -> bool:
    numbers = [
        at
        for column, at in zip(template.columns, columns, strict=True)
        if column.typeoid in NUMBERS
    ]
    return template.described.doubtful and any(at.is_null is not None for at in numbers)


def _column(places: Places, template: _Template, number: int, frame_ends: Numbers) -> Column:
    """Find a value's text in all lines of a template."""
    is_last = number == len(template.before) - 1
    is_bytea = template.columns[number].typeoid == BYTEA
    mark = template.value_at[:, number]
    starts = mark + len(_VALUE)
    if is_last:
        ends = frame_ends - len(_END)
    else:
        ends = template.value_at[:, number + 1] - len(template.before[number + 1])
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

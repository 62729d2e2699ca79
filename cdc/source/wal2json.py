"""wal2json's format version 2: one JSON object per message.

The facts used here are in wal2json's README ("Parameters", "Examples") and were checked against
2.5 and 2.6: see tests/integration/test_plugins.py.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Self

import msgspec

from cdc.assemble import Transaction
from cdc.change import Column, Deleted, Inserted, Relation, Truncated, updated
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.message import Begin, Commit, Emitted, Message
from cdc.names import TableName
from cdc.rows import Rows
from cdc.source.apart import Left
from cdc.source.frame import HEADER_BYTES, Frame, Stretch
from cdc.source.nulls import NUMBERS, Nulls, not_sent
from cdc.source.relations import Relations
from cdc.source.wal2json_lines import Described
from cdc.source.wal2json_rows import set_apart
from cdc.values import BYTEA, UNCHANGED, Text

MESSAGE_PREFIX: Final = "cdc"
# Known since 2.6: numbers as JSON strings, so that NaN and the infinities are not null.
AS_STRINGS: Final = {"numeric-data-types-as-string": "1"}
_FLOATS: Final = (700, 701)
_ACTION_AT: Final = HEADER_BYTES + len('{"action":"')


class _Column(msgspec.Struct, gc=False):
    name: str
    typeoid: int
    value: Any = None

    def __repr__(self) -> str:
        return f"<value of {self.name}>"


class _RawColumn(msgspec.Struct, gc=False):
    name: str
    typeoid: int
    value: msgspec.Raw = msgspec.Raw(b"null")

    def __repr__(self) -> str:
        return f"<value of {self.name}>"


class _Line(msgspec.Struct, gc=False):
    action: str
    xid: int | None = None
    timestamp: str | None = None
    lsn: str = ""
    nextlsn: str = ""
    schema: str = ""
    table: str = ""
    columns: list[_Column] = []
    identity: list[_Column] = []
    prefix: str = ""
    content: str = ""


class _RawLine(msgspec.Struct, gc=False):
    columns: list[_RawColumn] = []
    identity: list[_RawColumn] = []


Columns = Sequence[_Column]
Payload = bytes | memoryview

# Numbers keep their digits: a float's literal is kept as text, an integer is exact in Python.
_decode_line: Final = msgspec.json.Decoder(_Line, float_hook=str).decode
_decode_raw_line: Final = msgspec.json.Decoder(_RawLine).decode
_decode_text: Final = msgspec.json.Decoder(str).decode

_AS_TEXT: Final[dict[type, Callable[[Any], str | None]]] = {
    int: str,
    bool: {True: "t", False: "f"}.__getitem__,
    type(None): lambda _: None,
}


class _Texts(NamedTuple):
    """A set of reported columns, and which of their values need more than JSON's text."""

    names: list[str]
    type_oids: list[int]
    bytea: tuple[int, ...]
    floats: tuple[int, ...]

    @classmethod
    def of(cls, names: list[str], type_oids: list[int]) -> Self:
        """Look through the types."""
        bytea = tuple(i for i, oid in enumerate(type_oids) if oid == BYTEA)
        floats = tuple(i for i, oid in enumerate(type_oids) if oid in _FLOATS)
        return cls(names, type_oids, bytea, floats)


class _Layout(NamedTuple):
    """How a set of reported columns fills a relation's row; positions None: as it is.

    `numbers` are the row's columns in which a null may be no NULL.
    """

    texts: _Texts
    relation: Relation
    positions: tuple[int | None, ...] | None
    numbers: tuple[int, ...]


class _Identity(NamedTuple):
    """Where in a reported identity the key is, and the whole row where it is one."""

    texts: _Texts
    key: tuple[int, ...]
    whole: tuple[int, ...] | None
    numbers: tuple[int, ...]


class Wal2Json:
    """Decode wal2json's lines into messages.

    `nulls` is asked about nulls in number columns; without, they are NULL.
    """

    def __init__(
        self,
        relations: Relations,
        nulls: Nulls | None = None,
        *,
        bulk: Container[TableName] = (),
        current: Mapping[TableName, Relation] | None = None,
    ) -> None:
        """Take what is known of the tables, and the names of those that `set_apart` is for.

        `current` are relations as the stream has last described them, by reported name.
        """
        self._relations = relations
        self._unfiltered = relations.unfiltered
        self._nulls = nulls
        self._bulk = bulk
        self._current: dict[TableName, Relation] = dict(current or {})
        self._layouts: dict[tuple[str, str, bool], list[_Layout]] = {}
        self._identities: dict[tuple[str, str], _Identity] = {}
        self._truncated_at: dict[TableName, str] = {}
        self._decoders: dict[str, Callable[[_Line, Payload], Message | None]] = {
            "I": self._inserted,
            "U": self._updated,
            "D": self._deleted,
            "T": self._truncated,
            "B": self._begin,
            "C": _commit,
            "M": _emitted,
        }

    def is_commit(self, frame: Frame) -> bool:
        """Tell whether a data frame (header and line) ends a transaction."""
        return bytes(frame[_ACTION_AT : _ACTION_AT + 1]) == b"C"

    def set_apart(self, stretch: Stretch) -> tuple[list[Rows], Left]:
        """Give rows of tables to be written in bulk, and what is left, in order."""
        if self._unfiltered or not self._relations.settled:
            return [], list(stretch)
        return set_apart(stretch, self._known)

    def _known(self, reported: TableName) -> Described:
        relation = self._relation(reported)
        doubtful = self._nulls is not None and self._nulls.doubts(relation.name)
        generated = self._relations.generated(reported)
        return Described(relation, generated, doubtful, relation.name in self._bulk)

    def without_changes(self, left: Left) -> list[Transaction] | None:  # noqa: ARG002
        """Tell that lines are read one by one."""
        return None

    @property
    def turns(self) -> int:
        """How often relations had to be described anew for the transactions that followed."""
        return self._relations.turns

    def snapshot(self) -> "Wal2Json":
        """Give another decoder that has decoded the same; this one looks at nulls."""
        return Wal2Json(self._relations.fork(), bulk=self._bulk, current=self._current)

    def decode(self, payload: Payload) -> Sequence[Message]:
        """Decode one line. Raise ProtocolError where it is none of wal2json's."""
        try:
            return self._decoded(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(
                f"wal2json sent a line that is not JSON: {type(error).__name__}",
                hint="known causes: a database encoding other than UTF8; a type whose quoted name "
                'wal2json 2.5 does not escape. plugin = "pgoutput" has neither',
            ) from None
        except (KeyError, ValueError) as error:
            raise ProtocolError(
                f"wal2json sent a line of another form: {type(error).__name__}"
            ) from None

    def _decoded(self, payload: Payload) -> Sequence[Message]:
        try:
            line = _decode_line(payload)
        except msgspec.ValidationError:
            line = _with_raw_values(payload)
        decode = self._decoders.get(line.action)
        if decode is None:
            raise ProtocolError(f"wal2json sent an unknown action {line.action!r}")
        reported = TableName(line.schema, line.table) if self._unfiltered and line.table else None
        if reported is not None and self._relations.owner(reported) is None:
            return ()
        message = decode(line, payload)
        return () if message is None else (message,)

    def _begin(self, line: _Line, payload: Payload) -> Message:
        begin = _begin(line, payload)
        if self._relations.begin(begin.xid):
            for known in (self._current, self._layouts, self._identities):
                known.clear()
        return begin

    def _inserted(self, line: _Line, payload: Payload) -> Message:
        layout, values = self._row(line, payload, inserted=True)
        if layout.numbers and self._nulls is not None:
            _look_at(self._nulls, layout, values, xid=line.xid)
        return Inserted(layout.relation, values)

    def _updated(self, line: _Line, payload: Payload) -> Message:
        layout, values = self._row(line, payload)
        key, old = self._old(layout.relation, line, payload)
        change = updated(layout.relation, values, old_key=key, old_values=old)
        if layout.numbers and self._nulls is not None:
            _look_at(self._nulls, layout, change.values, xid=line.xid)
        return change

    def _deleted(self, line: _Line, payload: Payload) -> Message:
        relation = self._relation(TableName(line.schema, line.table))
        key, old = self._old(relation, line, payload)
        return Deleted(relation, key, old)

    def _truncated(self, line: _Line, _payload: Payload) -> Message | None:
        """Take a partitioned table's truncate from its own line; its partitions' follow it."""
        reported = TableName(line.schema, line.table)
        relation = self._relation(reported)
        if reported == relation.name:
            self._truncated_at[reported] = line.lsn
            return Truncated(relation)
        if self._truncated_at.get(relation.name) == line.lsn:
            return None
        raise ProtocolError(
            f"partition {reported} of {relation.name} was truncated alone: which read rows go "
            "cannot be told",
            hint="copy the table again; or, to pass over it, delete the partition's read rows and "
            "move on with another slot",
        )

    def _relation(self, reported: TableName) -> Relation:
        relation = self._current.get(reported)
        if relation is None:
            relation = self._current[reported] = self._relations.known(reported)
        return relation

    def _row(
        self, line: _Line, payload: Payload, *, inserted: bool = False
    ) -> tuple[_Layout, tuple[Text, ...]]:
        columns = line.columns
        names, type_oids = [c.name for c in columns], [c.typeoid for c in columns]
        for layout in self._layouts.get((line.schema, line.table, inserted), ()):
            if layout.texts.names == names and layout.texts.type_oids == type_oids:
                break
        else:
            layout = self._lay_out(line, _Texts.of(names, type_oids), inserted=inserted)
        values = _values(columns, layout.texts, payload, part="columns")
        if layout.positions is None:
            return layout, tuple(values)
        return layout, tuple(
            [UNCHANGED if position is None else values[position] for position in layout.positions]
        )

    def _lay_out(self, line: _Line, texts: _Texts, *, inserted: bool) -> _Layout:
        """Fit the columns of a line, seen for the first time, to the table's relation.

        An insert brings every column. An update leaves out unchanged TOAST: columns known before
        and missing now keep their place. A partition's columns may come in an order of its own.
        """
        reported = TableName(line.schema, line.table)
        dropped = self._relations.generated(reported)
        names = self._relations.named(reported, texts.names)
        columns = list(zip(names, texts.type_oids, strict=True))
        kept = {c: i for i, c in enumerate(columns) if c[0] not in dropped}
        known = self._relation(reported)
        described = [self._relations.column(*column) for column in kept]
        full = _extended(known, described)
        if inserted and set(full) != set(described):
            full = described
        if tuple(full) != known.columns:
            known = self._relations.described(reported, full, self._key(known, full))
            self._forget(reported)
            self._current[reported] = known
        positions = tuple(kept.get((c.name, c.type_oid)) for c in known.columns)
        exact = positions == tuple(range(len(columns)))
        numbers = tuple(p for p, c in enumerate(known.columns) if c.type_oid in NUMBERS)
        layout = _Layout(texts, known, None if exact else positions, numbers)
        self._layouts.setdefault((*reported, inserted), []).append(layout)
        return layout

    def _forget(self, reported: TableName) -> None:
        """Drop what was worked out for the table's relation: it has another one now."""
        for inserted in (True, False):
            self._layouts.pop((*reported, inserted), None)
        self._identities.pop(reported, None)

    def _key(self, known: Relation, columns: Iterable[Column]) -> tuple[str, ...]:
        names = {column.name for column in columns}
        missing = [name for name in known.key if name not in names]
        if missing:
            raise ProtocolError(
                f'key column "{missing[0]}" of {known.name} is no longer in its rows',
                hint="its key was renamed or dropped: start the daemon again to read the catalog",
            )
        return known.key

    def _old(
        self, relation: Relation, line: _Line, payload: Payload
    ) -> tuple[tuple[Text, ...], tuple[Text, ...] | None]:
        """Give the old key, and the whole old row where the table has REPLICA IDENTITY FULL."""
        columns = line.identity
        names, type_oids = [c.name for c in columns], [c.typeoid for c in columns]
        identity = self._identities.get((line.schema, line.table))
        if identity is None or identity.texts[:2] != (names, type_oids):
            reported = TableName(line.schema, line.table)
            named = self._relations.named(reported, names)
            identity = _identify(relation, _Texts.of(names, type_oids), named)
            self._identities[reported] = identity
        values = _values(columns, identity.texts, payload, part="identity")
        key = tuple([values[position] for position in identity.key])
        if None in key:  # a key column is NOT NULL
            raise not_sent(relation.name, relation.key[key.index(None)], ())
        if self._nulls is not None:
            names = [identity.texts.names[p] for p in identity.numbers if values[p] is None]
            if names:
                self._nulls.look_at_old(relation, names, key)
        if identity.whole is None:
            return key, None
        return key, tuple([values[position] for position in identity.whole])


def _look_at(nulls: Nulls, layout: _Layout, values: tuple[Text, ...], *, xid: int | None) -> None:
    """Have nulls in number columns looked at."""
    relation = layout.relation
    names = [relation.names[p] for p in layout.numbers if values[p] is None]
    if names:
        nulls.look_at(relation, names, relation.key_of(values), xid=xid or 0)


def _identify(relation: Relation, texts: _Texts, names: list[str]) -> _Identity:
    """Find key and row in a reported identity; raise ProtocolError where the key is not in it."""
    at = {name: position for position, name in enumerate(names)}
    missing = [name for name in relation.key if name not in at]
    if missing:
        raise ProtocolError(
            f'the replica identity of {relation.name} lacks column "{missing[0]}" of its key',
            hint="its replica identity was changed: start the daemon again to read the catalog",
        )
    key = tuple(at[name] for name in relation.key)
    whole = len(relation.columns) > len(relation.key) and all(n in at for n in relation.names)
    numbers = tuple(p for p, oid in enumerate(texts.type_oids) if oid in NUMBERS)
    return _Identity(texts, key, tuple(at[n] for n in relation.names) if whole else None, numbers)


def _extended(known: Relation, described: list[Column]) -> list[Column]:
    """Add to the known columns those described that are new or have changed their type."""
    by_name = {column.name: column for column in described}
    kept = [by_name.pop(column.name, column) for column in known.columns]
    return [*kept, *by_name.values()]


def _values(columns: Columns, texts: _Texts, payload: Payload, *, part: str) -> list[Text]:
    """Give the values as the server's text."""
    values: list[Text] = [
        value if (value := column.value).__class__ is str else _AS_TEXT[value.__class__](value)
        for column in columns
    ]
    for position in texts.floats:
        if values[position] == "0":  # may have been -0, which JSON integers do not keep
            return list(_raw_texts(getattr(_decode_raw_line(payload), part)))
    for position in texts.bytea:
        if isinstance(text := values[position], str):
            values[position] = "\\x" + text
    return values


def _raw_texts(columns: list[_RawColumn]) -> list[str | None]:
    return [_raw_text(bytes(column.value), column.typeoid) for column in columns]


def _raw_text(raw: bytes, type_oid: int) -> str | None:
    if raw.startswith(b'"'):
        text = _decode_text(raw)
        return "\\x" + text if type_oid == BYTEA else text
    if raw[:1] in {b"[", b"{"}:
        raise ValueError("a value that is neither a number nor a string")
    return {b"null": None, b"true": "t", b"false": "f"}.get(raw, raw.decode())


def _with_raw_values(payload: Payload) -> _Line:
    """Decode a line with a number of more digits than a Python integer is parsed from."""
    header = msgspec.json.decode(payload, type=_Header)
    raw = _decode_raw_line(payload)
    line = _Line(header.action, schema=header.schema, table=header.table)
    line.columns = _from_raw(raw.columns)
    line.identity = _from_raw(raw.identity)
    return line


class _Header(msgspec.Struct):
    action: str
    schema: str = ""
    table: str = ""


def _from_raw(columns: list[_RawColumn]) -> list[_Column]:
    texts = _raw_texts(columns)
    return [
        _Column(c.name, c.typeoid, text if c.typeoid != BYTEA or text is None else text[2:])
        for c, text in zip(columns, texts, strict=True)
    ]


def _begin(line: _Line, _payload: Payload) -> Begin:
    if line.xid is None or line.timestamp is None:
        raise ProtocolError("wal2json sent a transaction without xid or timestamp")
    return Begin(line.xid, _lsn(line.lsn), datetime.fromisoformat(line.timestamp))


def _commit(line: _Line, _payload: Payload) -> Message:
    return Commit(_lsn(line.lsn), _lsn(line.nextlsn))


def _emitted(line: _Line, _payload: Payload) -> Message:
    return Emitted(line.prefix, line.content)


def _lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except ValueError:
        raise ProtocolError("wal2json sent a transaction without LSNs") from None


def options(tables: Iterable[TableName] | None) -> dict[str, str]:
    """Give the plugin options for these tables, by the names they are reported under; None: all."""
    options = {
        "format-version": "2",
        "include-xids": "1",
        "include-timestamp": "1",
        "include-lsn": "1",
        "include-types": "0",
        "include-type-oids": "1",
        "add-msg-prefixes": MESSAGE_PREFIX,
    }
    if tables is not None:
        options["add-tables"] = ",".join(
            f"{_escaped(name.schema)}.{_escaped(name.table)}" for name in tables
        )
    return options


def _escaped(name: str) -> str:
    """Escape every character: the form that no name can break out of."""
    return "".join("\\" + character for character in name)

"""pgoutput, protocol version 1: Postgres documentation, "Logical Replication Message Formats"."""

import struct
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cdc.assemble import Transaction
from cdc.change import Column, Deleted, Inserted, Relation, Truncated, Updated, updated
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.message import Begin, Commit, Emitted, Message
from cdc.names import TableName
from cdc.rows import Rows
from cdc.source.apart import Left
from cdc.source.frame import HEADER_BYTES, Frame, Stretch
from cdc.source.pgoutput_rows import Described, set_apart
from cdc.source.relations import Relations
from cdc.values import UNCHANGED, Text

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_BEGIN: Final = struct.Struct(">qqi")
_COMMIT: Final = struct.Struct(">bqqq")
# The frames of a begin and of a commit, one after the other.
_BEGIN_AND_COMMIT: Final = struct.Struct(f">{HEADER_BYTES}xcqqi{HEADER_BYTES}xcbqqq")
_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_OID: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">I")
_TYPE: Final = struct.Struct(">Ii")
_IS_KEY: Final = 1
_KEY, _OLD, _NEW = ord("K"), ord("O"), ord("N")
_NULL, _UNCHANGED, _TEXT = ord("n"), ord("u"), ord("t")

Values = tuple[Text, ...]


class PgOutput:
    """Decode pgoutput's messages."""

    def __init__(
        self,
        relations: Relations,
        *,
        bulk: Container[TableName] = (),
        told: Mapping[int, "_Told"] | None = None,
    ) -> None:
        """Take what is known of the tables, and the names of those that `set_apart` is for.

        `told` are relations as the stream has described them before, by oid.
        """
        self._relations = relations
        self._bulk = bulk
        self._told: dict[int, _Told] = dict(told or {})
        self._by_oid = _ByOid(lambda oid: self._described(self._told[oid]))
        self._decoders: dict[bytes, Callable[[bytes], Sequence[Message]]] = {
            b"I": self._inserted,
            b"U": self._updated,
            b"D": self._deleted,
            b"T": self._truncated,
            b"R": self._relation,
            b"B": self._begin,
            b"C": _commit,
            b"M": _emitted,
            b"O": _nothing,  # origin
            b"Y": _nothing,  # type: the catalog tells more
        }

    def is_commit(self, frame: Frame) -> bool:
        """Tell whether a data frame (header and message) ends a transaction."""
        return bytes(frame[HEADER_BYTES : HEADER_BYTES + 1]) == b"C"

    def set_apart(self, stretch: Stretch) -> tuple[list[Rows], Left]:
        """Give rows of tables to be written in bulk, and what is left, in order."""
        if not self._relations.settled:
            return [], list(stretch)
        return set_apart(stretch, self._known)

    def without_changes(self, left: Left) -> list[Transaction] | None:
        """Read transactions that have no changes, at once; None where something else is left."""
        frames = [frame for frame in left if isinstance(frame, memoryview)]
        data = b"".join(frames) if len(frames) == len(left) else b""
        if len(data) != len(frames) // 2 * _BEGIN_AND_COMMIT.size:
            return None
        transactions, last = [], 0
        for (
            begun,
            lsn,
            microseconds,
            xid,
            committed,
            _,
            at,
            end,
            _,
        ) in _BEGIN_AND_COMMIT.iter_unpack(data):
            if begun != b"B" or committed != b"C" or not last <= lsn == at <= end:
                return None
            time = _EPOCH + timedelta(microseconds=microseconds)
            transactions.append(Transaction(xid & 0xFFFFFFFF, Lsn(lsn), Lsn(end), time, [], 0))
            last = end
        for transaction in transactions:
            self._note(transaction.xid)
        return transactions

    def _known(self, oid: int) -> Described | None:
        try:
            return self._by_oid[oid] if oid in self._told else None
        except ProtocolError:  # reading its rows tells
            return None

    @property
    def turns(self) -> int:
        """How often relations had to be described anew for the transactions that followed."""
        return self._relations.turns

    def snapshot(self) -> "PgOutput":
        """Give another decoder that has decoded the same."""
        return PgOutput(self._relations.fork(), bulk=self._bulk, told=self._told)

    def decode(self, payload: bytes | memoryview) -> Sequence[Message]:
        """Decode one message. Raise ProtocolError where it is none of pgoutput's."""
        data = bytes(payload)
        try:
            return self._decoders[data[:1]](data)
        except KeyError as error:
            raise ProtocolError(f"pgoutput sent an unknown message or relation: {error}") from None
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise ProtocolError(
                f"pgoutput sent a message of another form: {type(error).__name__}"
            ) from None

    def _begin(self, data: bytes) -> Sequence[Message]:
        begin = _begin(data)
        self._note(begin.xid)
        return (begin,)

    def _note(self, xid: int) -> None:
        """Note which transaction has begun."""
        if self._relations.begin(xid):
            self._by_oid.clear()

    def _relation(self, data: bytes) -> Sequence[Message]:
        (oid,) = _OID.unpack_from(data, 1)
        schema, position = _string(data, 5)
        table, position = _string(data, position)
        reported = TableName(schema or "pg_catalog", table)
        full = data[position : position + 1] == b"f"
        (count,) = _INT16.unpack_from(data, position + 1)
        columns, flagged = [], []
        position += 3
        for _ in range(count):
            flags = data[position]
            name, position = _string(data, position + 1)
            type_oid, typmod = _TYPE.unpack_from(data, position)
            position += _TYPE.size
            columns.append(self._relations.column(name, type_oid, typmod))
            flagged += [name] if flags & _IS_KEY else []
        self._told[oid] = _Told(reported, columns, [] if full else flagged)
        self._by_oid[oid] = self._described(self._told[oid])
        return ()

    def _described(self, told: "_Told") -> Described:
        reported, told_columns, told_key = told
        names = self._relations.named(reported, [column.name for column in told_columns])
        now = dict(zip((column.name for column in told_columns), names, strict=True))
        columns = [replace(column, name=now[column.name]) for column in told_columns]
        flagged = tuple(now[name] for name in told_key)
        known = self._relations.known(reported)
        generated = self._relations.generated(reported)
        kept = [i for i, column in enumerate(columns) if column.name not in generated]
        key = known.key or flagged
        if known.key and flagged and set(flagged) != set(known.key):
            raise ProtocolError(
                f"the key of {known.name} is now {', '.join(flagged)}, and was "
                f"{', '.join(known.key)}",
                hint="its replica identity or key was changed: start the daemon again to read the "
                "catalog; a read table must have the same key",
            )
        if not set(key) <= set(names):
            raise ProtocolError(f"the key of {known.name} is no longer in its rows")
        relation = self._relations.described(reported, [columns[i] for i in kept], key)
        return Described(
            relation,
            len(columns),
            None if len(kept) == len(columns) else tuple(kept),
            relation.name in self._bulk,
        )

    def _inserted(self, data: bytes) -> Sequence[Message]:
        described = self._by_oid[_OID.unpack_from(data, 1)[0]]
        values = _short_row(data, described) or _row(data, 5, described, (_NEW,))[0]
        return (Inserted(described.relation, values),)

    def _updated(self, data: bytes) -> Sequence[Message]:
        described = self._by_oid[_OID.unpack_from(data, 1)[0]]
        if values := _short_row(data, described):
            return (Updated(described.relation, values),)
        position = 5
        key = old = None
        if data[position] != _NEW:
            kind = data[position]
            before, position = _row(data, position, described, (_KEY, _OLD))
            key, old = _old(described.relation, kind, before)
        values, _ = _row(data, position, described, (_NEW,))
        return (updated(described.relation, values, old_key=key, old_values=old),)

    def _deleted(self, data: bytes) -> Sequence[Message]:
        described = self._by_oid[_OID.unpack_from(data, 1)[0]]
        before, _ = _row(data, 5, described, (_KEY, _OLD))
        return (Deleted(described.relation, *_old(described.relation, data[5], before)),)

    def _truncated(self, data: bytes) -> Sequence[Message]:
        (count,) = _INT32.unpack_from(data, 1)
        oids = struct.unpack_from(f">{count}I", data, 6)
        return [Truncated(self._by_oid[oid].relation) for oid in oids]


class _Told(NamedTuple):
    """A relation as it was sent, and the columns flagged as its key."""

    reported: TableName
    columns: list[Column]
    key: list[str]


class _ByOid(dict[int, Described]):
    """Relations by oid, each described when it is asked for."""

    def __init__(self, describe: Callable[[int], Described]) -> None:
        super().__init__()
        self._describe = describe

    def __missing__(self, oid: int) -> Described:
        described = self[oid] = self._describe(oid)
        return described


def _old(relation: Relation, kind: int, before: Values) -> tuple[Values, Values | None]:
    """Give the old key, and the whole old row where it was sent."""
    whole = kind == _OLD and len(relation.columns) > len(relation.key)
    return relation.key_of(before), before if whole else None


def _short_row(data: bytes, described: Described) -> Values | None:
    """Read the usual row fast: every value sent, as text of less than 128 bytes.

    Such a value is `t`, three zero bytes, its length, its text; no text holds a zero byte, so the
    row can be split there. Where anything is otherwise the number of parts is, too (or a length
    of 128 and more is no UTF-8), and the row is left to `_row`.
    """
    if data[5] != _NEW or described.kept is not None:
        return None
    try:
        first, *parts = data[8:].decode().split("t\0\0\0")
    except UnicodeDecodeError:
        return None
    if (
        len(parts) != described.sent
        or first
        or not parts
        or _INT16.unpack_from(data, 6)[0] != len(parts)
    ):
        return None
    if ord(parts[-1][0]) != len(parts[-1].encode()) - 1:
        return None
    return tuple([part[1:] for part in parts])


def _row(
    data: bytes, position: int, described: Described, markers: tuple[int, ...]
) -> tuple[Values, int]:
    """Read a marker and its TupleData; give the values kept and the position after them."""
    if data[position] not in markers:
        raise ValueError("no such tuple")
    (count,) = _INT16.unpack_from(data, position + 1)
    if count != described.sent:
        raise ValueError("the tuple has another number of columns than its relation")
    position += 3
    values: list[Text] = []
    for _ in range(count):
        kind = data[position]
        position += 1
        if kind == _TEXT:
            start = position + 4
            (length,) = _LENGTH.unpack_from(data, position)
            position = start + length
            values.append(data[start:position].decode())
        elif kind == _NULL:
            values.append(None)
        elif kind == _UNCHANGED:
            values.append(UNCHANGED)
        else:
            raise ValueError("unknown kind of column")
    if position > len(data):
        raise ValueError("the tuple is longer than the message")
    kept = described.kept
    return tuple(values) if kept is None else tuple(values[i] for i in kept), position


def _string(data: bytes, position: int) -> tuple[str, int]:
    end = data.index(b"\0", position)
    return data[position:end].decode(), end + 1


def _begin(data: bytes) -> Begin:
    commit_lsn, microseconds, xid = _BEGIN.unpack_from(data, 1)
    commit_time = _EPOCH + timedelta(microseconds=microseconds)
    return Begin(xid & 0xFFFFFFFF, Lsn(commit_lsn), commit_time)


def _commit(data: bytes) -> Sequence[Message]:
    _, commit_lsn, end_lsn, _ = _COMMIT.unpack_from(data, 1)
    return (Commit(Lsn(commit_lsn), Lsn(end_lsn)),)


def _emitted(data: bytes) -> Sequence[Message]:
    prefix, position = _string(data, 10)
    (length,) = _LENGTH.unpack_from(data, position)
    content = data[position + 4 :]
    if len(content) != length:
        raise ValueError("the content has another length")
    return (Emitted(prefix, content.decode(errors="replace")),)


def _nothing(_data: bytes) -> Sequence[Message]:
    return ()


def options(publications: Iterable[str]) -> dict[str, str]:
    """Give the plugin options for these publications."""
    names = ",".join('"{}"'.format(name.replace('"', '""')) for name in publications)
    return {"proto_version": "1", "publication_names": names, "messages": "true"}

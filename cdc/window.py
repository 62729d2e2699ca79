"""What the stream brought that a snapshot does not see: to bring a chunk's rows up to date.

Visibility and the order of the WAL are not the same order, so transactions are told by their ids
(docs/copy.md).
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cdc.assemble import Transaction
from cdc.change import Change, Deleted, Inserted, Relation, Truncated, Updated
from cdc.copy_state import Key
from cdc.names import TableName
from cdc.rows import Bulk
from cdc.snapshot import Snapshot
from cdc.values import UNCHANGED, Text

Values = tuple[Text, ...]
Item = Transaction | Bulk

_LIMIT_BYTES: Final = 16 * 1024**2


@dataclass(eq=False)
class Opened:
    """A snapshot that chunks of a table are read in, and what has come that it does not see.

    `dropped` tells that it was too much to keep: the chunks are of no use.
    """

    source: TableName
    snapshot: Snapshot
    dropped: bool = False
    _items: list[Item] = field(default_factory=list)
    _size: int = 0

    def keep(self, item: Item, limit: int) -> None:
        """Keep what has come, if there is something in it that the snapshot does not see."""
        if self.dropped or all(self.snapshot.sees(xid) for xid in _xids(item)):
            return
        wanted = _of_table(item, self.source)
        if wanted is not None:
            self._items.append(wanted)
            self._size += wanted.size
        if self._size > limit:
            self.dropped = True
            self._items.clear()

    def changes(self) -> Iterator[Change]:
        """Give the table's changes that the snapshot does not see, in order."""
        for item in self._items:
            for transaction in (item,) if isinstance(item, Transaction) else item.in_order():
                if not self.snapshot.sees(transaction.xid):
                    yield from _changes(transaction, self.source)


def _xids(item: Item) -> list[int]:
    if isinstance(item, Transaction):
        return [item.xid]
    return [transaction.xid for transaction in item.transactions]


def _changes(transaction: Transaction, source: TableName) -> list[Change]:
    return [change for change in transaction.changes if change.relation.name == source]


def _of_table(item: Item, source: TableName) -> Item | None:
    """Give what concerns the table; None where nothing does."""
    if isinstance(item, Transaction):
        changes = _changes(item, source)
        if not changes:
            return None
        size = item.size * len(changes) // len(item.changes)
        return Transaction(item.xid, item.commit_lsn, item.end_lsn, item.commit_time, changes, size)
    in_rows = any(rows.relation.name == source for rows in item.rows)
    return item if in_rows or any(_changes(t, source) for t in item.transactions) else None


class Window:
    """The snapshots that are open, and the transactions not known to be visible to every new one.

    One thread opens and closes; another one notes what the stream brings.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        """Keep up to so many bytes of changes for each snapshot."""
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._opened: list[Opened] = []
        self._unsettled: list[int] = []  # streamed, and not known to be visible

    def open(self, source: TableName, snapshot: Snapshot) -> Opened | None:
        """Begin to keep what the snapshot does not see.

        Give None where that is something that has come already: another one must be taken.
        """
        with self._lock:
            if self._settle(snapshot):
                return None
            opened = Opened(source, snapshot)
            self._opened.append(opened)
            return opened

    def is_open(self, source: TableName) -> bool:
        """Tell whether chunks of a table are being read."""
        with self._lock:
            return any(opened.source == source for opened in self._opened)

    def settle(self, snapshot: Snapshot) -> None:
        """Forget the transactions that a snapshot sees: later ones will see them too."""
        with self._lock:
            self._settle(snapshot)

    def _settle(self, snapshot: Snapshot) -> list[int]:
        self._unsettled = [xid for xid in self._unsettled if not snapshot.sees(xid)]
        return self._unsettled

    def note(self, item: Item) -> None:
        """Take note of what the stream brought."""
        with self._lock:
            self._unsettled += _xids(item)
            for opened in self._opened:
                opened.keep(item, self._limit)

    def close(self, opened: Opened) -> None:
        """Keep no more for a snapshot; closing it again does nothing."""
        with self._lock:
            if opened in self._opened:
                self._opened.remove(opened)


@dataclass(frozen=True)
class UpToDate:
    """A chunk's rows as of now: those nothing happened to, by key, and those that changed.

    Rows that came into being meanwhile are among the changed ones, wherever their keys lie. Of
    those in `partial`, which changed elsewhere, some values are unknown (UNCHANGED).
    """

    untouched: dict[Key, Values]
    changed: list[Values]
    partial: list[Values] = field(default_factory=list)


def bring_up_to_date(
    rows: Mapping[Key, Values], changes: Iterable[Change], relation: Relation
) -> UpToDate | None:
    """Bring rows up to date with changes; None where those describe the table otherwise.

    Values that were not sent stay as they are. What became of rows that are neither here nor came
    into being by the changes is left to the stream, which has written it.
    """
    untouched, changed, partial = dict(rows), dict[Key, Values](), dict[Key, Values]()

    def take(key: Key) -> Values | None:
        found = [side.pop(key, None) for side in (changed, partial, untouched)]
        return next((values for values in found if values is not None), None)

    for change in changes:
        if change.relation.names != relation.names:
            return None
        match change:
            case Inserted():
                key = row_key(relation, change.values)
                take(key)
                changed[key] = change.values
            case Updated():
                before = take(_as_key(change.old_key_values or relation.key_of(change.values)))
                key = row_key(relation, change.values)
                values = _filled(change.values, before)
                take(key)
                (partial if UNCHANGED in values else changed)[key] = values
            case Deleted():
                take(_as_key(change.key_values))
            case Truncated():
                for side in (untouched, changed, partial):
                    side.clear()
    return UpToDate(untouched, list(changed.values()), list(partial.values()))


def row_key(relation: Relation, values: Values) -> Key:
    """Give a row's key as text."""
    return _as_key(relation.key_of(values))


def _as_key(values: Values) -> Key:
    return tuple(str(value) for value in values)


def _filled(values: Values, before: Values | None) -> Values:
    if before is None or UNCHANGED not in values:
        return values
    return tuple(
        old if value is UNCHANGED else value for value, old in zip(values, before, strict=True)
    )

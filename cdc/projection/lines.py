"""Whole rows of a mirror, ready to be written in bulk, merged by key."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cdc import lines
from cdc.operation import Key, Shape
from cdc.rows import Rows


class BulkPlan(NamedTuple):
    """How rows of one relation are written in bulk.

    Positions are those of the relation's columns: all that are kept, in order, as in `shape`; and
    those of the read table's key, as in `key_shape`. Without a key, rows are appended.
    """

    shape: Shape
    positions: tuple[int, ...]
    key_shape: Shape
    key_positions: tuple[int, ...]

    @property
    def appends(self) -> bool:
        return not self.key_positions


class Replaced(NamedTuple):
    """Encoded rows that take the place of all rows with keys after `after` up to `last`.

    None is where the table begins, or ends. Rows with keys after `beyond` go, too, if that is not
    None. `text` may be empty.
    """

    plan: BulkPlan
    text: bytes
    after: tuple[str, ...] | None
    last: tuple[str, ...] | None
    beyond: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"<Replaced of {self.plan.shape.table.name}>"


@dataclass(slots=True, repr=False)
class Lines:
    """Encoded rows by key, and rows to append.

    `fresh` are rows that came into being in this segment: the read table cannot hold them yet.
    `known` it may hold. No key is in both. Fresh rows are not merged by key before anything else
    happens to the table: until then they are only in `fresh_texts`, each text with many lines.
    """

    plan: BulkPlan
    fresh_texts: list[bytes] = field(default_factory=list)
    fresh: dict[Key, bytes] = field(default_factory=dict)
    known: dict[Key, bytes] = field(default_factory=dict)
    appended: list[bytes] = field(default_factory=list)
    known_text: bytes = b""
    _unmerged: list[Rows] = field(default_factory=list)

    def seal(self) -> None:
        """Join the rows into what the writer sends: `known_text` and `fresh_texts`.

        It is the projection thread's work, for the writer's thread is the one that others wait for.
        """
        if self.known:
            self.known_text = lines.joined(self.known.values())
        if self.fresh:
            self.fresh_texts.append(lines.joined(self.fresh.values()))

    def by_key(self) -> dict[Key, bytes]:
        """Give all rows but those to append, by key.

        Nothing changes: where the connection is lost they may be asked for again as `seal` left
        them.
        """
        rows = self.known | self.fresh
        for unmerged in self._unmerged:
            rows |= net_rows(unmerged, self.plan).written
        return rows

    def __contains__(self, key: Key) -> bool:
        self.merge()
        return key in self.fresh or key in self.known

    def discard(self, key: Key) -> None:
        """Drop the row with this key, if it is here."""
        self.merge()
        self.fresh.pop(key, None)
        self.known.pop(key, None)

    def clear(self) -> None:
        """Drop all rows."""
        for rows in (self.fresh_texts, self._unmerged, self.fresh, self.known, self.appended):
            rows.clear()

    def append(self, rows: Rows) -> None:
        """Take the inserted rows of a table that is only ever added to."""
        picked = [i for i, inserted in enumerate(rows.inserted) if inserted]
        if picked:
            self.appended.append(rows.text(picked, self.plan.positions))

    def begin(self, rows: Rows) -> None:
        """Take inserted rows of a table to which nothing else has happened in this segment."""
        self._unmerged.append(rows)
        every = range(len(rows.inserted))
        self.fresh_texts.append(rows.text(every, self.plan.positions))

    @property
    def only_begun(self) -> bool:
        """Tell whether all rows so far came in by `begin`."""
        return not self.fresh and not self.known

    def merge(self) -> None:
        """Merge by key what was not."""
        unmerged, self._unmerged = self._unmerged, []
        self.fresh_texts.clear()
        for rows in unmerged:
            self.put(net_rows(rows, self.plan), touched=())

    def put(self, net: "NetRows", *, touched: Iterable[Key]) -> None:
        """Set rows over older ones; those with a key that the segment has touched are not fresh."""
        self.merge()
        rows, begun = net.written, net.begun
        for old in (self.fresh, self.known):
            if not old.keys().isdisjoint(rows):
                for key in old.keys() & rows.keys():
                    old[key] = rows.pop(key)
        for key in touched:
            if key in rows:
                self.known[key] = rows.pop(key)
        if begun is None:
            self.fresh.update(rows)
        elif not begun:
            self.known.update(rows)
        else:
            for key, line in rows.items():
                (self.fresh if key in begun else self.known)[key] = line


class NetRows(NamedTuple):
    """What rows come to, by key: the lines written, the keys deleted.

    `begun` are the keys of rows whose first change was to come into being; None: all.
    """

    written: dict[Key, bytes]
    deleted: list[Key]
    begun: set[Key] | None

    def __repr__(self) -> str:
        return f"<NetRows: {len(self.written)} written, {len(self.deleted)} deleted>"


def net_rows(rows: Rows, plan: BulkPlan) -> NetRows:
    """Merge rows by key: the last change of each counts."""
    keys = rows.keys(plan.key_positions)
    last = dict(zip(keys, range(len(keys)), strict=True))
    is_deleted = rows.deleted
    if len(last) == len(keys) and not any(is_deleted):
        picked: Sequence[int] = range(len(keys))
        deleted = []
    else:
        picked = sorted(i for i in last.values() if not is_deleted[i])
        deleted = [key for key, i in last.items() if is_deleted[i]]
    encoded = rows.lines(picked, plan.positions) if picked else []
    kept = keys if len(encoded) == len(keys) else [keys[i] for i in picked]
    written = dict(zip(kept, encoded, strict=True))
    return NetRows(written, deleted, _begun(keys, rows.inserted))


def _begun(keys: Sequence[Key], inserted: Sequence[bool]) -> set[Key] | None:
    if all(inserted):
        return None
    if not any(inserted):
        return set()
    first = dict(zip(reversed(keys), reversed(inserted), strict=True))
    return {key for key, is_insert in first.items() if is_insert}

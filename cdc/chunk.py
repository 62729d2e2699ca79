"""Chunks: rows of a source table as a snapshot saw them, on their way into the stream."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from cdc.change import Relation
from cdc.copy_state import Key, Unit
from cdc.lsn import Lsn
from cdc.snapshot import Snapshot


class Chunk(Struct):
    """Rows with a key in (after, until], or with the keys named, or all there are.

    `text` holds the rows as `cdc.lines` encodes them. Whatever `snapshot` sees, the stream has
    brought once it has passed `watermark`. `until` is None where the table ends. `asked` tells for
    which asking it was read. `ordered` tells that every database puts its keys into the same
    order. `pieces` brings the rows of a table that has no key, and cannot be read in parts, when
    it is placed.
    """

    unit: Unit
    asked: int
    relation: Relation
    snapshot: Snapshot
    watermark: Lsn
    text: bytes = b""
    count: int = 0
    after: Key | None = None
    until: Key | None = None
    keys: tuple[Key, ...] = ()
    ordered: bool = False
    pieces: Iterator[tuple[bytes, int]] | None = None

    @property
    def size(self) -> int:
        """About what it takes in memory, in bytes."""
        return len(self.text)

    @property
    def ends(self) -> bool:
        """Tell whether the table's rows have all been read with it."""
        return not self.keys and self.until is None

    def __eq__(self, other: Any) -> bool:
        return self is other

    __hash__ = object.__hash__

"""Chunks: rows of a source table as a snapshot saw them, to be placed into the stream."""

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from cdc import lines
from cdc.change import Relation
from cdc.copy_state import Key, Unit
from cdc.lsn import Lsn
from cdc.window import Opened


class Chunk(Struct, eq=False):
    """Rows with keys after `after` up to `last`, or with the keys named, or all there are.

    `text` holds the rows as `cdc.lines` encodes them. Whatever `opened`'s snapshot sees, the
    stream has brought once it has passed `watermark`. `bound` is the key of the last row there was
    when the table began to be read: rows after it came into being since, and the stream brings
    them. `ends` tells that no row up to it is left to be read. Of the `first` chunk of those that
    have a bound, the snapshot is the one that tells it. `asked` tells for which asking it was read,
    `expected` how many rows the table may have. `ordered` tells that every database puts its keys
    into the same order. `pieces` brings the rows of a table without a key, which cannot be read in
    parts, when it is placed. `in_last_pass` tells, once it is placed, that the table is not going
    to be read again from its beginning. Of a `part` the rest follows. `partitions` names the set of
    partitions that the rows were read from.
    """

    unit: Unit
    asked: int
    relation: Relation
    opened: Opened
    watermark: Lsn
    text: bytes = b""
    count: int = 0
    after: Key | None = None
    last: Key | None = None
    bound: Key | None = None
    first: bool = False
    ends: bool = False
    keys: tuple[Key, ...] = ()
    expected: int | None = None
    ordered: bool = False
    pieces: Iterator[tuple[bytes, int]] | None = None
    in_last_pass: bool = False
    part: bool = False
    partitions: str | None = None

    def __repr__(self) -> str:
        return f"<Chunk of {self.relation.name}: {self.count} rows>"

    @property
    def size(self) -> int:
        """About what it takes in memory, in bytes."""
        return len(self.text)

    def take(self, size: int) -> "Chunk | None":
        """Take a part of about so many bytes from the beginning; None where nothing would stay."""
        end = lines.cut(self.text, size)
        if end == len(self.text):
            return None
        rows = lines.decode(self.text[:end])
        last = tuple(str(value) for value in self.relation.key_of(rows[-1]))
        taken = replace(
            self, text=self.text[:end], count=len(rows), last=last, ends=False, part=True
        )
        self.text, self.count, self.after = self.text[end:], self.count - len(rows), last
        self.first = False
        return taken

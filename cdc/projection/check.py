"""Checks: what the read tables should hold of some source rows, as of a point of the stream."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from cdc.change import Relation
from cdc.copy_state import Key, Unit
from cdc.lsn import Lsn
from cdc.operation import Delete, Shape, Update, Upsert
from cdc.projection.lines import BulkPlan
from cdc.verify_state import Ledger, Verification
from cdc.window import Opened

Kind = type[Upsert] | type[Update] | type[Delete]


class Expected(NamedTuple):
    """Read rows of one kind: with these values, these values if they exist, or not there at all.

    The values are in `rows`, or encoded as `cdc.lines` does in `text`. `exists` tells that there is
    a row with each of the keys, whatever it holds.
    """

    kind: Kind
    shape: Shape
    rows: Sequence[tuple[Any, ...]]
    exists: bool
    text: bytes = b""

    def __repr__(self) -> str:
        return f"<Expected of {self.shape.table.name}>"


class Range(NamedTuple):
    """The rows of a read table with keys after `after` up to `last`.

    None is where the table begins, or ends.
    """

    table: sa.Table
    after: Key | None
    last: Key | None


@dataclass(frozen=True, slots=True)
class Checksum:
    """How many rows there should be, and the sum of their hashes (`cdc.row_hash`)."""

    plan: BulkPlan
    count: int
    total: int


class Walk:
    """A walk over all source rows of some units: what no row leads to is extra in the end.

    `begun` tells that a connection has begun to note keys; `lost`, that they went with it.
    """

    def __init__(self, tables: Iterable[sa.Table]) -> None:
        self.tables = frozenset(tables)
        self.begun = False
        self.lost = False


@dataclass(eq=False, kw_only=True, repr=False)
class Check:
    """A step of a verification, to be compared with the read tables at its point of the stream.

    `after` is how far the unit has to be by then, and `last` how far it is afterwards. `count` and
    `skipped` are source rows compared and left out. Nothing but the rows expected may be in
    `within`. `walk` notes the keys of the rows expected; of `judged` tables, each with the unit
    that answers for it, all the rest is extra. `finishes` are units that are done with it. `anew`
    tells that keys kept from before are to be forgotten.
    `results` are set when it has been worked out: none, where it came to nothing.
    """

    ledger: Ledger
    unit: Unit
    asked: int
    after: Key | None
    last: Key | None = None
    count: int = 0
    skipped: int = 0
    estimate: int | None = None
    expected: Sequence[Expected] = ()
    within: Range | None = None
    checksum: Checksum | None = None
    walk: Walk | None = None
    judged: Sequence[tuple[sa.Table, Unit]] = ()
    finishes: Sequence[Unit] = ()
    note: str | None = None
    anew: bool = False
    results: list[Verification] | None = field(default=None, init=False)

    def committed(self) -> None:
        """Note that the commit it was in took effect."""
        for verification in self.results or ():
            self.ledger.take(verification)
        self.ledger.release(fruitless=not self.results)


@dataclass(eq=False, kw_only=True, repr=False)
class Probe:
    """Source rows as a snapshot saw them, for a check at a point of the stream past `watermark`.

    They are those with keys after `start` up to the check's `last`: as lines in `text`, or only
    their number and `total`, the sum of their hashes. `ranged` tells that the read table's rows
    with those keys are in the same range. `deletes` tells that rows which a projector deletes are
    to be looked for. Without `opened` there are no rows.
    """

    check: Check
    watermark: Lsn = Lsn(0)  # noqa: RUF009  immutable
    relation: Relation | None = None
    opened: Opened | None = None
    text: bytes = b""
    total: int | None = None
    start: Key | None = None
    ends: bool = False
    ranged: bool = False
    deletes: bool = False

    @property
    def size(self) -> int:
        """About what it takes in memory, in bytes."""
        return len(self.text)

"""Rows set apart from the stream, to be written in bulk instead of change by change."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from msgspec import Struct

from cdc.assemble import Transaction
from cdc.change import Deleted, Inserted, Relation, Updated
from cdc.lsn import Lsn
from cdc.names import TableName

Key = Any
"""A key as text: the one key column's, or a tuple of several."""


class Rows(Protocol):
    """Inserted, updated and deleted rows of one relation, in commit order, each wholly known."""

    @property
    def relation(self) -> Relation:
        """The table they are of."""

    @property
    def inserted(self) -> Sequence[bool]:
        """Tell which came into being."""

    @property
    def deleted(self) -> Sequence[bool]:
        """Tell which are gone: of them only the key is known."""

    def keys(self, positions: Sequence[int]) -> list[Key]:
        """Give the texts of the key columns, by their positions in the relation."""

    def lines(self, picked: Sequence[int], positions: Sequence[int]) -> list[bytes]:
        """Encode columns of the rows picked as `cdc.lines` does.

        `picked` ascends, is not empty, and holds no deleted row.
        """

    def text(self, picked: Sequence[int], positions: Sequence[int]) -> bytes:
        """Encode them together, each line with its end."""


InOrder = Callable[[], list[Transaction]]
"""Reads a stretch of the stream once more, as transactions with every change in its place."""


class Bulk(Struct):
    """A stretch of the stream that holds many changes.

    `transactions` are those in it, without the changes that are set apart in `rows`; the last one
    may be a piece. `in_order` is for when the rows must be told apart. `size` is about what it
    takes in memory, in bytes.
    """

    transactions: list[Transaction]
    rows: list[Rows]
    in_order: InOrder
    size: int

    def __repr__(self) -> str:
        return f"<Bulk of {len(self.transactions)} transactions>"

    @property
    def end_lsn(self) -> Lsn | None:
        """Where the last transaction ends; None where it goes on."""
        return self.transactions[-1].end_lsn

    @property
    def commit_time(self) -> datetime:
        """When the last transaction committed."""
        return self.transactions[-1].commit_time

    def received(self) -> Counter[tuple[TableName, type]]:
        """Count the rows set apart by table and kind of change."""
        counts: Counter[tuple[TableName, type]] = Counter()
        for rows in self.rows:
            inserted, deleted = sum(rows.inserted), sum(rows.deleted)
            name = rows.relation.name
            counts[name, Inserted] += inserted
            counts[name, Deleted] += deleted
            counts[name, Updated] += len(rows.inserted) - inserted - deleted
        return +counts

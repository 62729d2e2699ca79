"""Copies: which rows from before streaming a projector has been given, and how far."""

from datetime import datetime
from typing import Literal, NamedTuple

from msgspec import Struct

from cdc.names import TableName

State = Literal["waiting", "copying", "done", "skipped"]
"""Nothing of a copy that waits has been written; one that was skipped is not to be made."""

Purpose = Literal["first", "again", "resync"]
"""Of a first copy the projector has written nothing yet, and gets no changes while it waits.
A resync also removes the read rows whose source rows are gone."""

Key = tuple[str, ...]
"""The key columns' values as text, in the order of the source table's key."""


class Unit(NamedTuple):
    """What is copied by itself: the rows of one source table for one projector."""

    projector: str
    source: TableName


class Copy(Struct, frozen=True):
    """How far the copy of a unit is.

    `asked` counts up each time somebody asks for it anew. `reached` is the key of the last row
    copied. The rows with the keys in `again` are read once more. `passes` says how often the table
    is still read: a projector whose read table others write too may update rows that those bring.
    `partitions` names the set of partitions that the table had when it was last read.
    """

    unit: Unit
    purpose: Purpose = "first"
    state: State = "waiting"
    asked: int = 1
    reached: Key | None = None
    again: tuple[Key, ...] = ()
    passes: int = 1
    partitions: str | None = None
    copied: int = 0
    expected: int | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def due(self) -> bool:
        """Tell whether something is left to be copied."""
        return self.state in {"waiting", "copying"}

    @property
    def begun(self) -> bool:
        """Tell whether the projector gets the changes of the stream."""
        return self.purpose != "first" or self.state != "waiting"

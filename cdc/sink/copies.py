"""The copies: which rows from before streaming each projector has been given, and how far.

Stored in the same commit as the rows, like the checkpoint.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from msgspec.structs import replace

from cdc.copy_state import Copy, Purpose, Unit
from cdc.names import TableName
from cdc.sink.checkpoint import METADATA

TABLE: Final = sa.Table(
    "cdc_copy",
    METADATA,
    sa.Column("slot", sa.String(63), primary_key=True),
    sa.Column("projector", sa.String(255), primary_key=True),
    sa.Column("source", sa.String(255), primary_key=True),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("asked", sa.Integer, nullable=False, comment="how often it was asked for"),
    sa.Column("reached", sa.JSON(none_as_null=True), comment="key of the last row copied, as text"),
    sa.Column("again", sa.JSON, nullable=False, comment="keys of rows to be read once more"),
    sa.Column("passes", sa.Integer, nullable=False, comment="how often the table is still read"),
    sa.Column("partitions", sa.String(32), comment="which ones the table had when last read"),
    sa.Column("copied", sa.BigInteger, nullable=False, comment="rows"),
    sa.Column("expected", sa.BigInteger, comment="rows, as the write database estimates"),
    sa.Column("started_at", sa.DateTime(timezone=True)),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
)


def load(connection: sa.Connection, slot: str) -> dict[Unit, Copy] | None:
    """Give the slot's copies; None where the read database has no table of them yet."""
    if not sa.inspect(connection).has_table(TABLE.name):
        return None
    rows = connection.execute(sa.select(TABLE).where(TABLE.c.slot == slot))
    copies = map(_from_row, rows)
    return {copy.unit: copy for copy in copies}


def _from_row(row: Any) -> Copy:
    return Copy(
        unit=Unit(row.projector, TableName.parse(row.source)),
        purpose=row.purpose,
        state=row.state,
        asked=row.asked,
        reached=None if row.reached is None else tuple(row.reached),
        again=tuple(map(tuple, row.again)),
        passes=row.passes,
        partitions=row.partitions,
        copied=row.copied,
        expected=row.expected,
        started_at=_in_utc(row.started_at),
        updated_at=_in_utc(row.updated_at),
    )


def _in_utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _values(copy: Copy) -> dict[str, Any]:
    return {
        "purpose": copy.purpose,
        "state": copy.state,
        "reached": None if copy.reached is None else list(copy.reached),
        "again": list(map(list, copy.again)),
        "passes": copy.passes,
        "partitions": copy.partitions,
        "copied": copy.copied,
        "expected": copy.expected,
        "started_at": copy.started_at,
        "updated_at": datetime.now(UTC),
    }


def _of(slot: str, unit: Unit) -> sa.ColumnElement[bool]:
    return sa.and_(
        TABLE.c.slot == slot,
        TABLE.c.projector == unit.projector,
        TABLE.c.source == str(unit.source),
    )


def add(connection: sa.Connection, slot: str, copies: Iterable[Copy]) -> None:
    """Store copies of units that have none."""
    rows = [
        {
            "slot": slot,
            "projector": copy.unit.projector,
            "source": str(copy.unit.source),
            "asked": copy.asked,
            **_values(copy),
        }
        for copy in copies
    ]
    if rows:
        connection.execute(sa.insert(TABLE), rows)


def ask(
    connection: sa.Connection, slot: str, unit: Unit, *, purpose: Purpose, passes: int = 1
) -> None:
    """Ask for a unit to be copied from the beginning, whatever became of it before."""
    values = _values(Copy(unit, purpose=purpose, passes=passes))
    asked = {"asked": TABLE.c.asked + 1}
    connection.execute(sa.update(TABLE).where(_of(slot, unit)).values(values | asked))


def store(connection: sa.Connection, slot: str, copy: Copy) -> bool:
    """Store how far a copy is; tell False where it has been asked for anew meanwhile."""
    statement = (
        sa.update(TABLE)
        .where(_of(slot, copy.unit), TABLE.c.asked == copy.asked)
        .values(_values(copy))
    )
    return connection.execute(statement).rowcount == 1


def are_stored(connection: sa.Connection, slot: str, copies: Collection[Copy]) -> bool:
    """Tell whether copies are stored as far as they are here, or have been asked for anew."""
    if not copies:
        return True
    stored = load(connection, slot) or {}
    return all(copy.unit in stored and _covers(stored[copy.unit], copy) for copy in copies)


def _covers(stored: Copy, copy: Copy) -> bool:
    as_stored = replace(copy, started_at=stored.started_at, updated_at=stored.updated_at)
    return stored.asked != copy.asked or stored == as_stored


def forget(connection: sa.Connection, slot: str, units: Iterable[Unit] | None = None) -> None:
    """Delete the copies of units, or all of the slot's."""
    if not sa.inspect(connection).has_table(TABLE.name):
        return
    if units is None:
        connection.execute(sa.delete(TABLE).where(TABLE.c.slot == slot))
        return
    for unit in units:
        connection.execute(sa.delete(TABLE).where(_of(slot, unit)))

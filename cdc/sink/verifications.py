"""The verifications: how far each unit has been compared, and the keys that were found wrong.

Stored in the same commit as what was mended, like copies.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from msgspec.structs import replace

from cdc.copy_state import Unit
from cdc.names import TableName
from cdc.sink.checkpoint import METADATA
from cdc.verify_state import Mismatch, Verification

TABLE: Final = sa.Table(
    "cdc_verify",
    METADATA,
    sa.Column("slot", sa.String(63), primary_key=True),
    sa.Column("projector", sa.String(255), primary_key=True),
    sa.Column("source", sa.String(255), primary_key=True),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("asked", sa.Integer, nullable=False, comment="how often it was asked for"),
    sa.Column("sample", sa.Float, nullable=False, comment="percent"),
    sa.Column("repair", sa.Boolean, nullable=False),
    sa.Column("reached", sa.JSON(none_as_null=True), comment="key of the last source row, as text"),
    sa.Column("compared", sa.BigInteger, nullable=False, comment="source rows"),
    sa.Column("skipped", sa.BigInteger, nullable=False, comment="source rows"),
    sa.Column("expected", sa.BigInteger, comment="source rows, as the write database estimates"),
    sa.Column("missing", sa.BigInteger, nullable=False),
    sa.Column("extra", sa.BigInteger, nullable=False),
    sa.Column("different", sa.BigInteger, nullable=False),
    sa.Column("mended", sa.BigInteger, nullable=False),
    sa.Column("note", sa.Text, comment="what was not compared, and why"),
    sa.Column("started_at", sa.DateTime(timezone=True)),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
)
KEYS: Final = sa.Table(
    "cdc_verify_key",
    METADATA,
    sa.Column("slot", sa.String(63), primary_key=True),
    sa.Column("projector", sa.String(255), primary_key=True),
    sa.Column("source", sa.String(255), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("read_table", sa.Text, nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("key", sa.JSON, nullable=False, comment="as text, in the order of the key"),
)
MOST_KEYS: Final = 1_000
"""Keys kept of each unit."""

_STORED: Final = (
    *("phase", "sample", "repair", "compared", "skipped", "expected", "missing", "extra"),
    *("different", "mended", "note", "started_at"),
)


def exist(connection: sa.Connection) -> bool:
    """Tell whether the read database has a table of them."""
    return sa.inspect(connection).has_table(TABLE.name)


def load(connection: sa.Connection, slot: str) -> dict[Unit, Verification]:
    """Give the slot's verifications; none where the read database has no table of them yet."""
    if not exist(connection):
        return {}
    rows = connection.execute(sa.select(TABLE).where(TABLE.c.slot == slot))
    found = map(_from_row, rows)
    return {verification.unit: verification for verification in found}


def _from_row(row: Any) -> Verification:
    stored = {name: getattr(row, name) for name in _STORED if name != "started_at"}
    return Verification(
        unit=Unit(row.projector, TableName.parse(row.source)),
        asked=row.asked,
        reached=None if row.reached is None else tuple(row.reached),
        started_at=_in_utc(row.started_at),
        updated_at=_in_utc(row.updated_at),
        **stored,
    )


def _in_utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _values(verification: Verification) -> dict[str, Any]:
    return {
        **{name: getattr(verification, name) for name in _STORED},
        "reached": None if verification.reached is None else list(verification.reached),
        "updated_at": datetime.now(UTC),
    }


def _named(slot: str, unit: Unit) -> dict[str, str]:
    return {"slot": slot, "projector": unit.projector, "source": str(unit.source)}


def _of(table: sa.Table, slot: str, unit: Unit) -> sa.ColumnElement[bool]:
    return sa.and_(*(table.c[name] == value for name, value in _named(slot, unit).items()))


def ask(connection: sa.Connection, slot: str, verification: Verification) -> None:
    """Ask for a unit to be compared from the beginning, whatever became of it before."""
    unit, values = verification.unit, _values(verification)
    again = sa.update(TABLE).where(_of(TABLE, slot, unit))
    if not connection.execute(again.values(values | {"asked": TABLE.c.asked + 1})).rowcount:
        row = _named(slot, unit) | values | {"asked": 1}
        connection.execute(sa.insert(TABLE).values(row))
    connection.execute(sa.delete(KEYS).where(_of(KEYS, slot, unit)))


def store(connection: sa.Connection, slot: str, verification: Verification) -> bool:
    """Store how far a verification is; tell False where it has been asked for anew meanwhile."""
    statement = (
        sa.update(TABLE)
        .where(_of(TABLE, slot, verification.unit), TABLE.c.asked == verification.asked)
        .values(_values(verification))
    )
    return connection.execute(statement).rowcount == 1


def add_keys(connection: sa.Connection, slot: str, unit: Unit, found: Collection[Mismatch]) -> None:
    """Keep the keys of rows that were found wrong."""
    first = kept(connection, slot, unit)
    rows = [
        {
            **_named(slot, unit),
            "number": first + number,
            "read_table": one.table,
            "verdict": one.verdict,
            "key": list(one.key),
        }
        for number, one in enumerate(found)
    ]
    if rows:
        connection.execute(sa.insert(KEYS), rows)


def kept(connection: sa.Connection, slot: str, unit: Unit) -> int:
    """Count the keys that are kept of a unit."""
    counted = sa.select(sa.func.count()).select_from(KEYS).where(_of(KEYS, slot, unit))
    return int(connection.execute(counted).scalar_one())


def forget_keys(connection: sa.Connection, slot: str, unit: Unit) -> None:
    """Delete the keys that were kept of a unit."""
    connection.execute(sa.delete(KEYS).where(_of(KEYS, slot, unit)))


def keys(connection: sa.Connection, slot: str) -> dict[Unit, list[Mismatch]]:
    """Give the keys kept, by unit, in the order they were found."""
    found: dict[Unit, list[Mismatch]] = {}
    ordered = sa.select(KEYS).where(KEYS.c.slot == slot).order_by(KEYS.c.number)
    for row in connection.execute(ordered):
        unit = Unit(row.projector, TableName.parse(row.source))
        mismatch = Mismatch(row.read_table, row.verdict, tuple(row.key))
        found.setdefault(unit, []).append(mismatch)
    return found


def are_stored(connection: sa.Connection, slot: str, wanted: Iterable[Verification]) -> bool:
    """Tell whether verifications are stored as far as here, or have been asked for anew."""
    stored = load(connection, slot)
    return all(one.unit in stored and _covers(stored[one.unit], one) for one in wanted)


def _covers(stored: Verification, one: Verification) -> bool:
    as_stored = replace(one, started_at=stored.started_at, updated_at=stored.updated_at)
    return stored.asked != one.asked or stored == as_stored


def forget(connection: sa.Connection, slot: str) -> None:
    """Delete the slot's verifications."""
    if exist(connection):
        for table in (KEYS, TABLE):
            connection.execute(sa.delete(table).where(table.c.slot == slot))

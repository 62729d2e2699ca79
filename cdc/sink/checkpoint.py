"""The checkpoint: how far the read database is, stored in the same commit as its rows."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from cdc.errors import CheckpointMoved
from cdc.lsn import Lsn

METADATA: Final = sa.MetaData()
TABLE: Final = sa.Table(
    "cdc_checkpoint",
    METADATA,
    sa.Column("slot", sa.String(63), primary_key=True),
    sa.Column("plugin", sa.String(63), nullable=False),
    sa.Column("system_identifier", sa.String(32), nullable=False),
    sa.Column("timeline", sa.Integer, nullable=False),
    sa.Column("lsn", sa.BigInteger, comment="end_lsn of the last transaction applied, in bytes"),
    sa.Column("commit_time", sa.DateTime(timezone=True)),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
)


class Identity(NamedTuple):
    """Whose checkpoint it is."""

    slot: str
    plugin: str
    system_identifier: str
    timeline: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stored position. Without `lsn` it is an intent: the slot was about to be created.

    `updated_at` is when it was last written.
    """

    identity: Identity
    lsn: Lsn | None
    commit_time: datetime | None
    updated_at: datetime | None = None


def load(connection: sa.Connection, slot: str) -> Checkpoint | None:
    """Read the slot's checkpoint; None where there is none, or no table for it yet."""
    if not sa.inspect(connection).has_table(TABLE.name):
        return None
    row = connection.execute(sa.select(TABLE).where(TABLE.c.slot == slot)).one_or_none()
    if row is None:
        return None
    identity = Identity(row.slot, row.plugin, row.system_identifier, row.timeline)
    lsn = None if row.lsn is None else Lsn(row.lsn)
    return Checkpoint(identity, lsn, _in_utc(row.commit_time), _in_utc(row.updated_at))


def _in_utc(time: datetime | None) -> datetime | None:
    """Give the zone back that only Postgres keeps; what is stored is UTC."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def intend(connection: sa.Connection, identity: Identity) -> None:
    """Note that the slot is about to be created; durably, for the slot will be, too."""
    if connection.dialect.name == "postgresql":  # elsewhere each commit waits for the disk
        connection.execute(sa.text("set local synchronous_commit = on"))
    abandon(connection, identity.slot)
    connection.execute(
        sa.insert(TABLE).values(**identity._asdict(), lsn=None, updated_at=sa.func.now())
    )


def abandon(connection: sa.Connection, slot: str) -> None:
    """Forget an intent; a checkpoint stays."""
    connection.execute(sa.delete(TABLE).where(TABLE.c.slot == slot, TABLE.c.lsn.is_(None)))


def advance(
    connection: sa.Connection,
    identity: Identity,
    *,
    old: Lsn | None,
    new: Lsn,
    commit_time: datetime | None,
) -> None:
    """Move the checkpoint, if it is where we left it; raise CheckpointMoved where it is not."""
    parameters = {
        "for_slot": identity.slot,
        "old": None if old is None else int(old),
        "new": int(new),
        "timeline_now": identity.timeline,
        "committed": commit_time.astimezone(UTC) if commit_time else None,
    }
    statement = _FIRST if old is None else _ADVANCE
    if connection.execute(statement, parameters).rowcount != 1:
        raise _moved(identity, old)


def hold(connection: sa.Connection, identity: Identity, *, at: Lsn | None) -> None:
    """Raise CheckpointMoved unless the checkpoint is there, and keep it there till the commit."""
    parameters = {"for_slot": identity.slot, "old": None if at is None else int(at)}
    if connection.execute(_HOLD, parameters).rowcount != 1:
        raise _moved(identity, at)


def _moved(identity: Identity, old: Lsn | None) -> CheckpointMoved:
    return CheckpointMoved(
        f"the checkpoint of slot {identity.slot} is no longer at {old}: another daemon wrote it, "
        "or it was changed by hand",
        hint="nothing of this batch was applied. Find the other daemon (`cdc status`), and start "
        "this one again when it may take over",
    )


_SET: Final = {
    "lsn": sa.bindparam("new", type_=sa.BigInteger),
    "timeline": sa.bindparam("timeline_now"),
    # A position without transactions keeps the time of the last one that had some.
    "commit_time": sa.func.coalesce(
        sa.bindparam("committed", type_=sa.DateTime(timezone=True)), TABLE.c.commit_time
    ),
    "updated_at": sa.func.now(),
}
_UPDATE: Final = sa.update(TABLE).where(TABLE.c.slot == sa.bindparam("for_slot")).values(_SET)
_FIRST: Final = _UPDATE.where(TABLE.c.lsn.is_(None))
_ADVANCE: Final = _UPDATE.where(
    TABLE.c.lsn == sa.bindparam("old", type_=sa.BigInteger),
    sa.bindparam("new", type_=sa.BigInteger) > TABLE.c.lsn,
)

_HOLD: Final = (
    sa.update(TABLE)
    .where(
        TABLE.c.slot == sa.bindparam("for_slot"),
        TABLE.c.lsn == sa.bindparam("old", type_=sa.BigInteger),
    )
    .values(updated_at=sa.func.now())
)


def forget(connection: sa.Connection, slot: str) -> bool:
    """Delete the slot's checkpoint; tell whether there was one."""
    if not sa.inspect(connection).has_table(TABLE.name):
        return False
    return connection.execute(sa.delete(TABLE).where(TABLE.c.slot == slot)).rowcount > 0

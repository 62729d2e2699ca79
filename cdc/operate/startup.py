"""What to do at start, from what the slot and the checkpoint say: docs/architecture.md's table."""

from enum import Enum, auto

from cdc.errors import (
    ChangesConsumedElsewhere,
    SlotActive,
    SlotLost,
    SlotMismatch,
    SlotMissing,
    SlotWithoutCheckpoint,
    SourceReplaced,
)
from cdc.lsn import Lsn
from cdc.sink.checkpoint import Checkpoint
from cdc.source.slot import SlotState, System


class Start(Enum):
    """How to begin."""

    CREATE_SLOT = auto()
    ADOPT_SLOT = auto()
    STREAM = auto()


_COPY_AGAIN = (
    "changes are gone. `cdc resync` makes a new slot and copies everything again, beside the stream"
)


def decide(
    *,
    slot: SlotState | None,
    checkpoint: Checkpoint | None,
    system: System,
    name: str,
    plugin: str,
) -> Start:
    """Decide how to begin; raise a StartRefused where beginning would lose or double changes."""
    if checkpoint is None:
        if slot is not None:
            raise SlotWithoutCheckpoint(
                f"slot {name} exists, but the read database has no checkpoint for it",
                hint="it is somebody else's, or the read database was replaced. Choose another "
                f"source.slot; or, if nobody needs it: select pg_drop_replication_slot('{name}')",
                sql=[f"select pg_drop_replication_slot('{name}')"],
            )
        return Start.CREATE_SLOT
    if checkpoint.lsn is None:
        if slot is None:
            return Start.CREATE_SLOT
        _require_same_source(checkpoint, system, plugin=plugin)
        return _after_an_intent(slot, system, name=name, plugin=plugin)
    _require_same_source(checkpoint, system, plugin=plugin)
    _require_reached(checkpoint.lsn, system)
    usable = _require_usable(slot, system, name=name, plugin=plugin)
    _require_unconsumed(checkpoint.lsn, usable)
    return Start.STREAM


def _after_an_intent(slot: SlotState, system: System, *, name: str, plugin: str) -> Start:
    """Go on after being killed between noting that the slot would be made and its position."""
    if slot.confirmed_flush is None:
        raise SlotActive(f"slot {name} is still being created, by process {slot.active_pid}")
    if slot.active:
        raise SlotActive(f"slot {name} is read by process {slot.active_pid}")
    _require_usable(slot, system, name=name, plugin=plugin)
    return Start.ADOPT_SLOT


def _require_same_source(checkpoint: Checkpoint, system: System, *, plugin: str) -> None:
    identity = checkpoint.identity
    if identity.system_identifier != system.identifier:
        raise SourceReplaced(
            f"the checkpoint belongs to the write database with system identifier "
            f"{identity.system_identifier}; this one is {system.identifier}",
            hint="correct source.dsn or read.url; if the write database was really replaced, "
            + _COPY_AGAIN,
        )
    if identity.timeline > system.timeline:
        raise SourceReplaced(
            f"the checkpoint is of timeline {identity.timeline}, the write database on "
            f"{system.timeline}: it was restored from a backup",
            hint=_COPY_AGAIN,
        )
    if identity.plugin != plugin:
        raise SlotMismatch(
            f"the checkpoint belongs to a slot of plugin {identity.plugin}, "
            f"and source.plugin is {plugin}",
            hint=f'set source.plugin = "{identity.plugin}", or use another source.slot and an '
            "empty read database",
        )


def require_on_timeline(checkpoint: Checkpoint, system: System, *, left: Lsn | None) -> None:
    """Refuse a checkpoint that a promoted standby never reached.

    `left` is where the server left the checkpoint's timeline; None: it was never on it. Raise
    SourceReplaced.
    """
    if checkpoint.lsn is None or (left is not None and checkpoint.lsn <= left):
        return
    raise SourceReplaced(
        f"the checkpoint ({checkpoint.lsn}) is of timeline {checkpoint.identity.timeline}, and the "
        f"write database, on {system.timeline}, left that {f'at {left}' if left else 'before'}: "
        "the standby that was promoted lacks changes that the read database has",
        hint=_COPY_AGAIN,
    )


def _require_usable(slot: SlotState | None, system: System, *, name: str, plugin: str) -> SlotState:
    if slot is None:
        raise SlotMissing(
            f"the read database has a checkpoint for slot {name}, but the slot is gone",
            hint=_COPY_AGAIN,
        )
    if slot.lost and slot.confirmed_flush is not None:
        raise SlotLost(
            f"the server has invalidated slot {name}: more WAL than max_slot_wal_keep_size was "
            "kept for it",
            hint=_COPY_AGAIN,
        )
    if slot.plugin != plugin or slot.database != system.database:
        raise SlotMismatch(
            f"slot {name} is of plugin {slot.plugin} in database {slot.database}; asked for: "
            f"{plugin} in {system.database}",
            hint="correct source.plugin or source.dsn, or choose another source.slot",
        )
    return slot


def _require_reached(lsn: Lsn, system: System) -> None:
    if lsn > system.wal_lsn:
        raise SourceReplaced(
            f"the checkpoint ({lsn}) is ahead of the write database's WAL ({system.wal_lsn}): it "
            "was restored from a backup or replaced",
            hint=_COPY_AGAIN,
        )


def _require_unconsumed(lsn: Lsn, slot: SlotState) -> None:
    confirmed = slot.confirmed_flush
    if confirmed is not None and lsn < confirmed:
        raise ChangesConsumedElsewhere(
            f"the slot was consumed to {Lsn(confirmed)}, the checkpoint is at {lsn}",
            hint="something else read from the slot, or the read database was restored from a "
            "backup: " + _COPY_AGAIN,
        )

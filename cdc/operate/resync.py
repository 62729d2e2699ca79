"""After changes were lost: a new slot, and a copy of everything beside it."""

import logging
from collections.abc import Callable
from contextlib import closing
from typing import Final

import sqlalchemy as sa

from cdc.copy_state import Copy, Unit
from cdc.errors import NothingToCopy, SlotActive, SlotWithoutCheckpoint
from cdc.operate import setup
from cdc.operate.verify import VerifyWatch, wanted
from cdc.projection.registry import Registry
from cdc.settings import Settings
from cdc.sink import checkpoint, copies, quarantine, verifications
from cdc.sink.engine import create_engine, translated
from cdc.sink.writer import Writer
from cdc.source import slot
from cdc.source.connection import Connection, connect, connect_replication

log = logging.getLogger(__name__)

WHAT_IT_DOES: Final = (
    "This drops slot {slot}, if there is one, makes a new one, and copies all source tables again, "
    "beside the stream. Read rows that differ are overwritten, those whose source rows are gone "
    "are deleted; the read tables stay there to be read. Changes that only the old slot knows are "
    "not streamed; of tables mirrored with insert_only all rows are replaced by those that the "
    "source has now"
)


def resync(settings: Settings, *, confirm: Callable[[str], None]) -> list[Unit]:
    """Make a new slot, store its consistent point, and ask for copies of all units; give them.

    What is asked for is stored with the intent to make the slot, in one commit, before the old one
    is dropped: whoever starts next goes on from wherever this was killed. `confirm` is told what
    will happen, and raises where that is not wanted. Raise SlotActive or ReadLocked while a daemon
    streams, NothingToCopy before the first start.
    """
    dsn = settings.source.dsn.get_secret_value()
    writer = Writer(create_engine(settings.read.url.get_secret_value()), settings.source.slot)
    read = writer.open()
    try:
        with closing(connect(dsn)) as source, closing(connect_replication(dsn)) as replication:
            plan = setup.plan(settings, source)
            state = slot.read_slot(source, settings.source.slot)
            stored = _require_possible(settings, state, read)
            confirm(_asked(settings, stored, slot.identify(replication)))
            setup.prepare_read_side(read, plan.registry)
            _intend(settings, plan.registry, replication, read)
            _drop_slot(settings, state, source)
            setup.establish(settings, source=source, replication=replication, read=read)
    finally:
        writer.close()
    return plan.registry.units()


def _asked(settings: Settings, stored: checkpoint.Checkpoint | None, system: slot.System) -> str:
    """Say what will happen, and whether it is all going to come from somewhere else."""
    other = stored is not None and stored.identity.system_identifier != system.identifier
    doubt = "The write database is another one than before: is source.dsn right? " if other else ""
    return doubt + WHAT_IT_DOES.format(slot=settings.source.slot)


def _require_possible(
    settings: Settings, state: slot.SlotState | None, read: sa.Connection
) -> checkpoint.Checkpoint | None:
    name = settings.source.slot
    with translated(), read.begin():
        stored, copied = checkpoint.load(read, name), copies.load(read, name)
    if state is not None and state.active:
        raise SlotActive(
            f"slot {name} is read by process {state.active_pid} of the write database",
            hint="stop the daemon that streams from it first",
        )
    if stored is None and state is not None:
        raise SlotWithoutCheckpoint(
            f"slot {name} exists, but the read database has no checkpoint for it",
            hint="it is somebody else's, or the read database was replaced. If nobody needs it: "
            f"select pg_drop_replication_slot('{name}'), and `cdc run`: the first start copies",
        )
    if stored is None and not copied:
        raise NothingToCopy(
            f"slot {name} is not set up in this read database", hint="`cdc run` does that"
        )
    return stored


def _intend(
    settings: Settings, registry: Registry, replication: Connection, read: sa.Connection
) -> None:
    """Store, durably and at once, that there is no position any more, and what is to be copied."""
    name, system = settings.source.slot, slot.identify(replication)
    identity = checkpoint.Identity(name, settings.source.plugin, system.identifier, system.timeline)
    with translated(), read.begin():
        checkpoint.forget(read, name)
        checkpoint.intend(read, identity)
        copies.forget(read, name)
        quarantine.forget(read, name)  # the copies bring every row anew
        resynced = [
            Copy(unit, purpose="resync", passes=1 + registry.shared(unit))
            for unit in registry.units()
        ]
        copies.add(read, name, resynced)
        for unit in registry.units():
            verifications.ask(read, name, wanted(registry, unit, repair=True))


def _drop_slot(settings: Settings, state: slot.SlotState | None, source: Connection) -> None:
    if state is not None:
        slot.drop_slot(source, settings.source.slot)
        log.info("dropped slot", extra={"slot": settings.source.slot})


class ResyncWatch(VerifyWatch):
    """Looks at copies, and at the verifications that come after them."""

    def look(self) -> None:
        """Look how far they are; raise NothingToCopy where they were dropped, or a ReadError."""
        super().look()
        with translated(), self.reading().begin():
            copied = copies.load(self.reading(), self._slot) or {}
        self._stored |= {unit: copy for unit, copy in copied.items() if copy.due}

"""Bring both databases to where streaming can begin."""

import logging
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import sqlalchemy as sa

from cdc.change import Relation
from cdc.copy_state import Copy, Unit
from cdc.errors import CdcError, RegistryError
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operate import copy_plan, schema_change
from cdc.operate.schema_change import AT_START, Former
from cdc.operate.startup import Start, decide, require_on_timeline
from cdc.operate.watch import refuse_partitions
from cdc.projection.mirror import Mirror, mirrors
from cdc.projection.projector import FunctionProjector
from cdc.projection.registry import Registry, load
from cdc.schema import Schema, SourceTable
from cdc.settings import Settings
from cdc.sink import checkpoint, copies, quarantine, source_columns, tables, verifications
from cdc.sink.engine import create_engine, translated
from cdc.sink.writer import Writer
from cdc.snapshot import Snapshot
from cdc.source import pgoutput, publication, slot, wal2json
from cdc.source.catalog import describe
from cdc.source.connection import Connection, connect, connect_replication
from cdc.source.partitions import Attached, attached
from cdc.source.slot_creation import create_slot

log = logging.getLogger(__name__)

BOOKKEEPING: Final = (
    checkpoint.TABLE,
    copies.TABLE,
    quarantine.TABLE,
    verifications.TABLE,
    verifications.KEYS,
    source_columns.TABLE,
)
"""The tables that the daemon keeps in the read database beside the read tables."""


@dataclass(frozen=True)
class Plan:
    """What is to be streamed where: the projectors, and the source tables they want.

    `seen` are the transactions that had committed when the source's catalog was read.
    """

    registry: Registry
    schema: Schema
    seen: Snapshot | None = None
    partitions: list[Attached] = field(default_factory=list)

    @cached_property
    def carried(self) -> dict[TableName, frozenset[str]]:
        """The columns that mirrors carry, by source table."""
        carried: dict[TableName, frozenset[str]] = {}
        for mirror, source in self.mirrored:
            names = {c.name for c in source.columns if not c.generated} - mirror.settings.exclude
            carried[source.name] = carried.get(source.name, frozenset()) | names
        return carried

    @cached_property
    def attached(self) -> dict[int, Attached]:
        """The partitions by oid, kept up to date by `watch_partitions`."""
        return {partition.oid: partition for partition in self.partitions}

    def gone(self, relation: Relation) -> frozenset[str]:
        """Name the columns of a relation, as it was once, that its table has lost since."""
        table = self.schema.get(relation.name)
        names = {column.name for column in table.columns} if table else set(relation.names)
        return frozenset(set(relation.names) - names)

    @property
    def mirrored(self) -> list[tuple[Mirror, SourceTable]]:
        """The mirrors, each with its source."""
        projectors = self.registry.projectors
        return [(p, self.schema[p.source]) for p in projectors if isinstance(p, Mirror)]

    @property
    def insert_only(self) -> set[TableName]:
        """The source tables of which only inserts are wanted."""
        wanted = {name: self.registry.of(name) for name in self.registry.sources}
        return {
            name
            for name, projectors in wanted.items()
            if all(isinstance(p, Mirror) and p.settings.insert_only for p in projectors)
        }

    def publications(self, name: str) -> publication.Wanted:
        """Give the publications that pgoutput needs."""
        keyed = set(self.registry.sources) - self.insert_only
        return publication.wanted(name, keyed=keyed, insert_only=self.insert_only)

    def optional_plugin_options(self, settings: Settings) -> dict[str, str]:
        """Give the options that newer plugins know."""
        return dict(wal2json.AS_STRINGS) if settings.source.plugin == "wal2json" else {}

    def plugin_options(self, settings: Settings, former: Iterable[TableName]) -> dict[str, str]:
        """Give the options START_REPLICATION is sent; `former` are names that tables had before."""
        if settings.source.plugin == "pgoutput":
            return pgoutput.options(self.publications(settings.source.publication))
        # A partition that is attached later cannot be listed: then nothing is filtered.
        return wal2json.options(None if self.partitioned else [*self.schema, *former])

    @property
    def partitioned(self) -> dict[int, TableName]:
        """The partitioned source tables, by oid."""
        return {table.oid: table.name for table in self.schema.values() if table.partitioned}


def imported(settings: Settings) -> list[FunctionProjector]:
    """Import the projectors, and hold them to one another; raise a ConfigurationError."""
    functions = load(settings.projection.modules)
    Registry(functions)
    return functions


def plan(settings: Settings, source: Connection) -> Plan:
    """Import the projectors and hold them to the source's catalog.

    Raise a ConfigurationError or a SourceError.
    """
    functions = imported(settings)
    wanted = [TableName.parse(mirror.source) for mirror in settings.projection.mirrors]
    wanted += [name for function in functions for name in function.sources]
    seen = slot.current_snapshot(source)
    schema = describe(source, wanted)
    _require_sources(functions, schema)
    hash_key = settings.projection.hash_key.get_secret_value().encode()
    mirrored = mirrors(settings.projection.mirrors, schema, hash_key=hash_key)
    registry = Registry([*functions, *mirrored])
    if not registry.projectors:
        raise RegistryError(
            "there is nothing to do: no projector and no mirror",
            hint="name modules in [projection] modules, or add a [[projection.mirrors]]",
        )
    wanted_schema = {name: schema[name] for name in registry.sources}
    roots = {table.oid: name for name, table in wanted_schema.items() if table.partitioned}
    return Plan(registry, wanted_schema, seen, attached(source, roots) if roots else [])


def _require_sources(functions: Iterable[FunctionProjector], schema: Schema) -> None:
    for function in functions:
        for name in function.sources:
            if name not in schema:
                raise RegistryError(
                    f"projector {function.name} wants {name}, which the write database lacks",
                    hint="create the table, or correct the name in @projector(...)",
                )
            if not schema[name].key:
                raise RegistryError(
                    f"projector {function.name} wants {name}, which has no usable key "
                    f"(replica identity {schema[name].identity})",
                    hint=f"alter table {name.sql} add primary key (...), or replica identity using "
                    "index ...",
                )
            if schema[name].generated_key is not None:
                raise RegistryError(
                    f"projector {function.name} wants {name}, whose key holds the generated column "
                    f'"{schema[name].generated_key}", which is not sent',
                    hint=f"alter table {name.sql} replica identity using index ..., of other "
                    "columns",
                )


def prepare(
    connection: sa.Connection,
    plan: Plan,
    settings: Settings,
    *,
    source: Connection,
    since: str | None = AT_START,
) -> Former:
    """Make the read tables, or fit them to their sources; give the sources' former names.

    `since` says where a source was seen to have changed; None: nothing has been streamed yet, and
    what was known before does not hold any more. Raise SchemaChanged for a mirror's source that
    changed, ReadTableMismatch for another read table that does not fit.
    """
    slot_name = settings.source.slot
    with translated(), connection.begin():
        known = [] if since is None else source_columns.load(connection, slot_name)
        follow = settings.projection.follow_schema
        where = since or AT_START
        ddl = schema_change.fit(connection, plan.mirrored, known, follow=follow, where=where)
        schema_change.execute(connection, ddl)
        refuse_partitions(source, plan.partitions, known, slot_name)
    prepare_read_side(connection, plan.registry)
    with translated(), connection.begin():
        return schema_change.remember(
            connection, slot_name, plan.schema, plan.partitions, known=known
        )


def prepare_read_side(connection: sa.Connection, registry: Registry) -> None:
    """Create the read tables and the bookkeeping that are missing; refuse what does not fit."""
    wanted = [*BOOKKEEPING, *registry.read_tables]
    with translated(), connection.begin():
        tables.require_definable(connection, wanted)
        absent = tables.missing(connection, wanted)
        tables.create(connection, absent)
        for misfit in tables.misfits(connection, [t for t in wanted if t not in absent]):
            raise misfit
    for table in absent:
        log.info("created read table", extra={"table": table.fullname})


def _prepare_source(
    settings: Settings, source: Connection, plan: Plan, state: slot.SlotState | None
) -> None:
    """Create or extend the publications, where the plugin needs them."""
    if settings.source.plugin == "pgoutput":
        wanted = plan.publications(settings.source.publication)
        publication.publish(source, wanted, slot_exists=state is not None)


class Found(NamedTuple):
    """What there is at a start, and what follows from it."""

    start: Start
    slot: slot.SlotState | None
    checkpoint: checkpoint.Checkpoint | None
    system: slot.System

    @property
    def first(self) -> bool:
        """Tell whether nothing has been streamed yet."""
        return self.start is not Start.STREAM


def examine(
    settings: Settings, *, source: Connection, replication: Connection, read: sa.Connection
) -> Found:
    """Find how to begin, changing nothing; raise a StartRefused where that would lose changes."""
    name, plugin = settings.source.slot, settings.source.plugin
    slot.require_primary(source)
    if settings.source.failover:
        slot.require_failover(source)
    system = slot.identify(replication)
    state = slot.read_slot(source, name)
    with translated(), read.begin():
        stored = checkpoint.load(read, name)
    start = decide(slot=state, checkpoint=stored, system=system, name=name, plugin=plugin)
    if stored is not None and stored.identity.timeline < system.timeline:
        left = slot.end_of_timeline(replication, system, stored.identity.timeline)
        require_on_timeline(stored, system, left=left)
    return Found(start, state, stored, system)


class Begun(NamedTuple):
    """Whose stream begins, and where; and which copies there are to be."""

    identity: checkpoint.Identity
    lsn: Lsn
    copies: dict[Unit, Copy]


def begin(
    settings: Settings,
    plan: Plan,
    *,
    source: Connection,
    replication: Connection,
    read: sa.Connection,
) -> Begun:
    """Find where to begin, creating the slot on the first start.

    Raise a StartRefused where beginning would lose or double changes.
    """
    found = examine(settings, source=source, replication=replication, read=read)
    name, plugin = settings.source.slot, settings.source.plugin
    identity = checkpoint.Identity(name, plugin, found.system.identifier, found.system.timeline)
    start, state, stored = found.start, found.slot, found.checkpoint
    # Before the slot: decoding looks the publications up as of then.
    _prepare_source(settings, source, plan, state)
    if start is Start.STREAM and stored is not None and stored.lsn is not None:
        _carry_along(settings, state, replication)
        with translated(), read.begin():
            copies = _settle(settings, plan, read, first=False)
        return Begun(identity, stored.lsn, copies)
    with translated(), read.begin():
        checkpoint.intend(read, identity)
    if start is Start.ADOPT_SLOT and state is not None and state.confirmed_flush is not None:
        lsn = Lsn(state.confirmed_flush)
    else:
        lsn = _create_slot(settings, replication, identity, source=source, read=read)
    _carry_along(settings, state, replication)
    with translated(), read.begin():
        copies = _settle(settings, plan, read, first=True)
        checkpoint.advance(read, identity, old=None, new=lsn, commit_time=None)
    return Begun(identity, lsn, copies)


def _carry_along(settings: Settings, state: slot.SlotState | None, replication: Connection) -> None:
    """Have a slot that was made without it carried along to standbys, where that is asked for."""
    if settings.source.failover and not (state is not None and state.failover):
        slot.carry_along(replication, settings.source.slot)
        log.info("the slot is carried along to standbys", extra={"slot": settings.source.slot})


def _settle(
    settings: Settings, plan: Plan, read: sa.Connection, *, first: bool
) -> dict[Unit, Copy]:
    name, enabled = settings.source.slot, settings.copy.enabled
    return copy_plan.settle(read, name, plan.registry, enabled=enabled, first=first)


def _create_slot(
    settings: Settings,
    replication: Connection,
    identity: checkpoint.Identity,
    *,
    source: Connection,
    read: sa.Connection,
) -> Lsn:
    """Create the slot; where it is certain that there is none, take the intent back."""
    name, plugin = identity.slot, identity.plugin
    wait = settings.source.slot_wait_seconds
    try:
        lsn = create_slot(replication, name, plugin, source=source, seconds=wait)
    except CdcError:
        if not replication.closed:
            with translated(), read.begin():
                checkpoint.abandon(read, name)
        raise
    log.info(
        "created slot",
        extra={"slot": identity.slot, "plugin": identity.plugin, "lsn": str(lsn)},
    )
    return lsn


def set_up(settings: Settings) -> Lsn:
    """Do all that comes before streaming, once; give where it would begin."""
    dsn = settings.source.dsn.get_secret_value()
    writer = Writer(create_engine(settings.read.url.get_secret_value()), settings.source.slot)
    read = writer.open()
    try:
        with closing(connect(dsn)) as source, closing(connect_replication(dsn)) as replication:
            return establish(settings, source=source, replication=replication, read=read)
    finally:
        writer.close()


def establish(
    settings: Settings, *, source: Connection, replication: Connection, read: sa.Connection
) -> Lsn:
    """Do all that comes before streaming, as who holds the slot's lock; give where it begins."""
    wanted = plan(settings, source)
    found = examine(settings, source=source, replication=replication, read=read)
    since = None if found.first else AT_START
    prepare(read, wanted, settings, source=source, since=since)
    return begin(settings, wanted, source=source, replication=replication, read=read).lsn

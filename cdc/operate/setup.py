"""Bring both databases to where streaming can begin."""

import logging
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import sqlalchemy as sa

from cdc.errors import CdcError, RegistryError
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operate.startup import Start, decide
from cdc.projection.mirror import Mirror, mirrors
from cdc.projection.projector import FunctionProjector
from cdc.projection.registry import Registry, load
from cdc.schema import Schema
from cdc.settings import Settings
from cdc.sink import checkpoint, tables
from cdc.sink.engine import create_engine, translated
from cdc.sink.writer import Writer
from cdc.source import pgoutput, publication, slot, wal2json
from cdc.source.catalog import describe
from cdc.source.connection import Connection, connect, connect_replication

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is to be streamed where: the projectors, and the source tables they want."""

    registry: Registry
    schema: Schema

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

    def plugin_options(self, settings: Settings) -> dict[str, str]:
        """Give the options START_REPLICATION is sent."""
        if settings.source.plugin == "pgoutput":
            return pgoutput.options(self.publications(settings.source.publication))
        reported = [name for table in self.schema.values() for name in (table.name, *table.leaves)]
        return wal2json.options(reported)


def plan(settings: Settings, source: Connection) -> Plan:
    """Import the projectors and hold them to the source's catalog.

    Raise a ConfigurationError or a SourceError.
    """
    functions = load(settings.projection.modules)
    wanted = [TableName.parse(mirror.source) for mirror in settings.projection.mirrors]
    wanted += [name for function in functions for name in function.sources]
    schema = describe(source, wanted)
    _require_sources(functions, schema)
    _require_told_apart(settings, schema)
    hash_key = settings.projection.hash_key.get_secret_value().encode()
    mirrored = mirrors(settings.projection.mirrors, schema, hash_key=hash_key)
    registry = Registry([*functions, *mirrored])
    if not registry.projectors:
        raise RegistryError(
            "there is nothing to do: no projector and no mirror",
            hint="name modules in [projection] modules, or add a [[projection.mirrors]]",
        )
    return Plan(registry, {name: schema[name] for name in registry.sources})


def _require_told_apart(settings: Settings, schema: Schema) -> None:
    """Refuse what wal2json cannot carry: it is told partitions by name, when streaming begins.

    Rows of a partition that is attached later would be left out, and nobody would know.
    """
    partitioned = [str(table.name) for table in schema.values() if table.partitioned]
    if partitioned and settings.source.plugin == "wal2json":
        raise RegistryError(
            f"{partitioned[0]} is partitioned: wal2json would leave out the rows of partitions "
            "attached later",
            hint='set source.plugin = "pgoutput", with another source.slot',
        )


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


def prepare_read_side(connection: sa.Connection, registry: Registry) -> None:
    """Create the read tables and the bookkeeping that are missing; refuse what does not fit."""
    wanted = [checkpoint.TABLE, *registry.read_tables]
    with translated(), connection.begin():
        tables.require_definable(connection, wanted)
        absent = tables.missing(connection, wanted)
        tables.create(connection, absent)
        for misfit in tables.misfits(connection, [t for t in wanted if t not in absent]):
            raise misfit
    for table in absent:
        log.info("created read table", extra={"table": table.fullname})


def _prepare_source(settings: Settings, source: Connection, plan: Plan) -> None:
    """Create or extend the publications, where the plugin needs them."""
    if settings.source.plugin == "pgoutput":
        publication.publish(source, plan.publications(settings.source.publication))


def begin(
    settings: Settings,
    plan: Plan,
    *,
    source: Connection,
    replication: Connection,
    read: sa.Connection,
) -> tuple[checkpoint.Identity, Lsn]:
    """Find where to begin, creating the slot on the first start.

    Raise a StartRefused where beginning would lose or double changes.
    """
    name, plugin = settings.source.slot, settings.source.plugin
    system = slot.identify(replication)
    identity = checkpoint.Identity(name, plugin, system.identifier, system.timeline)
    state = slot.read_slot(source, name)
    with translated(), read.begin():
        stored = checkpoint.load(read, name)
    start = decide(slot=state, checkpoint=stored, system=system, name=name, plugin=plugin)
    _prepare_source(settings, source, plan)  # before the slot: decoding looks it up as of then
    if start is Start.STREAM and stored is not None and stored.lsn is not None:
        return identity, stored.lsn
    with translated(), read.begin():
        checkpoint.intend(read, identity)
    if start is Start.ADOPT_SLOT and state is not None and state.confirmed_flush is not None:
        lsn = Lsn(state.confirmed_flush)
    else:
        lsn = _create_slot(replication, identity, read=read)
    with translated(), read.begin():
        checkpoint.advance(read, identity, old=None, new=lsn, commit_time=None)
    return identity, lsn


def _create_slot(
    replication: Connection, identity: checkpoint.Identity, *, read: sa.Connection
) -> Lsn:
    """Create the slot; where that fails, take the intent back."""
    try:
        lsn = slot.create_slot(replication, identity.slot, identity.plugin)
    except CdcError:
        with translated(), read.begin():
            checkpoint.abandon(read, identity.slot)
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
            wanted = plan(settings, source)
            prepare_read_side(read, wanted.registry)
            _, lsn = begin(settings, wanted, source=source, replication=replication, read=read)
    finally:
        writer.close()
    return lsn

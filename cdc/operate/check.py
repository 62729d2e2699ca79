"""Preflight: everything that would stop the daemon, found before it does."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final, TypeVar

import sqlalchemy as sa

from cdc.errors import CdcError, SourceError, SourceNotReady
from cdc.names import TableName
from cdc.operate import budget, not_numbers, schema_change, setup
from cdc.operate.startup import decide
from cdc.projection.mirror import mirrors
from cdc.schema import SourceTable
from cdc.settings import MirrorSettings, Settings
from cdc.sink import checkpoint, privileges, source_columns, tables
from cdc.sink import engine as read_database
from cdc.source import privileges as source_privileges
from cdc.source import publication, slot, wal2json
from cdc.source.catalog import describe
from cdc.source.connection import Connection, connect, connect_replication, translated

_OLDEST: Final = 14  # pgoutput sends messages since 14
_SETTINGS: Final = """
select current_setting('server_version_num')::int, current_setting('wal_level'),
       current_setting('server_encoding'), current_setting('max_slot_wal_keep_size'),
       current_setting('wal_sender_timeout')
"""
_ATTEMPT_MILLISECONDS: Final = 2000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found: what it is, why it matters, what mends it. `blocks`: it stops the daemon."""

    what: str
    why: str
    remedy: str
    blocks: bool = True


Findings = Iterator[Finding]


def check(settings: Settings) -> list[Finding]:
    """Examine both databases, the projectors and the position; give every finding once."""
    found: list[Finding] = []
    dsn = settings.source.dsn.get_secret_value()
    source = _attempt(found, lambda: connect(dsn), why="changes are streamed from it")
    read = _attempt(found, lambda: _read_connection(settings), why="changes are applied to it")
    if source is not None:
        with closing(source):
            _check_source(found, settings, source, read)
    if read is not None:
        read.close()
    return list(dict.fromkeys(found))


def _check_source(
    found: list[Finding], settings: Settings, source: Connection, read: sa.Connection | None
) -> None:
    steps = [
        lambda: found.extend(_server(settings, source)),
        lambda: found.extend(_replication(settings, source, read)),
    ]
    for step in steps:
        _attempt(found, step, why="streaming needs it")
    plan = _attempt(found, lambda: setup.plan(settings, source), why="it cannot be projected")
    if plan is None:
        _attempt(found, lambda: found.extend(_each_mirror(settings, source)), why="see above")
        return
    _attempt(found, lambda: found.extend(_tables(settings, source, plan)), why="see above")
    _attempt(found, lambda: found.extend(_nulls(settings, source, plan)), why="see above")
    if settings.copy.enabled:
        _attempt(found, lambda: found.extend(_copy(source, plan)), why="rows are copied")
    elif settings.source.heartbeat_seconds:
        _attempt(found, lambda: found.extend(_heartbeats(source)), why="heartbeats are sent")
    if read is not None:
        _attempt(
            found, lambda: found.extend(_read_side(read, plan, settings)), why="it is written to"
        )


def _read_connection(settings: Settings) -> sa.Connection:
    engine = read_database.create_engine(settings.read.url.get_secret_value(), reading=True)
    return read_database.connect(engine)


def _attempt(found: list[Finding], step: Callable[[], T], *, why: str) -> T | None:
    """Run a step; turn its error into a finding."""
    try:
        return step()
    except CdcError as error:
        found.append(Finding(str(error), why, error.hint or "see the message"))
        return None


def _server(settings: Settings, source: Connection) -> Findings:
    with translated():
        row = source.execute(_SETTINGS).fetchone()
    assert row is not None  # noqa: S101  a select without from gives one row
    version, wal_level, encoding, keep, timeout = row
    if version // 10_000 < _OLDEST:
        yield Finding(
            f"the write database is PostgreSQL {version // 10_000}",
            f"{_OLDEST} is the oldest supported",
            "upgrade the server",
        )
    if wal_level != "logical":
        yield Finding(
            f"wal_level is {wal_level}",
            "logical decoding needs wal_level logical",
            "alter system set wal_level = logical; then restart the write database",
        )
    if encoding != "UTF8" and settings.source.plugin == "wal2json":
        yield Finding(
            f"the write database's encoding is {encoding}",
            "wal2json sends it unconverted, which is no valid JSON",
            'set source.plugin = "pgoutput"',
        )
    if keep == "-1":
        yield Finding(
            "max_slot_wal_keep_size is unlimited",
            "while the daemon is stopped, kept WAL can fill the write database's disk",
            "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf();",
            blocks=False,
        )
    if timeout == "0":
        yield Finding(
            "wal_sender_timeout is 0",
            "the server will not notice a daemon whose host has died, and the slot stays taken",
            "alter system set wal_sender_timeout = '60s'; select pg_reload_conf();",
            blocks=False,
        )


def _replication(settings: Settings, source: Connection, read: sa.Connection | None) -> Findings:
    """Try what streaming needs: a walsender, the plugin, a free slot, a position that fits."""
    name, plugin = settings.source.slot, settings.source.plugin
    state = slot.read_slot(source, name)
    with closing(connect_replication(settings.source.dsn.get_secret_value())) as replication:
        system = slot.identify(replication)
        yield from _position(settings, state, system, read=read)
        yield from _budget(settings, state)
        try:
            slot.try_plugin(replication, plugin, milliseconds=_ATTEMPT_MILLISECONDS)
        except SourceNotReady as error:
            full = "53400" in str(error)
            if not (full and state is not None):
                yield Finding(
                    str(error), "the slot decodes with it", error.hint or "see the message"
                )
        except SourceError as error:
            yield Finding(str(error), "the slot decodes with it", error.hint or "see the message")


def _budget(settings: Settings, state: slot.SlotState | None) -> Findings:
    threat = budget.threat(state.wal_status) if state else None
    if state is not None and threat is not None:
        yield Finding(
            f"slot {settings.source.slot} is {state.wal_status}: {threat}",
            "a slot that is lost takes a copy of everything",
            budget.REMEDY,
            blocks=False,
        )


def _position(
    settings: Settings,
    state: slot.SlotState | None,
    system: slot.System,
    *,
    read: sa.Connection | None,
) -> Findings:
    if read is None:
        return
    with read_database.translated(), read.begin():
        stored = checkpoint.load(read, settings.source.slot)
    try:
        decide(
            slot=state,
            checkpoint=stored,
            system=system,
            name=settings.source.slot,
            plugin=settings.source.plugin,
        )
    except CdcError as error:
        yield Finding(str(error), "starting here would lose changes", error.hint or "")


def _each_mirror(settings: Settings, source: Connection) -> Findings:
    """Look at each mirror alone: the plan stopped at the first that is wrong."""
    for mirror in settings.projection.mirrors:
        schema = describe(source, [TableName.parse(mirror.source)])
        parts = [mirror] if not schema else [_only(mirror, table) for table in schema.values()]
        for part in parts:
            try:
                mirrors([part], schema, hash_key=b"")
            except CdcError as error:
                yield Finding(str(error), "it cannot be projected", error.hint or "")


def _only(mirror: MirrorSettings, table: SourceTable) -> MirrorSettings:
    return mirror.model_copy(update={"source": str(table.name), "target": None})


def _tables(settings: Settings, source: Connection, plan: setup.Plan) -> Findings:
    for table in plan.schema.values():
        generated = [column.name for column in table.columns if column.generated]
        if generated:
            yield Finding(
                f"{table.name} has generated columns: {', '.join(generated)}",
                "logical decoding does not send them in both plugins; they are left out",
                "compute them in the read database, or in a projector",
                blocks=False,
            )
    if settings.source.plugin == "pgoutput":
        wanted = plan.publications(settings.source.publication)
        for difference in publication.differences(source, wanted):
            yield _publication_finding(source, difference)


def _nulls(settings: Settings, source: Connection, plan: setup.Plan) -> Findings:
    """Tell what becomes of NaN and infinities where the plugin sends them as null."""
    if settings.source.plugin != "wal2json" or _tells_not_numbers(settings):
        return
    for refusal in not_numbers.refusals(settings, plan, source):
        yield Finding(str(refusal), "a NaN would become NULL", refusal.hint or "")
    for name, columns in not_numbers.held(settings, plan, source):
        yield Finding(
            f"{name} holds NaN or infinities, which wal2json 2.5 sends as null: {columns}",
            "the stream stops where such a row changes",
            not_numbers.REMEDY,
        )
    looked_up = not_numbers.number_columns(settings, plan, required=False)
    if looked_up:
        listed = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in looked_up.items())
        yield Finding(
            f"wal2json 2.5 sends NaN and infinities as null, in columns of {listed}",
            "rows with a null in them are looked up to tell it from NULL, and NaN stops the stream",
            not_numbers.REMEDY,
            blocks=False,
        )


def _copy(source: Connection, plan: setup.Plan) -> Findings:
    """Tell what keeps the rows that exist from being copied."""
    for lack in source_privileges.lacks(source, plan.schema.values()):
        yield Finding(lack.what, lack.why, lack.remedy)


def _heartbeats(source: Connection) -> Findings:
    why = "there are no heartbeats: how fresh an idle pipeline is stays unknown"
    for lack in source_privileges.messages_lack(source, why=why):
        yield Finding(lack.what, lack.why, lack.remedy, blocks=False)


def _tells_not_numbers(settings: Settings) -> bool:
    """Tell whether the plugin sends numbers as text; also where it cannot be used at all."""
    with closing(connect_replication(settings.source.dsn.get_secret_value())) as replication:
        try:
            slot.try_plugin(replication, "wal2json", milliseconds=_ATTEMPT_MILLISECONDS)
        except SourceError:
            return True
        return slot.knows_options(replication, wal2json.AS_STRINGS)


def _publication_finding(source: Connection, difference: publication.Difference) -> Finding:
    remedy = f"as the tables' owner: {difference.statement.as_string(source)};"
    if difference.adds:
        return Finding(
            "the publication does not list all the tables yet",
            "`cdc setup` and `cdc run` add them, if the role owns the tables",
            remedy,
            blocks=False,
        )
    return Finding(
        "the publication leaves out changes, rows or columns that are wanted",
        "they would never arrive",
        f"choose another source.publication; or, {remedy}",
    )


def _read_side(read: sa.Connection, plan: setup.Plan, settings: Settings) -> Findings:
    wanted = [*setup.BOOKKEEPING, *plan.registry.read_tables]
    follow = settings.projection.follow_schema
    with read_database.translated(), read.begin():
        tables.require_definable(read, wanted)
        known = source_columns.load(read, settings.source.slot)
        # Raises SchemaChanged; what the daemon would add to a read table is no misfit.
        followed = {t for t, _ in schema_change.fit(read, plan.mirrored, known, follow=follow)}
        absent = tables.missing(read, wanted)
        lacks = privileges.lacks(read, absent)
        present = [table for table in wanted if table not in {*absent, *followed}]
        can_look = not any(lack.stages for lack in lacks)
        misfits = tables.misfits(read, present) if can_look else []
    for lack in lacks:
        yield Finding(lack.what, lack.why, lack.remedy)
    for misfit in misfits:
        yield Finding(str(misfit), "rows would not fit", misfit.hint or "")

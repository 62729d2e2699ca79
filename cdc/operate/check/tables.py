"""The source tables: whether they are there, their rows can be told apart, and may be read."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from cdc.errors import CdcError, SourceError
from cdc.finding import Finding
from cdc.names import TableName
from cdc.operate import not_numbers, setup
from cdc.operate.check.examination import Examination, bounded, of_error, replication
from cdc.projection.mirror import mirrors
from cdc.projection.projector import FunctionProjector
from cdc.projection.registry import load
from cdc.schema import Schema, SourceTable
from cdc.settings import MirrorSettings, Settings
from cdc.source import identities, privileges, publication, slot, wal2json
from cdc.source.catalog import describe
from cdc.source.connection import Connection

_ATTEMPT_MILLISECONDS: Final = 2000
_NO_PROJECTION: Final = "it cannot be projected"
_NO_HEARTBEATS: Final = "there are no heartbeats: how fresh an idle pipeline is stays unknown"


def examine(found: Examination, settings: Settings, source: Connection) -> setup.Plan | None:
    """Look at the tables; give the plan of all that could be projected, None where that is none."""
    if source.closed:
        return None
    try:
        plan: setup.Plan | None = setup.plan(settings, source)
    except CdcError as error:
        plan = _of_the_rest(found, settings, source, error)
    if plan is None:
        return None
    whole = plan
    keyed = [t for name, t in whole.schema.items() if name not in whole.insert_only]
    steps = [
        lambda: found.add(identities.lacks(source, keyed)),
        lambda: found.add(_generated(whole)),
        lambda: found.add(_publications(settings, source, whole)),
        lambda: found.add(_nulls(settings, source, whole)),
        lambda: found.add(_rights(settings, source, whole)),
    ]
    for step in steps:
        if not source.closed:
            found.attempt(step, source, why=_NO_PROJECTION)
    return whole


def _of_the_rest(
    found: Examination, settings: Settings, source: Connection, error: CdcError
) -> setup.Plan | None:
    """Say what is wrong with each projector, then plan for those with which nothing is.

    The plan stopped at the first that is wrong: `error`.
    """
    if isinstance(error, SourceError):
        found.add([of_error(error, why=_NO_PROJECTION)])
        return None
    before = len(found.all)
    modules = settings.projection.modules
    functions = found.attempt(lambda: load(modules), why="changes go through them") or ()
    wanted = [TableName.parse(mirror.source) for mirror in settings.projection.mirrors]
    wanted += [name for function in functions for name in function.sources]
    schema = found.attempt(lambda: describe(source, wanted), source, why=_NO_PROJECTION)
    if schema is None:
        return None
    parts = [part for mirror in settings.projection.mirrors for part in _parts(mirror, schema)]
    keyed = {TableName.parse(part.source) for part in parts if not part.insert_only}
    keyed |= {name for function in functions for name in function.sources}
    lacks = list(identities.lacks(source, [schema[name] for name in keyed if name in schema]))
    found.add(lacks)
    found.add(_missing(settings, functions, schema))
    keyless = {name for name in keyed if name in schema and not _has_key(schema[name])}
    good = [part for part in parts if _is_good(found, part, schema, keyless)]
    if len(found.all) == before:  # what is wrong is wrong with all of them together
        found.add([of_error(error, why=_NO_PROJECTION)])
        return None
    bad = any(name not in schema or name in keyless for f in functions for name in f.sources)
    rest = {"mirrors": tuple(good), "modules": () if bad or not functions else modules}
    projection = settings.projection.model_copy(update=rest)
    with suppress(CdcError):
        return setup.plan(settings.model_copy(update={"projection": projection}), source)
    return None


def _has_key(table: SourceTable) -> bool:
    return bool(table.key) and table.generated_key is None


def _parts(mirror: MirrorSettings, schema: Schema) -> list[MirrorSettings]:
    """Give a mirror for each table that it covers."""
    wanted = TableName.parse(mirror.source)
    if not wanted.is_pattern:
        return [mirror] if wanted in schema else []
    covered = [name for name in schema if name.matches(wanted)]
    return [mirror.model_copy(update={"source": str(name), "target": None}) for name in covered]


def _is_good(
    found: Examination, part: MirrorSettings, schema: Schema, keyless: set[TableName]
) -> bool:
    if TableName.parse(part.source) in keyless and not part.insert_only:
        return False
    made = found.attempt(lambda: mirrors([part], schema, hash_key=b""), why=_NO_PROJECTION)
    return made is not None


def _missing(
    settings: Settings, functions: Sequence[FunctionProjector], schema: Schema
) -> Iterator[Finding]:
    for mirror in settings.projection.mirrors:
        wanted = TableName.parse(mirror.source)
        if not any(name == wanted or name.matches(wanted) for name in schema):
            yield _no_table(wanted, "to mirror", "`source` in [[projection.mirrors]]")
    for function in functions:
        for name in function.sources:
            if name not in schema:
                yield _no_table(
                    name, f"that projector {function.name} wants", "the name in @projector(...)"
                )


def _no_table(name: TableName, whose: str, where: str) -> Finding:
    return Finding(
        "source_table",
        f"the write database has no table {name} {whose}",
        _NO_PROJECTION,
        f"create it, or correct {where}",
    )


def _generated(plan: setup.Plan) -> Iterator[Finding]:
    excluded: dict[TableName, frozenset[str]] = {}
    for mirror, source in plan.mirrored:
        others = excluded.get(source.name, mirror.settings.exclude)
        excluded[source.name] = others & mirror.settings.exclude
    for name, table in plan.schema.items():
        generated = {column.name for column in table.columns if column.generated}
        left_out = sorted(generated - excluded.get(name, frozenset()))
        if left_out:
            listed = ", ".join(f'"{column}"' for column in left_out)
            yield Finding(
                "generated_columns",
                f"{name} has generated columns: {listed}",
                "logical decoding does not send them in both plugins; they are left out",
                "compute them in the read database, or in a projector; of a mirror, say so: "
                f"exclude = [{listed}]",
                blocks=False,
            )


def _publications(settings: Settings, source: Connection, plan: setup.Plan) -> Iterator[Finding]:
    if settings.source.plugin != "pgoutput":
        return
    wanted = plan.publications(settings.source.publication)
    for difference in publication.differences(source, wanted):
        statements = difference.spelled(source)
        if not difference.adds:
            yield Finding.by_sql(
                "publication_narrow",
                "the publication leaves out changes, rows or columns that are wanted",
                "they would never arrive",
                *statements,
                where="write",
                then="As its owner. Or choose another source.publication",
            )
            continue
        may = publication.may_publish(source, wanted)
        whose = "`cdc setup` and `cdc run` do it" if may else "As the owner of the tables"
        yield Finding.by_sql(
            "publication_missing",
            "the publication does not list all the tables yet",
            "only what is published is sent" if may else "the role may not publish the tables",
            *statements,
            where="write",
            then=whose,
            blocks=not may,
        )


def _nulls(settings: Settings, source: Connection, plan: setup.Plan) -> Iterator[Finding]:
    """Tell what becomes of NaN and infinities where the plugin sends them as null."""
    if settings.source.plugin != "wal2json" or _tells_not_numbers(settings):
        return
    for refusal in not_numbers.refusals(settings, plan, source):
        yield of_error(refusal, why="a NaN would become NULL")
    for name, columns in not_numbers.held(settings, plan, source):
        yield Finding(
            "numbers_held",
            f"{name} holds NaN or infinities, which wal2json 2.5 sends as null: {columns}",
            "the stream stops where such a row changes",
            not_numbers.REMEDY,
        )
    looked_up = not_numbers.number_columns(settings, plan, required=False)
    if looked_up:
        listed = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in looked_up.items())
        yield Finding(
            "numbers_looked_up",
            f"wal2json 2.5 sends NaN and infinities as null, in columns of {listed}",
            "rows with a null in them are looked up to tell it from NULL, and NaN stops the stream",
            not_numbers.REMEDY,
            blocks=False,
        )


def _tells_not_numbers(settings: Settings) -> bool:
    """Tell whether the plugin sends numbers as text; also where it cannot be used at all."""
    try:
        with replication(settings) as walsender, bounded(walsender):
            slot.try_plugin(walsender, "wal2json", milliseconds=_ATTEMPT_MILLISECONDS)
            return slot.knows_options(walsender, wal2json.AS_STRINGS)
    except SourceError:  # the slot's examination says so
        return True


def _rights(settings: Settings, source: Connection, plan: setup.Plan) -> Iterator[Finding]:
    """Tell what keeps the rows that exist from being copied, and heartbeats from being sent."""
    if settings.copy.enabled:
        yield from privileges.lacks(source, plan.schema.values())
    elif settings.source.heartbeat_seconds:
        yield from privileges.messages_lack(source, why=_NO_HEARTBEATS, blocks=False)

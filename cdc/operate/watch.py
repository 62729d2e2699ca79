"""Look for changes of the source that the stream does not tell, or not in time."""

import logging
from collections.abc import Mapping

from cdc.errors import SchemaChanged, SourceNotReady, SourceRefused
from cdc.names import TableName
from cdc.schema import Schema, SourceColumn
from cdc.sink.postgres import literal
from cdc.sink.source_columns import PARTITION, KnownColumn
from cdc.source.catalog import FoundTable, find_oids, find_tables
from cdc.source.connection import Connection
from cdc.source.partitions import Attached, attached, held_rows
from cdc.source.publication import Wanted, differences

log = logging.getLogger(__name__)


def refuse_partitions(
    source: Connection, partitions: list[Attached], known: list[KnownColumn], slot: str
) -> None:
    """Refuse partitions that are not streamed, or had rows before they were.

    Raise SchemaChanged. Where nothing is known of a root yet its read tables are filled otherwise.
    """
    roots = {column.table for column in known}
    accepted = {column.table_oid for column in known if column.attnum == PARTITION}
    for partition in partitions:
        if not partition.logged:
            raise _unlogged(partition.name)
        if partition.root in roots and partition.oid not in accepted:
            _refuse_filled(source, partition, slot)
    _tell_left(accepted - {partition.oid for partition in partitions})


def watch_partitions(
    source: Connection, roots: dict[int, TableName], before: dict[int, Attached], slot: str
) -> SchemaChanged | None:
    """Look for partitions that were attached, truncated or left since `before`, and update it."""
    now = attached(source, roots)
    for partition in now:
        if not partition.logged:
            return _unlogged(partition.name)
        if partition.oid not in before:
            try:
                _refuse_filled(source, partition, slot)
            except SchemaChanged as error:
                return error
    truncated = _truncated_alone(now, before)
    _tell_left(before.keys() - {partition.oid for partition in now})
    before.clear()
    before |= {partition.oid: partition for partition in now}
    return truncated


def _truncated_alone(now: list[Attached], before: dict[int, Attached]) -> SchemaChanged | None:
    """Find a partition emptied without the others; a truncate of the root empties them all."""
    known = [partition for partition in now if partition.oid in before]
    for root in {partition.root for partition in known}:
        leaves = [partition for partition in known if partition.root == root]
        anew = [partition for partition in leaves if partition.file != before[partition.oid].file]
        emptied = [partition for partition in anew if partition.empty]
        if emptied and len(anew) < len(leaves):
            return SchemaChanged(
                f"partition {emptied[0].name} of {root} was truncated alone, which the stream does "
                "not tell",
                hint="delete the partition's rows from the read tables; then start again",
            )
    return None


def _tell_left(oids: set[int]) -> None:
    if oids:
        log.warning(
            "partitions were detached or dropped: rows they had stay in the read tables",
            extra={"partitions": len(oids)},
        )


def _refuse_filled(source: Connection, partition: Attached, slot: str) -> None:
    try:
        if not held_rows(source, partition):
            return
    except SourceRefused as error:
        raise SchemaChanged(
            f"{partition.name} was attached to {partition.root}, and whether it had rows before "
            f"cannot be seen: {error}",
            hint=f"grant select on {partition.name.sql} to the role in source.dsn; start again",
        ) from None
    name, root = partition.name, partition.root
    values = ", ".join(
        [
            literal(slot),
            str(partition.oid),
            str(PARTITION),
            *(literal(text) for text in (root.schema, root.table, name.table)),
        ]
    )
    raise SchemaChanged(
        f"{name} was attached to {root} and has rows that it may have had before: they are "
        f"{root}'s now, and were not streamed as such",
        hint="write its rows into the read tables; then, on the read database: insert into "
        f"cdc_source_column values ({values}, '[]', '[]'); and start again",
    )


def watch_tables(
    source: Connection, schema: Schema, carried: Mapping[TableName, frozenset[str]]
) -> SchemaChanged | None:
    """Look for what the stream does not tell: a table or column that another one replaced.

    `carried` are the columns that mirrors carry, by table.
    """
    now = find_tables(source, [table.oid for table in schema.values()])
    by_name = find_oids(source, schema)
    for name, table in schema.items():
        if table.oid not in now:
            made_anew = name in by_name
            return _gone(name, "dropped and made anew" if made_anew else "dropped")
        if now[table.oid].name != name:
            return _renamed(name, now[table.oid].name, taken=name in by_name)
        if not now[table.oid].logged:
            return _unlogged(name)
        columns = [column for column in table.columns if column.name in carried.get(name, ())]
        if changed := _changed_column(name, columns, now[table.oid]):
            return changed
    return None


def watch_publications(source: Connection, publications: Wanted) -> SourceNotReady | None:
    """Look whether the publications still bring all that is wanted of them."""
    sql = [s for lacking in differences(source, publications) for s in lacking.spelled(source)]
    if not sql:
        return None
    return SourceNotReady(
        "a publication was altered: changes that are wanted are not streamed any more",
        hint=f"as its owner: {'; '.join(sql)}; start again, and have `cdc verify --repair` find "
        "what was written meanwhile",
    )


def _gone(name: TableName, what: str) -> SchemaChanged:
    return SchemaChanged(
        f"{name} was {what} while its changes were streamed",
        hint="take it out of the configuration; or, where there is a new one, fill its read table "
        "anew, for its changes up to now may not have been streamed; then start again",
    )


def _unlogged(name: TableName) -> SchemaChanged:
    return SchemaChanged(
        f"{name} is unlogged: its changes are not streamed",
        hint=f"alter table {name.sql} set logged; start again, and have `cdc verify --repair` find "
        "what was written meanwhile",
    )


def _renamed(name: TableName, to: TableName, *, taken: bool) -> SchemaChanged:
    if taken:
        return _gone(name, f"renamed to {to}, and another table given its name,")
    return SchemaChanged(
        f"{name} was renamed to {to} while its changes were streamed",
        hint=f'set source = "{_toml(to)}" and target = "{_toml(name.table)}" in its mirror, and '
        "the new name in @projector(...); then start again: nothing is lost",
    )


def _toml(name: object) -> str:
    return str(name).replace("\\", "\\\\").replace('"', '\\"')


def _changed_column(
    table: TableName, columns: list[SourceColumn], now: FoundTable
) -> SchemaChanged | None:
    """Find a column that only has the name of the one before, or a type that no row tells."""
    numbers = {name: attnum for attnum, (name, _) in now.columns.items()}
    for column in columns:
        found = now.columns.get(column.attnum)
        if numbers.get(column.name, column.attnum) != column.attnum:
            what = "dropped and made again" if found is None else f'renamed to "{found[0]}"'
            another = "" if found is None else ", and another one given its name,"
            return SchemaChanged(
                f'column "{column.name}" of {table} was {what}{another} while its changes were '
                "streamed",
                hint="start again to be told what mends it",
            )
        if found and found[0] == column.name and found[1] != column.type_sql:
            return SchemaChanged(
                f'column "{column.name}" of {table} is now {found[1]}, and was '
                f"{column.type_sql}, while its changes were streamed",
                hint="start again to be told what mends it. Where the new type has more digits, "
                "compare what was written meanwhile: wal2json does not tell a change of precision",
            )
    return None

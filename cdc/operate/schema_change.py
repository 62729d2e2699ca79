"""Fit the read tables of mirrors to source tables that changed, or say what would."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NoReturn

import sqlalchemy as sa

from cdc.errors import SchemaChanged
from cdc.names import TableName
from cdc.projection.mirror import Mirror
from cdc.schema import Schema, SourceColumn, SourceTable
from cdc.sink import source_columns, tables
from cdc.sink.postgres import quoted
from cdc.sink.source_columns import PARTITION, KnownColumn
from cdc.source.catalog import FoundTable, find_oids, find_tables
from cdc.source.connection import Connection
from cdc.source.partitions import Attached, attached, held_rows

AT_START: Final = "found at start"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Former:
    """Names of before: of columns by their tables' names of now, and of the tables themselves."""

    columns: dict[TableName, dict[str, str]]
    tables: dict[TableName, TableName]


@dataclass(frozen=True)
class Fitting:
    """What a mirror's read table is fitted with: its source as it is, and as it was."""

    mirror: Mirror
    source: SourceTable
    before: dict[int, KnownColumn]
    has: frozenset[str]
    where: str

    def target(self, column: str) -> str:
        """Name the read column."""
        return self.mirror.settings.rename.get(column, column)

    @property
    def wanted(self) -> list[SourceColumn]:
        """The columns that are carried over."""
        excluded = self.mirror.settings.exclude
        return [c for c in self.source.columns if not c.generated and c.name not in excluded]

    @property
    def alter(self) -> str:
        """How a statement about the read table begins."""
        return f"alter table {tables.quoted_name(self.mirror.table)}"

    def refuse(self, what: str, hint: str) -> NoReturn:
        """Raise SchemaChanged, with the table and the position."""
        raise SchemaChanged(f"{self.source.name}: {what} ({self.where})", hint=hint)


def fit(
    connection: sa.Connection,
    mirrored: Iterable[tuple[Mirror, SourceTable]],
    known: list[KnownColumn],
    *,
    follow: bool,
    where: str = AT_START,
) -> list[tuple[sa.Table, str]]:
    """Give the DDL that brings the read tables that exist to what their sources are now.

    It adds columns, where that is to be followed. Raise SchemaChanged, with the DDL that mends it,
    for anything else; `where` says since when.
    """
    statements: list[tuple[sa.Table, str]] = []
    for mirror, source in mirrored:
        before = {column.attnum: column for column in known if column.table_oid == source.oid}
        has = tables.column_names(connection, mirror.table)
        if has and known:
            fitting = Fitting(mirror, source, before, has, where)
            _refuse_replaced(fitting, known)
            _refuse_renamed(fitting)
            statements += [(mirror.table, add) for add in _additions(fitting, follow=follow)]
    return statements


def execute(connection: sa.Connection, statements: Iterable[tuple[sa.Table, str]]) -> None:
    """Change the read tables; say so."""
    for table, statement in statements:
        connection.exec_driver_sql(statement.replace("%", "%%"))
        log.warning("changed a read table", extra={"table": table.name, "sql": statement})


def _refuse_replaced(fitting: Fitting, known: list[KnownColumn]) -> None:
    """Refuse a table, or a column, that only has the name of the one before."""
    name = fitting.source.name
    if not fitting.before and any(column.table == name for column in known):
        fitting.refuse(
            "the table was dropped and made anew, or another one was given its name: the read "
            f"table {fitting.mirror.table.name} holds the rows of the one before",
            "drop the read table, it is made anew, empty, and fill it; or fill it anew and, on the "
            f"read database: delete from cdc_source_column where schema_name = "
            f"{_literal(name.schema)} and table_name = {_literal(name.table)};",
        )
    for column in fitting.wanted:
        earlier = [c for c in fitting.before.values() if c.name == column.name]
        if column.attnum not in fitting.before and earlier:
            fitting.refuse(
                f'column "{column.name}" is another one than before, of the same name: the read '
                f"table {fitting.mirror.table.name} holds the values of the one before",
                f'set "{fitting.target(column.name)}" right in the read table, as the source has '
                f"it; then, on the read database: delete from cdc_source_column where "
                f"table_oid = {fitting.source.oid} and column_name = {_literal(column.name)};",
            )


def _refuse_renamed(fitting: Fitting) -> None:
    for column in fitting.wanted:
        before = fitting.before.get(column.attnum)
        old, new = before.name if before else column.name, fitting.target(column.name)
        if old != column.name and new not in fitting.has:
            fitting.refuse(
                f'column "{old}" was renamed to "{column.name}"',
                f"on the read database: {fitting.alter} rename column "
                f"{quoted(fitting.target(old))} to {quoted(new)}; or, to keep the read column's "
                f'name, add rename = {{ "{column.name}" = "{fitting.target(old)}" }} to the '
                "mirror; then start again",
            )


def _additions(fitting: Fitting, *, follow: bool) -> list[str]:
    added = [
        column
        for column in fitting.wanted
        if fitting.before
        and fitting.target(column.name) not in fitting.has
        and column.attnum not in fitting.before
        and column.name not in fitting.source.key
    ]
    for column in added:
        if column.past_unknown:
            _refuse_unknown_past(fitting, column)
    statements = [_add_statement(fitting, column) for column in added]
    if statements and not follow:
        names = ", ".join(f'"{column.name}"' for column in added)
        fitting.refuse(
            f"new columns, which the read table {fitting.mirror.table.name} lacks: {names}",
            f"on the read database: {' '.join(statements)} Or list them in the mirror's `exclude`, "
            "or set projection.follow_schema = true; then start again",
        )
    return statements


def _refuse_unknown_past(fitting: Fitting, column: SourceColumn) -> NoReturn:
    target = fitting.target(column.name)
    fitting.refuse(
        f'new column "{column.name}", of which the catalog does not tell what the rows from before '
        "it have in it: its default is computed for each row, or was set later, or the table was "
        "rewritten since",
        f"on the read database: {_add_statement(fitting, column)} and set {quoted(target)} right "
        "in the rows from before, as the source has it; or list it in the mirror's `exclude`; "
        "then start again",
    )


def _add_statement(fitting: Fitting, column: SourceColumn) -> str:
    """Add the column, with what rows from before have in it.

    As a default, for rows of before the column that are still to come have the same in it.
    """
    target = fitting.mirror.table.c[fitting.target(column.name)]
    type_sql = target.type.compile()
    missing = fitting.mirror.masked(column.name, column.missing)
    default = f" default {_literal(missing)}::{type_sql}" if isinstance(missing, str) else ""
    return f"{fitting.alter} add column {quoted(target.name)} {type_sql}{default};"


def _literal(text: str) -> str:
    """Quote a string, whatever standard_conforming_strings is."""
    doubled = text.replace("'", "''").replace("\\", "\\\\")
    return f" E'{doubled}'" if "\\" in text else f"'{doubled}'"


def refuse_filled(
    source: Connection, partitions: list[Attached], known: list[KnownColumn], slot: str
) -> None:
    """Refuse new partitions that had rows before: the stream did not bring them as their root's.

    Raise SchemaChanged. Where nothing is known of a root yet its read tables are filled otherwise.
    """
    roots = {column.table for column in known}
    accepted = {column.table_oid for column in known if column.attnum == PARTITION}
    for partition in partitions:
        if partition.root in roots and partition.oid not in accepted:
            _refuse_filled(source, partition, slot)
    _tell_left(accepted - {partition.oid for partition in partitions})


def watch_partitions(
    source: Connection, roots: dict[int, TableName], before: dict[int, Attached], slot: str
) -> SchemaChanged | None:
    """Look for partitions that were attached, truncated or left since `before`, and update it."""
    now = attached(source, roots)
    for partition in now:
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
    if not held_rows(source, partition):
        return
    name, root = partition.name, partition.root
    values = ", ".join(
        [
            _literal(slot),
            str(partition.oid),
            str(PARTITION),
            *(_literal(text) for text in (root.schema, root.table, name.table)),
        ]
    )
    raise SchemaChanged(
        f"{name} was attached to {root} and has rows that it may have had before: they are "
        f"{root}'s now, and were not streamed as such",
        hint="write its rows into the read tables; then, on the read database: insert into "
        f"cdc_source_column values ({values}, '[]', '[]'); and start again",
    )


def watch(
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
        columns = [column for column in table.columns if column.name in carried.get(name, ())]
        if changed := _changed_column(name, columns, now[table.oid]):
            return changed
    return None


def _gone(name: TableName, what: str) -> SchemaChanged:
    return SchemaChanged(
        f"{name} was {what} while its changes were streamed",
        hint="changes of the new table up to now may not have been streamed: fill its read table "
        "anew; or take it out of the configuration; then start again",
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
        if found is None and column.name in numbers:
            return SchemaChanged(
                f'column "{column.name}" of {table} was dropped and made again while its '
                "changes were streamed",
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


def remember(
    connection: sa.Connection,
    slot: str,
    schema: Schema,
    partitions: Iterable[Attached],
    *,
    known: Iterable[KnownColumn],
) -> Former:
    """Store the columns that the read tables fit now; give the names of before."""
    before = {(column.table_oid, column.attnum): column for column in known}
    oids = {table.oid for table in schema.values()}
    kept = {key: column for key, column in before.items() if key[0] in oids}
    for table in schema.values():
        for column in table.columns:
            key = (table.oid, column.attnum)
            now = KnownColumn(table.oid, column.attnum, table.name, column.name)
            kept[key] = _succeeding(before.get(key), now)
    leaves = [KnownColumn(p.oid, PARTITION, p.root, p.name.table) for p in partitions]
    source_columns.save(connection, slot, [*kept.values(), *leaves])
    return _former(schema, kept.values())


def _succeeding(before: KnownColumn | None, now: KnownColumn) -> KnownColumn:
    """Give the column as it is now, with the names it had."""
    if before is None:
        return now
    names, named_in = before.former_names, before.former_tables
    if before.name != now.name:
        names = (*names, before.name)
    if before.table != now.table:
        named_in = (*named_in, before.table)
    return replace(now, former_names=names, former_tables=named_in)


def _former(schema: Schema, known: Iterable[KnownColumn]) -> Former:
    """Give the former names that nothing else has by now."""
    by_oid = {table.oid: table for table in schema.values()}
    columns: dict[TableName, dict[str, str]] = defaultdict(dict)
    names: dict[TableName, TableName] = {}
    for column in known:
        table = by_oid[column.table_oid]
        taken = {c.name for c in table.columns}
        if column.name in taken:
            columns[table.name] |= {n: column.name for n in column.former_names if n not in taken}
        names |= {n: table.name for n in column.former_tables if n not in schema}
    return Former(dict(columns), names)

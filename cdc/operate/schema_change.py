"""Fit the read tables of mirrors to source tables that changed, or say what would."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NoReturn

import sqlalchemy as sa

from cdc.errors import SchemaChanged
from cdc.names import TableName
from cdc.projection.mirror import Mirror
from cdc.schema import Schema, SourceColumn, SourceTable
from cdc.sink import source_columns, tables
from cdc.sink.added_column import add_column
from cdc.sink.source_columns import PARTITION, KnownColumn
from cdc.source.partitions import Attached

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
    connection: sa.Connection

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
        return f"alter table {tables.catalog_of(self.connection).name(self.mirror.table)}"

    def quoted(self, name: str) -> str:
        """Quote a name as the read database takes it."""
        return tables.catalog_of(self.connection).quote(name)

    def literal(self, text: str) -> str:
        """Quote a string as the read database takes it."""
        return tables.catalog_of(self.connection).literal(text)

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
    if not known:
        return statements
    before: defaultdict[int, dict[int, KnownColumn]] = defaultdict(dict)
    for column in known:
        before[column.table_oid][column.attnum] = column
    pairs = list(mirrored)
    names = tables.column_names(connection, [mirror.table for mirror, _ in pairs])
    for mirror, source in pairs:
        if has := names.get(mirror.table):
            fitting = Fitting(mirror, source, before[source.oid], has, where, connection)
            _refuse_replaced(fitting, known)
            _refuse_renamed(fitting)
            _refuse_exchanged(fitting)
            statements += [(mirror.table, add) for add in _additions(fitting, follow=follow)]
    return statements


def execute(connection: sa.Connection, statements: Iterable[tuple[sa.Table, str]]) -> None:
    """Change the read tables; say so."""
    doubled = connection.dialect.paramstyle != "qmark"  # where % would begin a parameter
    for table, statement in statements:
        connection.exec_driver_sql(statement.replace("%", "%%") if doubled else statement)
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
            f"{fitting.literal(name.schema)} and table_name = {fitting.literal(name.table)};",
        )
    for column in fitting.wanted:
        earlier = [c for c in fitting.before.values() if c.name == column.name]
        if column.attnum not in fitting.before and earlier:
            its_name = fitting.literal(column.name)
            fitting.refuse(
                f'column "{column.name}" is another one than before, of the same name: the read '
                f"table {fitting.mirror.table.name} holds the values of the one before",
                f'set "{fitting.target(column.name)}" right in the read table, as the source has '
                f"it; then, on the read database: delete from cdc_source_column where "
                f"table_oid = {fitting.source.oid} and column_name = {its_name};",
            )


def _refuse_renamed(fitting: Fitting) -> None:
    for column in fitting.wanted:
        before = fitting.before.get(column.attnum)
        old, new = before.name if before else column.name, fitting.target(column.name)
        if old != column.name and new not in fitting.has:
            fitting.refuse(
                f'column "{old}" was renamed to "{column.name}"',
                f"on the read database: {fitting.alter} rename column "
                f"{fitting.quoted(fitting.target(old))} to {fitting.quoted(new)}; or, to keep the "
                f"read column's name, "
                f'add rename = {{ "{column.name}" = "{fitting.target(old)}" }} to the '
                "mirror; then start again",
            )


def _refuse_exchanged(fitting: Fitting) -> None:
    """Refuse a column that was given the name of another: the read column has that one's values."""
    for column in fitting.wanted:
        before = fitting.before.get(column.attnum)
        if before is None or before.name == column.name:
            continue
        is_taken = any(other.name == column.name for other in fitting.before.values())
        if not is_taken or _is_renamed_too(fitting, before.name, column.name):
            continue
        names = ", ".join(fitting.literal(name) for name in (before.name, column.name))
        fitting.refuse(
            f'column "{column.name}" was "{before.name}", and is another one than before, of the '
            f"same name: the read table {fitting.mirror.table.name} holds the values of the one "
            "before",
            "on the read database: delete from cdc_source_column where table_oid = "
            f"{fitting.source.oid} and column_name in ({names}); start again, and have "
            "`cdc verify --repair` put the rows right",
        )


def _is_renamed_too(fitting: Fitting, old: str, new: str) -> bool:
    """Tell whether the read column goes with the source's: it was renamed, or keeps its name."""
    target = fitting.target(old)
    is_carried = old not in fitting.mirror.settings.exclude
    return target == fitting.target(new) or (is_carried and target not in fitting.has)


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
        "it have in it (its default is computed for each row, or was set later, or the table was "
        "rewritten since)",
        f"on the read database: {_add_statement(fitting, column)} and set "
        f"{fitting.quoted(target)} right in the rows from before, as the source has it; or list it "
        "in the mirror's `exclude`; then start again",
    )


def _add_statement(fitting: Fitting, column: SourceColumn) -> str:
    """Add the column, with what rows from before have in it."""
    target = fitting.mirror.table.c[fitting.target(column.name)]
    past = fitting.mirror.masked(column.name, column.missing)
    return add_column(fitting.connection, target, past=past if isinstance(past, str) else None)


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

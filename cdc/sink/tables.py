"""Read tables: create those that are missing, refuse those that do not fit."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from cdc.errors import ReadTableMismatch
from cdc.operation import key_columns
from cdc.sink.postgres import quoted

_COLUMNS: Final = sa.text("""
select attname, format_type(atttypid, atttypmod) as type_sql,
       attnotnull and not atthasdef and attidentity = '' as required
from pg_attribute where attrelid = to_regclass(:name) and attnum > 0 and not attisdropped
order by attnum
""")

_UNIQUE_KEYS: Final = sa.text("""
select array(select a.attname::text from unnest(i.indkey) k(attnum)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum)
from pg_index i
where i.indrelid = to_regclass(:name) and i.indisunique and i.indimmediate and i.indisvalid
  and i.indpred is null and i.indexprs is null
""")


def missing(connection: sa.Connection, tables: Sequence[sa.Table]) -> list[sa.Table]:
    """Give the tables that do not exist yet, in the order given."""
    inspector = sa.inspect(connection)
    return [table for table in tables if not inspector.has_table(table.name, schema=table.schema)]


def create(connection: sa.Connection, tables: Sequence[sa.Table]) -> None:
    """Create the tables, with their indexes and foreign keys, which may go in a circle."""
    for metadata in dict.fromkeys(table.metadata for table in tables):
        together = [table for table in tables if table.metadata is metadata]
        metadata.create_all(connection, tables=together, checkfirst=False)


def column_names(connection: sa.Connection, table: sa.Table) -> frozenset[str]:
    """Name the columns that the table has by now; none where it does not exist."""
    return frozenset(row.attname for row in _described(connection, quoted_name(table)))


def misfits(connection: sa.Connection, tables: Sequence[sa.Table]) -> list[ReadTableMismatch]:
    """Compare existing tables with their definitions; give an error for each that differs."""
    found = []
    for table in tables:
        differences = [
            *_column_differences(connection, table),
            *_key_differences(connection, table),
        ]
        if differences:
            found.append(
                ReadTableMismatch(
                    f"read table {table.fullname} does not fit: "
                    + "; ".join(text for text, _ in differences),
                    hint="on the read database: "
                    + " ".join(f"{statement};" for _, statement in differences)
                    + " Or drop the table: it is made anew, empty.",
                )
            )
    return found


def _column_differences(connection: sa.Connection, table: sa.Table) -> list[tuple[str, str]]:
    """Compare by what the server itself calls the types, so that spelling does not matter."""
    actual = {row.attname: row for row in _described(connection, quoted_name(table))}
    wanted = {row.attname: row.type_sql for row in _as_created(connection, table)}
    alter = f"alter table {quoted_name(table)}"
    found = []
    for name, type_sql in wanted.items():
        if name not in actual:
            found.append(
                (f'column "{name}" is missing', f"{alter} add column {quoted(name)} {type_sql}")
            )
        elif actual[name].type_sql != type_sql:
            change = f"type {type_sql} using {quoted(name)}::{type_sql}"
            found.append(
                (
                    f'column "{name}" is {actual[name].type_sql}, not {type_sql}',
                    f"{alter} alter column {quoted(name)} {change}",
                )
            )
    for name, row in actual.items():
        if name not in wanted and row.required:
            found.append(
                (
                    f'column "{name}" is not known to the read model, and required',
                    f"{alter} alter column {quoted(name)} drop not null",
                )
            )
    return found


def _as_created(connection: sa.Connection, table: sa.Table) -> Sequence[Any]:
    """Describe the columns the definition would give, by creating it as a temporary table."""
    name = "cdc_fit"
    columns = [sa.Column(c.name, c.type) for c in table.columns]
    scratch = sa.Table(name, sa.MetaData(), *columns, prefixes=["temporary"])
    connection.execute(CreateTable(scratch))
    described = _described(connection, f"pg_temp.{name}")
    connection.exec_driver_sql(f"drop table pg_temp.{name}")
    return described


def _described(connection: sa.Connection, quoted: str) -> Sequence[Any]:
    return connection.execute(_COLUMNS, {"name": quoted}).all()


def _key_differences(connection: sa.Connection, table: sa.Table) -> list[tuple[str, str]]:
    key = key_columns(table)
    unique = connection.execute(_UNIQUE_KEYS, {"name": quoted_name(table)}).scalars()
    if not key or any(set(columns) == set(key) for columns in unique):
        return []
    columns = ", ".join(map(quoted, key))
    return [
        (
            f"nothing makes its key ({', '.join(key)}) unique",
            f"create unique index on {quoted_name(table)} ({columns})",
        )
    ]


def quoted_name(table: sa.Table) -> str:
    """Quote a table's name, with its schema where it has one."""
    return ".".join(quoted(part) for part in (table.schema, table.name) if part)

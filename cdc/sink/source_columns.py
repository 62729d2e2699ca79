"""The source columns that the read tables were last made to fit, in the read database.

The catalog tells what a table is now, and this what it was: so a renamed column is told from a new
one, and a replaced table or column from the one it replaced.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from cdc.names import TableName
from cdc.sink.checkpoint import METADATA

TABLE: Final = sa.Table(
    "cdc_source_column",
    METADATA,
    sa.Column("slot", sa.String(63), primary_key=True),
    sa.Column("table_oid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("attnum", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_name", sa.String(63), nullable=False),
    sa.Column("table_name", sa.String(63), nullable=False),
    sa.Column("column_name", sa.String(63), nullable=False),
    sa.Column("former_columns", sa.JSON, nullable=False, comment="its names before, oldest first"),
    sa.Column("former_tables", sa.JSON, nullable=False, comment="[schema, table], oldest first"),
)


PARTITION: Final = 0


@dataclass(frozen=True, slots=True)
class KnownColumn:
    """A column by what it keeps when it is renamed: its table's oid and its number.

    Number 0 is a partition: its name, and as `table` whose it is.
    """

    table_oid: int
    attnum: int
    table: TableName
    name: str
    former_names: tuple[str, ...] = ()
    former_tables: tuple[TableName, ...] = ()


def load(connection: sa.Connection, slot: str) -> list[KnownColumn]:
    """Give what the slot's read tables were made to fit; nothing before the first start."""
    if not sa.inspect(connection).has_table(TABLE.name):
        return []
    rows = connection.execute(sa.select(TABLE).where(TABLE.c.slot == slot))
    return [
        KnownColumn(
            row.table_oid,
            row.attnum,
            TableName(row.schema_name, row.table_name),
            row.column_name,
            tuple(row.former_columns),
            tuple(TableName(*name) for name in row.former_tables),
        )
        for row in rows
    ]


def save(connection: sa.Connection, slot: str, columns: Iterable[KnownColumn]) -> None:
    """Store what the slot's read tables fit now, in place of what was stored."""
    forget(connection, slot)
    rows = [
        {
            "slot": slot,
            "table_oid": column.table_oid,
            "attnum": column.attnum,
            "schema_name": column.table.schema,
            "table_name": column.table.table,
            "column_name": column.name,
            "former_columns": list(column.former_names),
            "former_tables": [list(name) for name in column.former_tables],
        }
        for column in columns
    ]
    if rows:
        connection.execute(sa.insert(TABLE), rows)


def forget(connection: sa.Connection, slot: str) -> None:
    """Delete what is stored for the slot."""
    if sa.inspect(connection).has_table(TABLE.name):
        connection.execute(sa.delete(TABLE).where(TABLE.c.slot == slot))

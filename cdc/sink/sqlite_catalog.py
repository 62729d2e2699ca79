"""What an SQLite read database says of its tables."""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from cdc.sink.postgres import quoted
from cdc.sink.read_column import Difference, ReadColumn

_COLUMNS: Final = sa.text("""
select name, upper(type) as type_sql,
       "notnull" and dflt_value is null and hidden = 0
           and not (pk > 0 and upper(type) = 'INTEGER') as required
from pragma_table_xinfo(:name, :schema) order by cid
""")
_KEY: Final = sa.text("select name from pragma_table_info(:name) where pk > 0")
_UNIQUE_KEYS: Final = sa.text("""
select l.name as index_name, i.name as column_name
from pragma_index_list(:name) l, pragma_index_info(l.name) i
where l."unique" and not l.partial
""")


class SQLiteCatalog:
    """Looks tables up, and spells what would mend them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def missing(self, tables: Sequence[sa.Table]) -> list[sa.Table]:
        """Give the tables that do not exist, in the order given."""
        has_table = sa.inspect(self._connection).has_table
        return [table for table in tables if not has_table(table.name, schema=table.schema)]

    def look_up(self, tables: Sequence[sa.Table]) -> None:
        """Look nothing up: each table is asked for by itself."""

    def columns(self, table: sa.Table, *, scratch: bool) -> dict[str, ReadColumn]:
        """Describe a table's columns, by name."""
        wanted = {"name": table.name, "schema": "temp" if scratch else "main"}
        described = self._connection.execute(_COLUMNS, wanted)
        return {row.name: ReadColumn(row.type_sql, bool(row.required)) for row in described}

    def unique_keys(self, table: sa.Table) -> list[set[str]]:
        """Give the sets of columns that are unique."""
        wanted = {"name": table.name}
        keys: dict[str, set[str]] = {}
        for row in self._connection.execute(_UNIQUE_KEYS, wanted):
            keys.setdefault(row.index_name, set()).add(row.column_name)
        return [set(self._connection.execute(_KEY, wanted).scalars()), *keys.values()]

    def further(self, _table: sa.Table) -> list[Difference]:
        """Give what else keeps the table from being used."""
        return []

    def drop_scratch(self, table: sa.Table) -> None:
        """Drop a temporary table."""
        self._connection.exec_driver_sql(f"drop table temp.{quoted(table.name)}")

    def name(self, table: sa.Table) -> str:
        """Give the table's name as SQL takes it."""
        return quoted(table.name)

    def quote(self, name: str) -> str:
        """Quote an identifier."""
        return quoted(name)

    def literal(self, text: str) -> str:
        """Quote a string."""
        doubled = text.replace("'", "''")
        return f"'{doubled}'"

    def change_type(self, _table: sa.Table, _column: str, _type_sql: str) -> str | None:
        """Give nothing: SQLite changes no column's type."""
        return None

    def drop_required(self, _table: sa.Table, _column: str, _type_sql: str) -> str | None:
        """Give nothing: SQLite changes no column."""
        return None

    def make_unique(self, table: sa.Table, columns: str) -> str:
        """Spell the unique index that a key needs."""
        index = quoted(f"{table.name}_key")
        return f"create unique index {index} on {self.name(table)} ({columns})"

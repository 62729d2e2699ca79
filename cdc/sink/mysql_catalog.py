"""What a MySQL or MariaDB read database says of its tables."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from cdc.sink.read_column import Difference, ReadColumn

_ENGINE: Final = sa.text("""
select engine from information_schema.tables
where table_schema = coalesce(:schema, database()) and table_name = :name
""")


class MySQLCatalog:
    """Looks tables up, and spells what would mend them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._preparer = connection.dialect.identifier_preparer

    def missing(self, tables: Sequence[sa.Table]) -> list[sa.Table]:
        """Give the tables that do not exist, in the order given."""
        has_table = sa.inspect(self._connection).has_table
        return [table for table in tables if not has_table(table.name, schema=table.schema)]

    def look_up(self, tables: Sequence[sa.Table]) -> None:
        """Look nothing up: each table is asked for by itself."""

    def columns(self, table: sa.Table, *, scratch: bool) -> dict[str, ReadColumn]:
        """Describe a table's columns, by name; the collation is part of the type."""
        del scratch  # a temporary table hides another of its name
        described = self._connection.exec_driver_sql(f"show full columns from {self._sql(table)}")
        return {
            row.Field: ReadColumn(
                row.Type + (f" collate {row.Collation}" if row.Collation else ""),
                row.Null == "NO" and row.Default is None and not row.Extra,
            )
            for row in described
        }

    def unique_keys(self, table: sa.Table) -> list[set[str]]:
        """Give the sets of columns that are unique as a whole."""
        keys: dict[str, set[str]] = defaultdict(set)
        partial = set()
        for row in self._connection.exec_driver_sql(f"show index from {self._sql(table)}"):
            if not row.Non_unique:
                keys[row.Key_name].add(row.Column_name)
                partial |= {row.Key_name} if row.Sub_part else set()
        return [columns for name, columns in keys.items() if name not in partial]

    def further(self, table: sa.Table) -> list[Difference]:
        """Refuse an engine without transactions."""
        wanted = {"schema": table.schema, "name": table.name}
        engine = self._connection.execute(_ENGINE, wanted).scalar()
        if engine == "InnoDB":
            return []
        return [(f"its engine is {engine}", f"alter table {self.name(table)} engine = InnoDB")]

    def drop_scratch(self, table: sa.Table) -> None:
        """Drop a temporary table."""
        self._connection.exec_driver_sql(f"drop temporary table {self._sql(table)}")

    def name(self, table: sa.Table) -> str:
        """Give the table's name as SQL takes it."""
        return self._sql(table).replace("%%", "%")

    def quote(self, name: str) -> str:
        """Quote an identifier."""
        return str(self._preparer.quote_identifier(name)).replace("%%", "%")

    def literal(self, text: str) -> str:
        """Quote a string, for a session in which a backslash escapes, as it does by default."""
        doubled = text.replace("\\", "\\\\").replace("'", "''")
        return f"'{doubled}'"

    def change_type(self, table: sa.Table, column: str, type_sql: str) -> str | None:
        """Spell the change of a column's type."""
        return f"alter table {self.name(table)} modify column {self.quote(column)} {type_sql}"

    def drop_required(self, table: sa.Table, column: str, type_sql: str) -> str | None:
        """Spell that a column need not be given."""
        return self.change_type(table, column, f"{type_sql} null")

    def make_unique(self, table: sa.Table, columns: str) -> str:
        """Spell the unique index that a key needs."""
        return f"alter table {self.name(table)} add unique index ({columns})"

    def _sql(self, table: sa.Table) -> str:
        """Give the name for a statement of the driver's, where % is doubled."""
        parts = (table.schema, table.name)
        return ".".join(str(self._preparer.quote_identifier(part)) for part in parts if part)

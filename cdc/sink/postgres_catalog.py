"""What a Postgres read database says of its tables."""

from typing import Final

import sqlalchemy as sa

from cdc.sink.postgres import literal, quoted
from cdc.sink.read_column import Difference, ReadColumn

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

_UNLOGGED: Final = sa.text("""
select c.oid::regclass::text
from (select to_regclass(:name) as oid
      union select relid from pg_partition_tree(to_regclass(:name))) t
join pg_class c on c.oid = t.oid
where c.relpersistence = 'u' and c.relkind = 'r'
order by 1
""")


class PostgresCatalog:
    """Looks tables up, and spells what would mend them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def columns(self, table: sa.Table, *, scratch: bool) -> dict[str, ReadColumn]:
        """Describe a table's columns, by name."""
        name = f"pg_temp.{quoted(table.name)}" if scratch else self.name(table)
        described = self._connection.execute(_COLUMNS, {"name": name})
        return {row.attname: ReadColumn(row.type_sql, row.required) for row in described}

    def unique_keys(self, table: sa.Table) -> list[set[str]]:
        """Give the sets of columns that are unique."""
        found = self._connection.execute(_UNIQUE_KEYS, {"name": self.name(table)})
        return [set(columns) for columns in found.scalars()]

    def further(self, table: sa.Table) -> list[Difference]:
        """Refuse what a crash of the server empties, while the checkpoint stays."""
        found = self._connection.execute(_UNLOGGED, {"name": self.name(table)}).scalars()
        return [(f"{name} is unlogged", f"alter table {name} set logged") for name in found]

    def drop_scratch(self, table: sa.Table) -> None:
        """Drop a temporary table."""
        self._connection.exec_driver_sql(f"drop table pg_temp.{quoted(table.name)}")

    def name(self, table: sa.Table) -> str:
        """Give the table's name as SQL takes it."""
        return ".".join(quoted(part) for part in (table.schema, table.name) if part)

    def quote(self, name: str) -> str:
        """Quote an identifier."""
        return quoted(name)

    def literal(self, text: str) -> str:
        """Quote a string."""
        return literal(text)

    def change_type(self, table: sa.Table, column: str, type_sql: str) -> str | None:
        """Spell the change of a column's type."""
        name = quoted(column)
        change = f"type {type_sql} using {name}::{type_sql}"
        return f"alter table {self.name(table)} alter column {name} {change}"

    def drop_required(self, table: sa.Table, column: str, _type_sql: str) -> str | None:
        """Spell that a column need not be given."""
        return f"alter table {self.name(table)} alter column {quoted(column)} drop not null"

    def make_unique(self, table: sa.Table, columns: str) -> str:
        """Spell the unique index that a key needs."""
        return f"create unique index on {self.name(table)} ({columns})"

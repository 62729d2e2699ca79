"""What a Postgres read database says of its tables."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

import sqlalchemy as sa

from cdc.sink.postgres import literal, quoted
from cdc.sink.read_column import Difference, ReadColumn

# Of all tables named at once.
_TABLES: Final = "unnest(cast(:names as text[])) as t(name)"
_MISSING: Final = sa.text("""
select position from unnest(cast(:schemas as text[]), cast(:names as text[]))
                     with ordinality as t(schema, name, position)
where not exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.relname = t.name and c.relkind = any('{r,p,f,v,m}')
                    and case when schema is null
                        then pg_table_is_visible(c.oid) and n.nspname <> 'pg_catalog'
                        else n.nspname = schema end)
""")

_COLUMNS: Final = sa.text(f"""
select name, attname, format_type(atttypid, atttypmod) as type_sql,
       attnotnull and not atthasdef and attidentity = '' as required
from {_TABLES} join pg_attribute on attrelid = to_regclass(name)
where attnum > 0 and not attisdropped
order by name, attnum
""")

_UNIQUE_KEYS: Final = sa.text(f"""
select name, array(select a.attname::text from unnest(i.indkey) k(attnum)
                   join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum)
from {_TABLES} join pg_index i on i.indrelid = to_regclass(name)
where i.indisunique and i.indimmediate and i.indisvalid
  and i.indpred is null and i.indexprs is null
""")

_UNLOGGED: Final = sa.text(f"""
select name, c.oid::regclass::text
from {_TABLES}
cross join lateral (select to_regclass(name) as oid
                    union select relid from pg_partition_tree(to_regclass(name))) p
join pg_class c on c.oid = p.oid
where c.relpersistence = 'u' and c.relkind = 'r'
order by 1, 2
""")

Columns = dict[str, ReadColumn]


class _Found:
    """What is known of tables, by their names in SQL."""

    def __init__(self, connection: sa.Connection, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self._connection = connection
        self._wanted = {"names": list(names)}

    @cached_property
    def columns(self) -> Mapping[str, Columns]:
        found: defaultdict[str, Columns] = defaultdict(dict)
        for name, column, type_sql, required in self._connection.execute(_COLUMNS, self._wanted):
            found[name][column] = ReadColumn(type_sql, required)
        return found

    @cached_property
    def unique_keys(self) -> Mapping[str, list[set[str]]]:
        found: defaultdict[str, list[set[str]]] = defaultdict(list)
        for name, key in self._connection.execute(_UNIQUE_KEYS, self._wanted):
            found[name].append(set(key))
        return found

    @cached_property
    def unlogged(self) -> Mapping[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name, part in self._connection.execute(_UNLOGGED, self._wanted):
            found[name].append(part)
        return found


class PostgresCatalog:
    """Looks tables up, and spells what would mend them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._found: _Found | None = None

    def missing(self, tables: Sequence[sa.Table]) -> list[sa.Table]:
        """Give the tables that do not exist, in the order given."""
        wanted = {"schemas": [t.schema for t in tables], "names": [t.name for t in tables]}
        absent = set(self._connection.execute(_MISSING, wanted).scalars())
        return [table for position, table in enumerate(tables, 1) if position in absent]

    def look_up(self, tables: Sequence[sa.Table]) -> None:
        """Look tables up together: for each alone it would be several round trips."""
        self._found = _Found(self._connection, [self.name(table) for table in tables])

    def columns(self, table: sa.Table, *, scratch: bool) -> dict[str, ReadColumn]:
        """Describe a table's columns, by name."""
        if not scratch:
            return self._of(table).columns[self.name(table)]
        name = f"pg_temp.{quoted(table.name)}"
        described = self._connection.execute(_COLUMNS, {"names": [name]})
        return {row.attname: ReadColumn(row.type_sql, row.required) for row in described}

    def _of(self, table: sa.Table) -> _Found:
        name = self.name(table)
        if self._found is None or name not in self._found.names:
            return _Found(self._connection, [name])
        return self._found

    def unique_keys(self, table: sa.Table) -> list[set[str]]:
        """Give the sets of columns that are unique."""
        return self._of(table).unique_keys[self.name(table)]

    def further(self, table: sa.Table) -> list[Difference]:
        """Refuse what a crash of the server empties, while the checkpoint stays."""
        unlogged = self._of(table).unlogged[self.name(table)]
        return [(f"{name} is unlogged", f"alter table {name} set logged") for name in unlogged]

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

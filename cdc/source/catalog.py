"""Read the write database's catalog: tables, keys, types."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from psycopg.rows import namedtuple_row

from cdc.names import TableName
from cdc.schema import Identity, Schema, SourceColumn, SourceTable
from cdc.source.connection import Connection, translated
from cdc.values import FIRST_USER_OID, TEXT

_TEXT_ARRAY: Final = 1009
_IDENTITIES: Final[dict[str, Identity]] = {
    "d": "default",
    "f": "full",
    "i": "index",
    "n": "nothing",
}

_TABLES = """
select c.oid, n.nspname, c.relname, c.relreplident, c.relkind = 'p' as partitioned
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence = 'p'
  and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
  and (n.nspname, c.relname) in (select * from unnest(%(schemas)s::text[], %(tables)s::text[]))
"""

_FOUND = """
select c.oid, n.nspname, c.relname, c.relpersistence = 'p', a.attnum, a.attname,
       format_type(a.atttypid, a.atttypmod)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.oid = any(%s)
"""

# A pattern covers roots, not their partitions: those are reported under the root's name.
_NAMES = """
select n.nspname, c.relname
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence = 'p' and not c.relispartition
  and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""

_COLUMNS = """
select a.attrelid, a.attname, a.atttypid, a.attgenerated <> '' as generated,
       a.attnotnull as required,
       format_type(a.atttypid, a.atttypmod) as type_sql, a.attnum, a.atttypmod,
       case when a.atthasmissing then (a.attmissingval::text::text[])[1] end as missing,
       (a.atthasdef or a.attidentity <> '') and not a.atthasmissing as past_unknown
from pg_attribute a
where a.attrelid = any(%s) and a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum
"""

# The replica identity's index, or with identity default or full the primary key's.
_KEYS = """
select i.indrelid, a.attname
from pg_index i
join pg_class c on c.oid = i.indrelid
cross join unnest(i.indkey) with ordinality as k(attnum, position)
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
where i.indrelid = any(%s) and i.indisvalid and i.indimmediate
  and k.position <= i.indnkeyatts
  and case c.relreplident when 'i' then i.indisreplident when 'n' then false
      else i.indisprimary end
order by i.indrelid, k.position
"""

_LEAVES = """
select root.oid as root, n.nspname, c.relname
from unnest(%s::oid[]) as root(oid), pg_partition_tree(root.oid) t
join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace
where t.isleaf
"""

# Types that a read database cannot be given: their text names an object that it need not have, or
# no text is accepted for them at all.
_NAMES_OR_PRINTED_ONLY: Final = (
    *("regproc", "regprocedure", "regoper", "regoperator", "regclass", "regcollation", "regtype"),
    *("regrole", "regnamespace", "regconfig", "regdictionary", "aclitem"),
    *("pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list"),
)

# Domains, enums and the row types of tables, and arrays of them: all other types of users' own are
# carried as text. The server's own are there too: its domains and row types differ by version.
_TYPES = """
select t.oid, t.typtype, t.typbasetype, t.typelem,
       format_type(t.typbasetype, t.typtypmod) as base_sql,
       coalesce(e.typtype, '') as element_typtype, e.typbasetype as element_base,
       b.typarray as element_base_array
from pg_type t
left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
left join pg_type b on b.oid = e.typbasetype
where coalesce(e.typtype, t.typtype) in ('c', 'd', 'e')
   or coalesce(e.typname, t.typname) = any(%s) and t.typnamespace = 'pg_catalog'::regnamespace
"""


class Types:
    """How values of types of users' own are decoded and stored: as a type everybody has."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = {row.oid: row for row in rows}

    def decoded_as(self, type_oid: int) -> int:
        """Give the built-in type whose text form a type's values have; text where none is."""
        row = self._rows.get(type_oid)
        if row is None:
            return type_oid if type_oid < FIRST_USER_OID else TEXT
        if row.typtype == "d":
            return self.decoded_as(row.typbasetype)
        if row.element_typtype == "d":
            return self._array_of_domain(row)
        return _TEXT_ARRAY if row.element_typtype in {"b", "e"} else TEXT

    def _array_of_domain(self, row: Any) -> int:
        base = int(row.element_base)
        return int(row.element_base_array) if base < FIRST_USER_OID else TEXT

    def stored_as(self, type_oid: int, type_sql: str) -> str:
        """Give the SQL of the type a mirror's column has in a Postgres read database."""
        row = self._rows.get(type_oid)
        if row is None and type_oid < FIRST_USER_OID:
            return type_sql
        if row is not None and row.typtype == "d":
            return self.stored_as(row.typbasetype, row.base_sql)
        return "text[]" if self.decoded_as(type_oid) == _TEXT_ARRAY else "text"


def read_types(connection: Connection) -> Types:
    """Read the types of users' own; raise a SourceError."""
    with translated(), connection.cursor(row_factory=namedtuple_row) as cursor:
        return Types(cursor.execute(_TYPES, [list(_NAMES_OR_PRINTED_ONLY)]).fetchall())


def describe(connection: Connection, wanted: Iterable[TableName]) -> Schema:
    """Describe the wanted tables that exist; a wanted name may be a pattern.

    Raise a SourceError.
    """
    types = read_types(connection)
    cursor: Any
    with translated(), connection.cursor(row_factory=namedtuple_row) as cursor:
        names = _resolve(cursor, list(wanted))
        parameters = {"schemas": [n.schema for n in names], "tables": [n.table for n in names]}
        tables = cursor.execute(_TABLES, parameters).fetchall()
        oids = [row.oid for row in tables]
        columns, keys = _columns(cursor, oids, types), _keys(cursor, oids)
        leaves = _leaves(cursor, [row.oid for row in tables if row.partitioned])
    described = (
        SourceTable(
            TableName(row.nspname, row.relname),
            columns=tuple(columns[row.oid]),
            key=tuple(keys[row.oid]),
            identity=_IDENTITIES[row.relreplident],
            partitioned=row.partitioned,
            leaves=tuple(leaves[row.oid]),
            oid=row.oid,
        )
        for row in tables
    )
    return {table.name: table for table in described}


def find_oids(connection: Connection, names: Iterable[TableName]) -> dict[TableName, int]:
    """Look up which tables have these names now; raise a SourceError."""
    wanted = list(names)
    parameters = {"schemas": [n.schema for n in wanted], "tables": [n.table for n in wanted]}
    with translated():
        rows = connection.execute(_TABLES, parameters).fetchall()
    return {TableName(schema, table): oid for oid, schema, table, *_ in rows}


class FoundTable(NamedTuple):
    """A table that has an oid now: its name, and its columns' names and types by number.

    The changes of one that is not `logged` are not streamed.
    """

    name: TableName
    logged: bool
    columns: dict[int, tuple[str, str]]


def find_tables(connection: Connection, oids: Iterable[int]) -> dict[int, FoundTable]:
    """Look up what these oids are now; raise a SourceError."""
    found: dict[int, FoundTable] = {}
    with translated():
        for oid, schema, table, logged, *column in connection.execute(_FOUND, [list(oids)]):
            known = found.setdefault(oid, FoundTable(TableName(schema, table), logged, {}))
            known.columns[column[0]] = (column[1], column[2])
    return found


def _resolve(cursor: Any, wanted: list[TableName]) -> list[TableName]:
    exact = [name for name in wanted if not name.is_pattern]
    patterns = [name for name in wanted if name.is_pattern]
    if not patterns:
        return exact
    existing = (TableName(*row) for row in cursor.execute(_NAMES).fetchall())
    return [*exact, *(name for name in existing if any(name.matches(p) for p in patterns))]


def _columns(cursor: Any, oids: list[int], types: Types) -> dict[int, list[SourceColumn]]:
    columns: dict[int, list[SourceColumn]] = defaultdict(list)
    for row in cursor.execute(_COLUMNS, [oids]).fetchall():
        columns[row.attrelid].append(
            SourceColumn(
                row.attname,
                row.atttypid,
                row.type_sql,
                decoded_as=types.decoded_as(row.atttypid),
                stored_as=types.stored_as(row.atttypid, row.type_sql),
                generated=row.generated,
                required=row.required,
                attnum=row.attnum,
                typmod=row.atttypmod,
                missing=row.missing,
                past_unknown=row.past_unknown,
            )
        )
    return columns


def _keys(cursor: Any, oids: list[int]) -> dict[int, list[str]]:
    keys: dict[int, list[str]] = defaultdict(list)
    for row in cursor.execute(_KEYS, [oids]).fetchall():
        keys[row.indrelid].append(row.attname)
    return keys


def _leaves(cursor: Any, oids: list[int]) -> dict[int, list[TableName]]:
    leaves: dict[int, list[TableName]] = defaultdict(list)
    for row in cursor.execute(_LEAVES, [oids]).fetchall():
        leaves[row.root].append(TableName(row.nspname, row.relname))
    return leaves

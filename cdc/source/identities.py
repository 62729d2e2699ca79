"""Replica identities that give no key, and the statement that gives them one."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from psycopg.rows import class_row

from cdc.finding import Finding
from cdc.names import TableName
from cdc.schema import SourceTable
from cdc.source.connection import Connection, spelled, translated

# What updates and deletes of a partition tell of the old row, its own identity decides.
_LEAVES: Final = """
select root.oid as root, c.oid, n.nspname as schema, c.relname as table, c.relreplident as identity
from unnest(%s::oid[]) as root(oid), pg_partition_tree(root.oid) t
join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace
where t.isleaf order by n.nspname, c.relname
"""

# Those that may be a replica identity: of columns that are NOT NULL, and sent.
_INDEXES: Final = """
select i.indrelid as table, x.relname as name, i.indisprimary as is_primary,
       i.indisreplident as is_identity, k.columns
from pg_index i join pg_class x on x.oid = i.indexrelid
cross join lateral (
    select array_agg(a.attname::text order by o.position) as columns,
           bool_and(a.attnotnull and a.attgenerated = '') as tells
    from unnest(i.indkey) with ordinality as o(attnum, position)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = o.attnum
    where o.position <= i.indnkeyatts) k
where i.indrelid = any(%s) and i.indisunique and i.indimmediate and i.indisvalid
  and i.indpred is null and i.indexprs is null and k.tells
order by not i.indisprimary, array_length(k.columns, 1), x.relname
"""
_WHY: Final = "updates and deletes do not tell which row they are of"
_APPEND: Final = "or append its rows without a key: insert_only = true in its mirror"


class _Leaf(NamedTuple):
    root: int
    oid: int
    schema: str
    table: str
    identity: str


class _Index(NamedTuple):
    table: int
    name: str
    is_primary: bool
    is_identity: bool
    columns: list[str]


def lacks(connection: Connection, tables: Collection[SourceTable]) -> Iterator[Finding]:
    """Say of which tables, and of which of their partitions, rows could not be told apart.

    Raise a SourceError.
    """
    roots = {table.oid: table for table in tables if table.partitioned and table.key}
    with translated():
        with connection.cursor(row_factory=class_row(_Leaf)) as cursor:
            leaves = cursor.execute(_LEAVES, [list(roots)]).fetchall()
        oids = [*(table.oid for table in tables), *(leaf.oid for leaf in leaves)]
        with connection.cursor(row_factory=class_row(_Index)) as cursor:
            found = cursor.execute(_INDEXES, [oids]).fetchall()
    indexes: dict[int, list[_Index]] = defaultdict(list)
    for index in found:
        indexes[index.table].append(index)
    for table in tables:
        if not table.key or table.generated_key is not None:
            yield _of_table(connection, table, indexes[table.oid])
    for leaf in leaves:
        key = set(roots[leaf.root].key)
        if not _tells(leaf.identity, indexes[leaf.oid], key):
            yield _of_leaf(connection, leaf, indexes[leaf.oid], key)


def _tells(identity: str, indexes: list[_Index], key: set[str]) -> bool:
    told = {"d": lambda index: index.is_primary, "i": lambda index: index.is_identity}
    if identity not in told:
        return identity == "f"
    return any(told[identity](index) and key <= set(index.columns) for index in indexes)


def _of_table(connection: Connection, table: SourceTable, indexes: list[_Index]) -> Finding:
    name = table.name
    what = f"{name} has no usable key (replica identity {table.identity})"
    if table.generated_key is not None:
        what = f'"{table.generated_key}", of the key of {name}, is generated, and not sent'
    if indexes:
        mend, then = _identity(connection, name, indexes[0]), ""
    else:
        taken = {column.name for column in table.columns}
        column = next(c for c in ("id", "row_id", f"{name.table}_row_id") if c not in taken)
        mend = spelled(
            connection,
            "alter table {} add column {} bigint generated always as identity primary key",
            name,
            (column,),
        )
        then = f"It rewrites the table. Or make columns it has the primary key; {_APPEND}"
    return Finding.by_sql("replica_identity", what, _WHY, mend, where="write", then=then)


def _of_leaf(connection: Connection, leaf: _Leaf, indexes: list[_Index], key: set[str]) -> Finding:
    name = TableName(leaf.schema, leaf.table)
    usable = [index for index in indexes if key <= set(index.columns)]
    full = spelled(connection, "alter table {} replica identity full", name)
    return Finding.by_sql(
        "partition_identity",
        f"partition {name} has a replica identity without the key ({', '.join(sorted(key))})",
        _WHY,
        _identity(connection, name, usable[0]) if usable else full,
        where="write",
    )


def _identity(connection: Connection, name: TableName, index: _Index) -> str:
    if index.is_primary:
        return spelled(connection, "alter table {} replica identity default", name)
    by_index = "alter table {} replica identity using index {}"
    return spelled(connection, by_index, name, (index.name,))

"""pgoutput's publications: only the tables asked for, never FOR ALL TABLES.

A table without a key that is published for updates makes the application's updates fail, so
insert-only tables have a publication of their own that publishes inserts and truncates alone.
"""

from collections.abc import Iterable
from typing import Final

from psycopg import sql

from cdc.errors import SourceNotReady
from cdc.names import TableName
from cdc.source.connection import Connection, translated

_OPTIONS: Final = """
select oid, pubviaroot,
       concat_ws(', ', case when pubinsert then 'insert' end, case when pubupdate then 'update' end,
                 case when pubdelete then 'delete' end, case when pubtruncate then 'truncate' end)
from pg_publication where pubname = %s
"""
# As JSON, for row filters, column lists and schemas came with 15.
_TABLES: Final = """
select n.nspname, c.relname,
       coalesce(to_jsonb(r)->>'prqual', to_jsonb(r)->>'prattrs') is not null as narrowed
from pg_publication_rel r
join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
where r.prpubid = %s
"""
_HAS_SCHEMAS: Final = "select to_regclass('pg_catalog.pg_publication_namespace') is not null"
_SCHEMAS: Final = "select 1 from pg_publication_namespace where pnpubid = %s"

Wanted = dict[str, tuple[list[TableName], str]]


def wanted(
    publication: str, *, keyed: Iterable[TableName], insert_only: Iterable[TableName]
) -> Wanted:
    """Name the publications needed, each with its tables and what it publishes."""
    both = {
        publication: (sorted(keyed), "insert, update, delete, truncate"),
        f"{publication}_insert": (sorted(insert_only), "insert, truncate"),
    }
    return {name: (tables, publish) for name, (tables, publish) in both.items() if tables}


def differences(connection: Connection, publications: Wanted) -> list[sql.Composed]:
    """Give the SQL that would make the publications list exactly the wanted tables."""
    statements = []
    for name, (tables, publish) in publications.items():
        statements += _difference(connection, name, tables, publish=publish)
    return statements


def _difference(
    connection: Connection, name: str, tables: list[TableName], *, publish: str
) -> list[sql.Composed]:
    options = sql.SQL("publish = {}, publish_via_partition_root = true").format(
        sql.Literal(publish)
    )
    with translated():
        found = connection.execute(_OPTIONS, [name]).fetchone()
        if found is None:
            create = sql.SQL("create publication {} for table {} with ({})")
            return [create.format(sql.Identifier(name), _listed(tables), options)]
        oid, via_root, published = found
        exact = _lists_exactly(connection, oid, tables)
    statements = []
    if not exact:
        set_tables = sql.SQL("alter publication {} set table {}")
        statements.append(set_tables.format(sql.Identifier(name), _listed(tables)))
    if not via_root or published != publish:
        set_options = sql.SQL("alter publication {} set ({})")
        statements.append(set_options.format(sql.Identifier(name), options))
    return statements


def _lists_exactly(connection: Connection, oid: int, tables: list[TableName]) -> bool:
    """Tell whether the publication has these tables whole, and nothing else."""
    rows = connection.execute(_TABLES, [oid]).fetchall()
    row = connection.execute(_HAS_SCHEMAS).fetchone()
    schemas = connection.execute(_SCHEMAS, [oid]).fetchone() if row and row[0] else None
    narrowed = any(narrowed for *_, narrowed in rows)
    listed = {TableName(schema, table) for schema, table, _ in rows}
    return listed == set(tables) and not narrowed and schemas is None


def _listed(tables: list[TableName]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*name) for name in tables)


def publish(connection: Connection, publications: Wanted) -> None:
    """Create or change the publications where needed; raise SourceNotReady where not allowed."""
    for statement in differences(connection, publications):
        try:
            with translated():
                connection.execute(statement)
        except SourceNotReady as error:
            raise SourceNotReady(
                f"the publication cannot be made: {error}",
                hint=f"as the tables' owner, run: {statement.as_string(connection)}",
            ) from None


def drop_publications(connection: Connection, publication: str) -> list[str]:
    """Drop both publications, where they exist; name them. Raise a SourceError."""
    names = [publication, f"{publication}_insert"]
    with translated():
        rows = connection.execute(
            "select pubname from pg_publication where pubname = any(%s)", [names]
        ).fetchall()
        for (name,) in rows:
            connection.execute(sql.SQL("drop publication {}").format(sql.Identifier(name)))
    return [name for (name,) in rows]

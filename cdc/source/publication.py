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

_PUBLISHED: Final = """
select n.nspname, c.relname
from pg_publication p
join pg_publication_rel r on r.prpubid = p.oid
join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
where p.pubname = %s
"""

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
    with translated():
        exists = connection.execute(
            "select 1 from pg_publication where pubname = %s", [name]
        ).fetchone()
        published = {TableName(*row) for row in connection.execute(_PUBLISHED, [name]).fetchall()}
    if not exists:
        statement = "create publication {} for table {} with (publish = {}, {} = true)"
        return [
            sql.SQL(statement).format(
                sql.Identifier(name),
                _listed(tables),
                sql.Literal(publish),
                sql.Identifier("publish_via_partition_root"),
            )
        ]
    if published == set(tables):
        return []
    return [
        sql.SQL("alter publication {} set table {}").format(sql.Identifier(name), _listed(tables))
    ]


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

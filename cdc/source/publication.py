"""pgoutput's publications: only the tables asked for, never FOR ALL TABLES.

A table without a key that is published for updates makes the application's updates fail, so
insert-only tables have a publication of their own that publishes inserts and truncates alone.
"""

import logging
from collections.abc import Iterable
from typing import Final, NamedTuple

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
_PARTITIONED: Final = """
select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'p'
  and (n.nspname, c.relname) in (select * from unnest(%s::text[], %s::text[]))
"""
# Whose publication it is, who owns the tables, and for a new one the database.
_MAY: Final = """
select coalesce((select bool_and(pg_has_role(pubowner, 'usage')) from pg_publication
                 where pubname = any(%(names)s)), true)
   and coalesce((select bool_and(pg_has_role(c.relowner, 'usage'))
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where (n.nspname, c.relname) in
                       (select * from unnest(%(schemas)s::text[], %(tables)s::text[]))), true)
   and (has_database_privilege(current_database(), 'create')
        or (select count(*) from pg_publication where pubname = any(%(names)s))
           = cardinality(%(names)s))
"""
_OTHER_SLOTS: Final = """
select 1 from pg_replication_slots
where plugin = 'pgoutput' and database = current_database() and slot_name <> %s
"""

log = logging.getLogger(__name__)

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


class Difference(NamedTuple):
    """SQL that a publication wants. `adds` tells that it takes nothing away from anybody."""

    statements: tuple[sql.Composed, ...]
    adds: bool

    def spelled(self, connection: Connection) -> list[str]:
        """Write the statements as SQL."""
        return [statement.as_string(connection) for statement in self.statements]


def differences(connection: Connection, publications: Wanted) -> list[Difference]:
    """Give the SQL that would make the publications bring all that is wanted of them.

    Other tables in them are left alone: another pipeline may share them.
    """
    found = []
    for name, (tables, publish) in publications.items():
        found += _differences(connection, name, tables, publish=publish)
    return found


def _differences(
    connection: Connection, name: str, tables: list[TableName], *, publish: str
) -> list[Difference]:
    quoted = sql.Identifier(name)
    options = sql.SQL("publish = {}, publish_via_partition_root = true").format(
        sql.Literal(publish)
    )
    with translated():
        found = connection.execute(_OPTIONS, [name]).fetchone()
        if found is None:
            create = sql.SQL("create publication {} for table {} with ({})")
            return [Difference((create.format(quoted, _listed(tables), options),), adds=True)]
        oid, via_root, published = found
        rows = connection.execute(_TABLES, [oid]).fetchall()
        wants_root = not via_root and _any_partitioned(connection, tables)
    whole = {TableName(schema, table) for schema, table, narrowed in rows if not narrowed}
    narrowed = {TableName(schema, table) for schema, table, narrowed in rows if narrowed}
    lacking = []
    if missing := [table for table in tables if table not in whole | narrowed]:
        add = sql.SQL("alter publication {} add table {}")
        lacking.append(Difference((add.format(quoted, _listed(missing)),), adds=True))
    if cut := [table for table in tables if table in narrowed]:
        forms = ("alter publication {} drop table {}", "alter publication {} add table {}")
        widen = tuple(sql.SQL(form).format(quoted, _listed(cut)) for form in forms)
        lacking.append(Difference(widen, adds=False))
    if wants_root or not set(publish.split(", ")) <= set(published.split(", ")):
        set_options = sql.SQL("alter publication {} set ({})")
        lacking.append(Difference((set_options.format(quoted, options),), adds=False))
    return lacking


def _any_partitioned(connection: Connection, tables: list[TableName]) -> bool:
    schemas, names = [t.schema for t in tables], [t.table for t in tables]
    return bool(connection.execute(_PARTITIONED, [schemas, names]).fetchall())


def _listed(tables: list[TableName]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*name) for name in tables)


def may_publish(connection: Connection, publications: Wanted) -> bool:
    """Tell whether the role may make the publications, and extend them; raise a SourceError."""
    tables = [table for listed, _ in publications.values() for table in listed]
    parameters = {
        "names": list(publications),
        "schemas": [table.schema for table in tables],
        "tables": [table.table for table in tables],
    }
    with translated():
        row = connection.execute(_MAY, parameters).fetchone()
    return bool(row and row[0])


def publish(connection: Connection, publications: Wanted, *, slot_exists: bool) -> None:
    """Create or extend the publications where needed; a slot that exists has changes without them.

    Raise SourceNotReady where that is not allowed, or where one leaves out what is wanted: it is
    somebody's own, and not changed.
    """
    for difference in differences(connection, publications):
        written = "; ".join(difference.spelled(connection))
        if not difference.adds:
            raise SourceNotReady(
                "a publication leaves out changes, rows or columns that are wanted",
                hint=f"choose another source.publication; or, as its owner: {written}",
            )
        try:
            with translated():
                for statement in difference.statements:
                    connection.execute(statement)
            if slot_exists:
                log.warning(
                    "changed a publication: earlier changes are not in it", extra={"sql": written}
                )
            else:
                log.info("prepared publication", extra={"sql": written})
        except SourceNotReady as error:
            raise SourceNotReady(
                f"the publication cannot be made: {error}",
                hint=f"as the tables' owner, run: {written}",
            ) from None


def shared(connection: Connection, slot: str) -> bool:
    """Tell whether another slot of this database decodes with pgoutput."""
    with translated():
        return bool(connection.execute(_OTHER_SLOTS, [slot]).fetchall())


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

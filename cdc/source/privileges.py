"""What the role may not do in the write database that copying rows takes."""

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from psycopg.rows import class_row

from cdc.finding import Finding
from cdc.schema import SourceTable
from cdc.source.connection import Connection, spelled, translated

# Of a partitioned table, rights and policies of the partitions do not matter: rows are read by way
# of the table itself.
_TABLES: Final = """
select c.oid, current_user as role, n.nspname as schema,
       has_schema_privilege(n.oid, 'usage') as may_use,
       has_table_privilege(c.oid, 'select') as may_read,
       row_security_active(c.oid) as hidden
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = any(%s) and c.relkind in ('r', 'p')
"""
# Since 17 it has a fourth argument.
_MESSAGE: Final = """
select oid::regprocedure::text, current_user
from pg_proc
where proname = 'pg_logical_emit_message' and pronamespace = 'pg_catalog'::regnamespace
  and proargtypes[2] = 'text'::regtype and not has_function_privilege(oid, 'execute')
"""


class _Rights(NamedTuple):
    oid: int
    role: str
    schema: str
    may_use: bool
    may_read: bool
    hidden: bool


def lacks(connection: Connection, tables: Collection[SourceTable]) -> list[Finding]:
    """Say what would keep the daemon from copying the tables' rows; raise a SourceError."""
    by_oid = {table.oid: table for table in tables}
    with translated(), connection.cursor(row_factory=class_row(_Rights)) as cursor:
        rights = cursor.execute(_TABLES, [list(by_oid)]).fetchall()
    found = [lack for has in rights for lack in _of_table(connection, by_oid[has.oid], has)]
    marks = "its messages mark in the stream where copied rows belong"
    return [*found, *messages_lack(connection, why=marks)]


def messages_lack(connection: Connection, *, why: str, blocks: bool = True) -> list[Finding]:
    """Say what keeps the role from writing messages into the WAL; raise a SourceError."""
    with translated():
        may_not_emit = connection.execute(_MESSAGE).fetchall()
    return [_message(connection, *row, why=why, blocks=blocks) for row in may_not_emit]


def _of_table(connection: Connection, table: SourceTable, has: _Rights) -> Iterator[Finding]:
    copied = "the rows that exist are copied from it"
    if not has.may_use:
        yield Finding.by_sql(
            "schema_usage",
            f"{has.role} may not use schema {has.schema}, where {table.name} is",
            copied,
            spelled(connection, "grant usage on schema {} to {}", (has.schema,), (has.role,)),
            where="write",
        )
    if not has.may_read:
        yield Finding.by_sql(
            "table_select",
            f"{has.role} may not read {table.name}",
            copied,
            spelled(connection, "grant select on table {} to {}", table.name, (has.role,)),
            where="write",
        )
    if has.hidden:
        yield Finding.by_sql(
            "row_security",
            f"row-level security hides rows of {table.name} from {has.role}",
            "only a part of the rows that exist could be copied",
            spelled(connection, "alter role {} bypassrls", (has.role,)),
            where="write",
        )


def _message(
    connection: Connection, function: str, role: str, *, why: str, blocks: bool
) -> Finding:
    return Finding.by_sql(
        "emit_message",
        f"{role} may not call {function}",
        why,
        spelled(connection, f"grant execute on function {function} to {{}}", (role,)),
        where="write",
        blocks=blocks,
    )

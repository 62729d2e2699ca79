"""What the daemon may not do in the read database."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from cdc.finding import Finding
from cdc.sink.postgres import quoted

_POSTGRES_MAY: Final = sa.text("""
select has_schema_privilege(current_schema(), 'create') as may_create,
       has_database_privilege(current_database(), 'temporary') as may_stage,
       current_schema() as schema, current_user as role, current_database() as database
""")
# Of a table that is not on the search path, its schema may be at fault.
_POSTGRES_MAY_WRITE: Final = sa.text("""
select n.nspname as schema, c.relname as name, has_schema_privilege(n.oid, 'usage') as may_use,
       array(select p from unnest(array['select', 'insert', 'update', 'delete', 'truncate']) p
             where not has_table_privilege(c.oid, p)) as lacking
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass(:name)
""")
_MYSQL_MAY: Final = sa.text("select current_user() as role, database() as name")

Tables = Sequence[sa.Table]


def lacks(connection: sa.Connection, absent: Tables, present: Tables) -> list[Finding]:
    """Say what would keep the daemon from making absent tables, and from writing those present."""
    return list(_LACKS[connection.dialect.name](connection, absent, present))


def may_stage(found: Sequence[Finding]) -> bool:
    """Tell whether temporary tables may be made, by which read tables are looked at, too."""
    return not any(
        finding.name == "read_temporary"
        or (finding.name == "read_write" and "temporary" in finding.what)
        for finding in found
    )


def _postgres(connection: sa.Connection, absent: Tables, present: Tables) -> Iterator[Finding]:
    may = connection.execute(_POSTGRES_MAY).one()
    role, database = quoted(may.role), quoted(may.database)
    if may.schema is None:
        yield Finding.by_sql(
            "read_schema",
            f"no schema of {may.role}'s search path exists",
            "read tables are made in the first one",
            f"create schema if not exists {role} authorization {role}",
            f"alter role {role} in database {database} set search_path = {role}, public",
            where="read",
        )
    elif absent and not may.may_create:
        names = ", ".join(table.fullname for table in absent)
        yield Finding.by_sql(
            "read_create",
            f"read tables are missing, and {may.role} may not create them: {names}",
            "rows need a place",
            f"grant create on schema {quoted(may.schema)} to {role}",
            where="read",
            then="Or create them by hand",
        )
    if not may.may_stage:
        yield Finding.by_sql(
            "read_temporary",
            f"{may.role} may not create temporary tables",
            "batches are staged in one",
            f"grant temporary on database {database} to {role}",
            where="read",
        )
    for table in present:
        yield from _postgres_table(connection, table, role)


def _postgres_table(connection: sa.Connection, table: sa.Table, role: str) -> Iterator[Finding]:
    name = ".".join(quoted(part) for part in (table.schema, table.name) if part)
    found = connection.execute(_POSTGRES_MAY_WRITE, {"name": name}).one_or_none()
    if found is None or (found.may_use and not found.lacking):
        return
    schema = quoted(found.schema)
    rights, whole = ", ".join(found.lacking), f"{schema}.{quoted(found.name)}"
    grants = [f"grant usage on schema {schema} to {role}"] if not found.may_use else []
    grants += [f"grant {rights} on table {whole} to {role}"] if rights else []
    yield Finding.by_sql(
        "read_write",
        f"{role} may not use read table {table.fullname}: {rights or 'its schema'}",
        "rows are written to it, and compared by `cdc verify`",
        *grants,
        where="read",
    )


def _mysql(connection: sa.Connection, absent: Tables, _present: Tables) -> Iterator[Finding]:
    may = connection.execute(_MYSQL_MAY).one()
    wanted = ["CREATE TEMPORARY TABLES", "DELETE", "INSERT", "SELECT", "UPDATE"]
    wanted += ["CREATE", "INDEX", "REFERENCES"] if absent else []
    granted = _granted(connection, str(may.name))
    missing = ", ".join(name for name in wanted if name not in granted).lower()
    if missing and "ALL PRIVILEGES" not in granted:
        database = "`{}`".format(str(may.name).replace("`", "``"))
        yield Finding.by_sql(
            "read_write",
            f"{may.role} lacks on database {may.name}: {missing}",
            "read tables are made, written and staged there",
            f"grant {missing} on {database}.* to {_account(may.role)}",
            where="read",
        )


def _account(role: str) -> str:
    """Quote an account, which is told as `name@host`."""
    name, _, host = role.rpartition("@")
    return "'{}'@'{}'".format(name.replace("'", "''"), host.replace("'", "''"))


def _granted(connection: sa.Connection, database: str) -> set[str]:
    """Read the grants that hold in a database, those of active roles too."""
    granted: set[str] = set()
    role = connection.exec_driver_sql("select current_role()").scalar()
    active = role and role != "NONE" and connection.dialect.__dict__.get("is_mariadb")
    shown = ["show grants", f"show grants for `{role}`"] if active else ["show grants"]
    for statement in shown:
        for (text,) in connection.exec_driver_sql(statement):
            names, _, rest = str(text).removeprefix("GRANT ").partition(" ON ")
            if _covers(rest, database):
                granted |= {name.strip().upper() for name in names.split(",")}
    return granted


def _covers(rest: str, database: str) -> bool:
    """Tell whether a grant's `*.*` or `name.*` (a pattern, like LIKE's) covers the database."""
    scope = rest.partition(".*")[0].strip("`")
    escaped = scope.replace("\\_", "_").replace("\\%", "%")
    return scope == "*" or escaped == database or scope.endswith("%")


def _sqlite(connection: sa.Connection, _absent: Tables, _present: Tables) -> Iterator[Finding]:
    file = Path(str(connection.engine.url.database))
    folder = file.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "read_folder",
            f"the folder {folder} is missing, or may not be written to",
            "SQLite keeps its log, and the daemon its lock, beside the database",
            "make it, or correct read.url",
        )
    elif file.exists() and not os.access(file, os.W_OK):
        yield Finding(
            "read_folder",
            f"{file} may not be written to",
            "rows go there",
            f"chmod u+w {shlex.quote(str(file))}",
        )


_LACKS: Final[dict[str, Callable[[sa.Connection, Tables, Tables], Iterator[Finding]]]] = {
    "postgresql": _postgres,
    "mysql": _mysql,
    "sqlite": _sqlite,
}

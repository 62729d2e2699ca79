"""What the daemon may not do in the read database, or could not rely on."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import sqlalchemy as sa

from cdc.sink.mysql import undurable

_POSTGRES_MAY: Final = sa.text("""
select has_schema_privilege(current_schema(), 'create') as may_create,
       has_database_privilege(current_database(), 'temporary') as may_stage,
       current_schema() as schema, current_user as role, current_database() as database
""")
_MYSQL_MAY: Final = sa.text("""
select current_user() as role, database() as name,
       @@log_bin and @@binlog_format = 'STATEMENT' as by_statement
""")
_DURABLE: Final = (
    "set global innodb_flush_log_at_trx_commit = 1; set global sync_binlog = 1; and the same in "
    "the server's configuration"
)


class Lack(NamedTuple):
    """What is missing, why it matters, what mends it; `stages`: temporary tables are refused."""

    what: str
    why: str
    remedy: str
    stages: bool = False


def lacks(connection: sa.Connection, absent: Sequence[sa.Table]) -> list[Lack]:
    """Say what would keep the daemon from making the absent tables and from writing."""
    return list(_LACKS[connection.dialect.name](connection, absent))


def _postgres(connection: sa.Connection, absent: Sequence[sa.Table]) -> Iterator[Lack]:
    may = connection.execute(_POSTGRES_MAY).one()
    if absent and not may.may_create:
        names = ", ".join(table.fullname for table in absent)
        yield Lack(
            f"read tables are missing, and {may.role} may not create them: {names}",
            "rows need a place",
            f"grant create on schema {may.schema} to {may.role}; or create them by hand",
        )
    if not may.may_stage:
        yield Lack(
            f"{may.role} may not create temporary tables",
            "batches are staged in one",
            f"grant temporary on database {may.database} to {may.role};",
            stages=True,
        )


def _mysql(connection: sa.Connection, absent: Sequence[sa.Table]) -> Iterator[Lack]:
    may = connection.execute(_MYSQL_MAY).one()
    wanted = ["CREATE TEMPORARY TABLES", "DELETE", "INSERT", "SELECT", "UPDATE"]
    wanted += ["CREATE", "INDEX", "REFERENCES"] if absent else []
    granted = _granted(connection, str(may.name))
    missing = [name for name in wanted if name not in granted]
    if missing and "ALL PRIVILEGES" not in granted:
        yield Lack(
            f"{may.role} lacks on database {may.name}: {', '.join(missing).lower()}",
            "read tables are made, written and staged there",
            f"grant {', '.join(missing).lower()} on `{may.name}`.* to {_quoted(may.role)};",
            stages="CREATE TEMPORARY TABLES" in missing,
        )
    problem = undurable(connection)
    if problem:
        yield Lack(
            f"the read database may lose what it has committed: {problem}",
            "the write database forgets what is acknowledged, and that must not be lost",
            _DURABLE,
        )
    if may.by_statement:
        yield Lack(
            "binlog_format is STATEMENT",
            "the daemon's transactions are READ COMMITTED, which that log cannot hold",
            "set global binlog_format = 'ROW'; and the same in the server's configuration",
        )


def _quoted(role: str) -> str:
    """Quote an account, which is told as `name@host`."""
    name, _, host = role.rpartition("@")
    return f"'{name}'@'{host}'"


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


def _sqlite(connection: sa.Connection, _absent: Sequence[sa.Table]) -> Iterator[Lack]:
    file = Path(str(connection.engine.url.database))
    folder = file.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Lack(
            f"the folder {folder} is missing, or may not be written to",
            "SQLite keeps its log, and the daemon its lock, beside the database",
            "make it, or correct read.url",
        )
    elif file.exists() and not os.access(file, os.W_OK):
        yield Lack(f"{file} may not be written to", "rows go there", f"chmod u+w {file}")


_LACKS: Final[dict[str, Callable[[sa.Connection, Sequence[sa.Table]], Iterator[Lack]]]] = {
    "postgresql": _postgres,
    "mysql": _mysql,
    "sqlite": _sqlite,
}

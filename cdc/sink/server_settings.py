"""The read database's server: how it is set, and what of that the daemon cannot do with."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Final

import sqlalchemy as sa

from cdc.finding import Finding
from cdc.sink.mysql import undurable
from cdc.sink.postgres import quoted
from cdc.sink.postgres_session import SESSION

Version = tuple[int, ...]

# By what is used of them: a session's settings, a collation without padding, the tables' columns.
OLDEST: Final[dict[str, Version]] = {
    "PostgreSQL": (14,),
    "MySQL": (8, 0, 17),
    "MariaDB": (10, 2, 2),
    "SQLite": (3, 26),
}
_POSTGRES: Final = sa.text("""
select current_setting('server_version_num')::int / 10000 as version, current_user as role,
       current_database() as database, pg_is_in_recovery() as standby,
       current_setting('default_transaction_read_only') as read_only,
       current_setting('server_encoding') as encoding, current_setting('fsync') as fsync,
       current_setting('synchronous_commit') as waits,
       current_setting('synchronous_standby_names') as standbys
""")
_PINNED: Final = sa.text(
    "select lower(name), setting from pg_settings where lower(name) = any(:names)"
)
_MYSQL: Final = """
select version() as version, @@read_only as read_only, @@max_allowed_packet as packet,
       @@log_bin and @@binlog_format = 'STATEMENT' as by_statement
"""
_PACKET: Final = 16 * 1024**2
_BOTH: Final = "And the same in the server's configuration, or a restart takes it back"
_WAITS: Final = frozenset({"on", "remote_apply", "remote_write"})


def lacks(connection: sa.Connection) -> list[Finding]:
    """Say what the server is not, or is not set to; raise a ReadError's driver error."""
    return list(_LACKS[connection.dialect.name](connection))


def too_old(product: str, version: Version) -> Iterator[Finding]:
    """Say that a version is older than what is supported."""
    oldest = OLDEST[product]
    if version < oldest:
        given, wanted = (".".join(map(str, parts)) for parts in (version, oldest))
        yield Finding(
            "read_version",
            f"the read database is {product} {given}",
            f"{wanted} is the oldest supported",
            "upgrade the server",
            where="read",
        )


def _postgres(connection: sa.Connection) -> Iterator[Finding]:
    found = connection.execute(_POSTGRES).one()
    role, database = quoted(found.role), quoted(found.database)
    yield from too_old("PostgreSQL", (found.version,))
    if found.standby:
        yield Finding(
            "read_standby",
            "the read database is a standby",
            "it takes no writes until it is promoted",
            "let read.url name the primary",
        )
    elif found.read_only == "on":
        yield Finding.by_sql(
            "read_standby",
            f"default_transaction_read_only is on for {found.role}",
            "the daemon's transactions could not write",
            f"alter role {role} in database {database} set default_transaction_read_only = off",
            where="read",
        )
    if found.encoding != "UTF8":
        other = quoted(f"{found.database}_utf8")
        yield Finding.by_sql(
            "read_encoding",
            f"the read database's encoding is {found.encoding}",
            "a text with a character that it lacks is refused, and its row set aside",
            f"create database {other} encoding 'UTF8' locale 'C' template template0",
            where="read",
            then="Then let read.url name that",
            blocks=False,
        )
    if found.fsync == "off":
        yield Finding.by_sql(
            "read_durability",
            "fsync is off in the read database",
            "after a crash of its host it may lack what was acknowledged, or be unreadable",
            "alter system set fsync = on",
            "select pg_reload_conf()",
            where="read",
            blocks=False,
        )
    if found.standbys and found.waits not in _WAITS:
        yield Finding.by_sql(
            "read_synchronous_commit",
            f"synchronous_commit is {found.waits}, and synchronous_standby_names is set",
            "what is acknowledged may not be on the standby yet, and is gone after a failover",
            f"alter role {role} in database {database} set synchronous_commit = on",
            where="read",
            blocks=False,
        )
    yield from _not_arrived(connection)


def _not_arrived(connection: sa.Connection) -> Iterator[Finding]:
    """See whether what a session asks for at its start holds."""
    asked = ("datestyle", "enable_seqscan", "intervalstyle", "jit", "timezone")
    rows = connection.execute(_PINNED, {"names": list(asked)})
    found = {row[0]: row[1] for row in rows}
    lost = [name for name in asked if not found[name].startswith(SESSION[name])]
    if lost:
        yield Finding(
            "read_settings",
            f"settings of the sessions do not arrive: {', '.join(lost)}",
            "a connection pooler drops them: values would be read otherwise than they were meant",
            "let read.url name the server itself",
        )


def _mysql(connection: sa.Connection) -> Iterator[Finding]:
    found = connection.exec_driver_sql(_MYSQL).one()
    product = "MariaDB" if "mariadb" in found.version.lower() else "MySQL"
    yield from too_old(product, tuple(map(int, re.findall(r"\d+", found.version)[:3])))
    if found.read_only:
        yield Finding.by_sql(
            "read_standby",
            "the read database is read_only",
            "it takes no writes: it may be a replica",
            "set global read_only = 0",
            where="read",
            then="Or let read.url name the primary",
        )
    problem = undurable(connection)
    if problem:
        yield Finding.by_sql(
            "read_durability",
            f"the read database may lose what it has committed: {problem}",
            "the write database forgets what is acknowledged, and that must not be lost",
            "set global innodb_flush_log_at_trx_commit = 1",
            "set global sync_binlog = 1",
            where="read",
            then=_BOTH,
        )
    if found.by_statement:
        yield Finding.by_sql(
            "read_binlog_format",
            "binlog_format is STATEMENT",
            "the daemon's transactions are READ COMMITTED, which that log cannot hold",
            "set global binlog_format = 'ROW'",
            where="read",
            then=_BOTH,
        )
    if found.packet < _PACKET:
        yield Finding.by_sql(
            "read_packet",
            f"max_allowed_packet is {found.packet} bytes",
            "a row that is larger is refused, and set aside",
            f"set global max_allowed_packet = {4 * _PACKET}",
            where="read",
            then=_BOTH,
            blocks=False,
        )


def _sqlite(_connection: sa.Connection) -> Iterator[Finding]:
    yield from too_old("SQLite", sqlite3.sqlite_version_info)


_LACKS: Final[dict[str, Callable[[sa.Connection], Iterator[Finding]]]] = {
    "postgresql": _postgres,
    "mysql": _mysql,
    "sqlite": _sqlite,
}

"""Connections to the write database, and what its errors mean."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.errors import (
    CdcError,
    SlotActive,
    SourceError,
    SourceNotReady,
    SourceRefused,
    SourceUnavailable,
)
from cdc.sqlstate import one_line, passes_by_itself, refusal_hint

# What the plugins print depends on these: pinned, they make one text form per value.
SESSION: Final = {
    "bytea_output": "hex",
    "datestyle": "ISO",
    "extra_float_digits": "3",
    "idle_in_transaction_session_timeout": "0",  # a table is read whole at the read database's pace
    "idle_session_timeout": "0",
    "intervalstyle": "postgres",
    "lc_monetary": "C",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "timezone": "UTC",
}
# What is printed names objects (regclass, ...) with their schema.
_PRINTING: Final = {**SESSION, "search_path": "pg_catalog"}
_HAS_TRANSACTION_TIMEOUT: Final = 170_000  # an older server refuses to be told of it
_CONNECT_SECONDS: Final = 10
# A dead peer is noticed within half a minute.
_KEEPALIVES: Final = {
    "keepalives_count": 3,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "tcp_user_timeout": 30_000,
}

Connection = psycopg.Connection[Any]


def connect(dsn: str, **parameters: str) -> Connection:
    """Open an ordinary connection in autocommit mode; raise a SourceError."""
    return _connected(_conninfo(dsn, SESSION, **parameters))


def connect_replication(dsn: str) -> Connection:
    """Open a connection to a walsender of the DSN's database; raise a SourceError."""
    return _connected(_conninfo(dsn, _PRINTING, replication="database"))


def _connected(conninfo: str) -> Connection:
    with translated():
        connection = psycopg.connect(conninfo, autocommit=True)
        if connection.info.server_version >= _HAS_TRANSACTION_TIMEOUT:
            connection.execute("set transaction_timeout = 0")  # as the other timeouts
        return connection


def _conninfo(dsn: str, session: Mapping[str, str], **parameters: str) -> str:
    given = conninfo_to_dict(dsn)
    given.pop("replication", None)  # which of our connections stream is not the DSN's to say
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    defaults: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": "cdc",
        **_KEEPALIVES,
    }
    merged = {**defaults, **given, "client_encoding": "UTF8", **parameters}
    merged["options"] = f"{given.get('options', '')} {options}".strip()
    return make_conninfo("", **merged)


def spelled(connection: Connection, statement: LiteralString, *names: tuple[str, ...]) -> str:
    """Write a statement with names in its places, quoted; one of a table has two parts."""
    quoted = (sql.Identifier(*name) for name in names)
    return sql.SQL(statement).format(*quoted).as_string(connection)


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into ours, by SQLSTATE."""
    try:
        yield
    except psycopg.Error as error:
        raise source_error(error) from None


def source_error(error: psycopg.Error) -> CdcError:
    """Say what an error of the write database means."""
    message = f"write database: {one_line(error)}"
    state = error.sqlstate
    if state is None:
        hint = refusal_hint(error, "source.dsn")
        if hint is None:
            return SourceUnavailable(message, hint="start it, or correct source.dsn")
        return SourceRefused(message, hint=hint)
    if state in _BY_SQLSTATE:
        kind, hint = _BY_SQLSTATE[state]
        return kind(f"{message} ({state})", hint=hint)
    if passes_by_itself(state):
        return SourceUnavailable(f"{message} ({state})")
    return SourceError(f"{message} ({state})")


_ALLOW: Final = (
    "for a plugin that may not be used: alter system set output_plugin_libraries = pgoutput, "
    "test_decoding, wal2json; select pg_reload_conf(); else grant what the message names"
)
_INSTALL: Final = (
    "install wal2json on the write database's server (Debian: postgresql-NN-wal2json), or set "
    'plugin = "pgoutput"'
)
_BY_SQLSTATE: Final[dict[str, tuple[type[SourceError], str | None]]] = {
    "28000": (SourceRefused, "correct source.dsn or pg_hba.conf"),
    "28P01": (SourceRefused, "correct the password in source.dsn"),
    "55006": (SlotActive, None),
    "42501": (SourceNotReady, _ALLOW),
    "58P01": (SourceNotReady, _INSTALL),
    "53400": (
        SourceNotReady,
        "no slot is free: drop one that is not used, or raise max_replication_slots (restart)",
    ),
    "55000": (SourceNotReady, "run `cdc check`: it names the setting and the SQL that mends it"),
    "42704": (SourceNotReady, "run `cdc check`, then `cdc setup`"),
}

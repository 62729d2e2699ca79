"""What Postgres's errors mean, whichever database they come from."""

import re
from typing import Final

import psycopg

# Connection lost, out of resources, shut down or cancelled, deadlock or serialization failure,
# read-only after a failover, lock not available: trying again may do.
_PASSING_CLASSES: Final = ("08", "40", "53", "57")
_PASSING: Final = ("25006", "55P03")

# What a whole batch may violate though its transactions, one after the other, do not: uniqueness
# and foreign keys (23), a row touched twice by one statement (21000), a truncate of a referenced
# table (0A000). Values that the type refuses (22, 42804, 42883) or that are too large for an index
# (54000), and what a trigger or a view refuses (09, 27, 38, 39, 44, P0), are looked for the same
# way, to name their key.
_ROW_CLASSES: Final = ("09", "21", "22", "23", "27", "38", "39", "44", "P0")
_ROW_STATES: Final = ("0A000", "42804", "42883", "54000")

# Postgres's own classes (appendix "PostgreSQL Error Codes"); any other is a trigger's choice.
_OWN_CLASSES: Final = frozenset(
    {
        *("00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21"),
        *("22", "23", "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D"),
        *("3F", "40", "42", "44", "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX"),
    }
)

# libpq gives no SQLSTATE for a refused connection (docs/architecture.md), so here, and here
# alone, a message's text decides. A text not listed, or in another language, is retried.
_REFUSALS: Final = (
    (r"password authentication failed", "correct the password in {where} or PGPASSWORD"),
    (r"no password supplied", "put the password into {where}, PGPASSWORD or a password file"),
    (r"no pg_hba\.conf entry", "add a line for this user, database and address to pg_hba.conf"),
    (r'role ".*" does not exist', "create the role, or correct the user in {where}"),
    (r'role ".*" is not permitted to log in', "alter role ... login"),
    (r'database ".*" does not exist', "create the database, or correct its name in {where}"),
    (r"must be superuser or replication role", "alter role ... replication"),
    (r"permission denied to start WAL sender", "alter role ... replication"),
    (r"certificate verify failed", "let sslrootcert in {where} name the server's CA"),
    (r"certificate for .* does not match host name", "correct the host in {where}"),
    (r"root certificate file .* does not exist", "correct sslrootcert in {where}"),
    (r"could not read root certificate file", "correct sslrootcert in {where}"),
    (r"server does not support SSL", "let the server use TLS: ssl = on"),
    (r"permission denied for database", "grant connect on database ... to the role"),
    (r"unrecognized configuration parameter", "correct `options` in {where}"),
    (r'invalid \S+ value: "', "correct the parameter in {where} that the message names"),
    (r"invalid port number: ", "correct the port in {where}"),
    (r"invalid integer value .* for connection option", "correct it in {where}"),
    (r"bad value for connect_timeout", "give connect_timeout in {where} in whole seconds"),
    (r"could not match \d+ (port numbers|host names)", "give as many ports as hosts in {where}"),
    (r'definition of service ".*" not found', "correct `service` in {where}, or PGSERVICEFILE"),
    (r'service file ".*" not found', "correct PGSERVICEFILE, or leave `service` out of {where}"),
)


def passes_by_itself(sqlstate: str) -> bool:
    """Tell whether trying again, unchanged, may succeed."""
    return sqlstate[:2] in _PASSING_CLASSES or sqlstate in _PASSING


def blames_rows(sqlstate: str) -> bool:
    """Tell whether the rows being written caused the error, rather than the statement."""
    kind = sqlstate[:2]
    return kind in _ROW_CLASSES or sqlstate in _ROW_STATES or kind not in _OWN_CLASSES


def refusal_hint(error: psycopg.Error, where: str) -> str | None:
    """Give the remedy where a connection was refused for good; None where it may pass.

    `where` is the setting that holds the connection string.
    """
    text = one_line(error)
    for pattern, hint in _REFUSALS:
        if re.search(pattern, text):
            return hint.format(where=where)
    return None


def one_line(error: psycopg.Error) -> str:
    """Give the message without line breaks, and without what follows the first attempt.

    libpq reports every address it tried; the last one decides.
    """
    primary = error.diag.message_primary if error.sqlstate else None
    return " ".join((primary or str(error)).split())

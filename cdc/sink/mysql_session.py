"""Sessions of a MySQL or MariaDB read database, and what its errors mean.

The driver, PyMySQL, is an extra: it is imported by SQLAlchemy alone, and its errors are told by the
number they bring (MySQL's server and client error references).
"""

import re
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from cdc.errors import CdcError, ReadError, ReadRefused, ReadUnavailable
from cdc.lookout import Line, Server, keepalives, line_of, silence
from cdc.sink.mysql_ddl import ExactTables, ExactTypes
from cdc.sink.refused import UNREACHABLE, RowsRefused

_CONNECT_SECONDS: Final = 10
_KEEPALIVES: Final = {
    socket.TCP_KEEPIDLE: "keepalives_idle",
    socket.TCP_KEEPINTVL: "keepalives_interval",
    socket.TCP_KEEPCNT: "keepalives_count",
    socket.TCP_USER_TIMEOUT: "tcp_user_timeout",
}
# A session that waits for its client sleeps, or is in the midst of writing to it.
_AT_WORK: Final = """
select id from information_schema.processlist
where command <> 'Sleep' and coalesce(state, '') <> 'Writing to net'
"""
_A_YEAR: Final = 31_536_000

# Strict: what does not fit is refused. A key of 0 must not be taken for "the next number".
# READ COMMITTED: each statement sees what is there now, and locks no gaps between keys.
# What a server's own settings may cut short would be tried again for ever: a long statement, a
# transaction whose next piece is awaited. The last of them are MariaDB's, to MySQL a comment.
_SESSION: Final = (
    "set session sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO,"
    "ERROR_FOR_DIVISION_BY_ZERO', "
    "time_zone = '+00:00', foreign_key_checks = 1, unique_checks = 1, "
    "completion_type = 0, sql_safe_updates = 0, sql_select_limit = 18446744073709551615, "
    f"autocommit = 0, wait_timeout = {_A_YEAR} "
    "/*M!100300 , max_statement_time = 0, idle_transaction_timeout = 0, "
    "idle_write_transaction_timeout = 0 */"
)

# Connection lost or never made, server starting or stopping, out of memory, disk or connections,
# lock wait, deadlock, interrupted, read-only after a failover, a cluster without quorum.
_PASSING: Final = frozenset(
    {
        *(1021, 1037, 1038, 1040, 1041, 1042, 1043, 1047, 1053, 1077, 1078, 1079, 1080, 1114),
        *(1135, 1152, 1154, 1155, 1156, 1157, 1158, 1159, 1160, 1161, 1180, 1184, 1203, 1205),
        *(1213, 1226, 1290, 1317, 1836, 1927, 1969, 2002, 2003, 2005, 2006, 2013, 2055, 3024),
        *(3572, 4031),
    }
)
_UNREACHED: Final = frozenset({2002, 2003, 2005, 2006, 2013})
_REFUSED: Final = {
    1044: "grant the user in read.url its database",
    1045: "correct the user or the password in read.url",
    1049: "create the database, or correct its name in read.url",
    1129: "mariadb-admin flush-hosts",
    1130: "create the user for this host",
    1251: "choose an authentication plugin that the driver knows",
    1698: "give the user in read.url a password",
    2061: "choose an authentication plugin that the driver knows",
    3118: "alter user ... account unlock",
}
# Uniqueness, foreign keys, NOT NULL, checks; values that the type refuses; a row too large.
_BLAMES_ROWS: Final = frozenset(
    {
        *(1022, 1048, 1062, 1153, 1169, 1216, 1217, 1264, 1265, 1292, 1300, 1364, 1366, 1367),
        *(1406, 1411, 1416, 1441, 1451, 1452, 1525, 1557, 1586, 1644, 1690, 1761, 1762, 3140),
        *(3156, 3819, 3903, 4025),
    }
)
_HINTS: Final = {
    1142: "grant the user in read.url what the message names",
    1146: "the read table was dropped while we ran: `cdc setup` makes it again, empty",
    1227: "grant the user in read.url what the message names",
    1665: "set binlog_format to ROW or MIXED on the read database",
}
_UNVERIFIED: Final = "CERTIFICATE_VERIFY_FAILED"
_VERIFY: Final = "let ssl_ca in read.url name the server's CA, and the host be the certificate's"
NOT_UNIQUE: Final = frozenset({1022, 1062, 1169, 1586})

# Of the messages that blame rows only names are told. Each pattern is held to the end of the
# message, or to a message without values: what stands elsewhere may be a value of the row.
_NAMES: Final = (
    (re.compile(r"for key '([^']+)'$"), "key {}"),
    (re.compile(r"^Column '([^']+)' cannot be null$"), "column {} is null"),
    (re.compile(r"^Data too long for column '([^']+)' at row \d+$"), "column {} is too short"),
    (re.compile(r"^Out of range value for column '([^']+)' at row \d+$"), "column {}"),
    (re.compile(r"for column (?:`[^`]*`\.)*`([^`]+)` at row \d+$"), "column {}"),
    (re.compile(r"foreign key constraint fails \(.*CONSTRAINT `([^`]+)` "), "constraint {}"),
    (re.compile(r"^CONSTRAINT [`']?([^`' ]+)[`']? failed for "), "constraint {}"),
    (re.compile(r"^Check constraint '([^']+)' is violated\.$"), "constraint {}"),
    (re.compile(r"^Field '([^']+)' doesn't have a default value$"), "column {} has no default"),
)


def create_engine(url: sa.URL, *, silence_seconds: int) -> sa.Engine:
    """Make the engine; connections are ours alone, never pooled."""
    parsed = url.set(drivername="mysql+pymysql").update_query_dict({"charset": "utf8mb4"})
    engine = sa.create_engine(
        parsed,
        poolclass=sa.pool.NullPool,
        pool_reset_on_return=None,  # closing rolls back, and a dead connection cannot
        hide_parameters=True,
        isolation_level="READ COMMITTED",
        connect_args={
            "connect_timeout": min(_CONNECT_SECONDS, silence_seconds),
            "read_timeout": min(_CONNECT_SECONDS, silence_seconds),  # of the handshake
            "init_command": _SESSION,
        },
    )
    engine.dialect.type_compiler_instance = ExactTypes(engine.dialect)
    engine.dialect.ddl_compiler = ExactTables
    sa.event.listen(engine, "connect", partial(_connected, seconds=silence_seconds), insert=True)
    return engine


def _connected(driver: Any, _record: object, *, seconds: int) -> None:
    """Let a host that vanished be noticed, and statements take as long as they take."""
    driver._read_timeout = None  # noqa: SLF001  PyMySQL has no other way
    channel, limits = driver._sock, keepalives(seconds)  # noqa: SLF001  likewise
    if channel.family != socket.AF_UNIX:
        for option, name in _KEEPALIVES.items():
            channel.setsockopt(socket.IPPROTO_TCP, option, limits[name])


def line(driver: Any, server: Server) -> Line | None:
    """Give what is watched of a connection; None where it is not TCP."""
    wire = line_of(number_of(driver))
    if wire is None:
        return None
    # What it is told it answers: it is waited for where something was sent after that.
    return Line(
        server,
        driver.thread_id(),
        wire,
        waits=lambda: silence(wire).sent <= silence(wire).received,
        ended=lambda: not driver.open,
    )


def at_work(connection: sa.Connection, sessions: Sequence[int]) -> Collection[int]:
    """Ask which sessions the server is at work for, and does not wait for us."""
    return set(sessions) & set(connection.exec_driver_sql(_AT_WORK).scalars())


def end(connection: sa.Connection, sessions: Sequence[int]) -> None:
    """End sessions that wait for us."""
    for session in sessions:
        connection.exec_driver_sql(f"kill {session:d}")


def number_of(driver: Any) -> int:
    """Give the file descriptor of its socket."""
    return int(driver._sock.fileno())  # noqa: SLF001  likewise


def canceller(connection: sa.Connection) -> Callable[[], None]:
    """Give the function that ends what the connection waits for; it never raises."""
    driver: Any = connection.connection.driver_connection
    number, engine = driver.thread_id(), connection.engine

    def cancel() -> None:
        with suppress(Exception), engine.connect() as other:
            other.exec_driver_sql(f"kill query {number}")

    return cancel


def read_error(error: Exception) -> CdcError:
    """Say what PyMySQL's error means, without values of rows."""
    number = error_number(error)
    if number is None:
        if type(error).__name__ in {"DataError", "ProgrammingError", "NotSupportedError"}:
            return RowsRefused(f"{type(error).__name__}: a value that MySQL cannot be sent")
        return ReadUnavailable(f"read database: {type(error).__name__}", hint=UNREACHABLE)
    if number in _BLAMES_ROWS:
        return RowsRefused(f"{_blamed(error)} (error {number})")
    message = f"read database: {_one_line(error)} (error {number})"
    # The number of a certificate that does not verify is that of any failure to connect.
    remedy = _VERIFY if _UNVERIFIED in message else _REFUSED.get(number)
    if remedy is not None:
        return ReadRefused(message, hint=remedy)
    if number in _PASSING or number == 0:
        return ReadUnavailable(message, hint=UNREACHABLE if number in _UNREACHED else None)
    return ReadError(message, hint=_HINTS.get(number))


def error_number(error: BaseException | None) -> int | None:
    """Give the number MySQL gave the error; None where it is the driver's own."""
    number = error.args[0] if error is not None and error.args else None
    return number if isinstance(number, int) else None


def _one_line(error: Exception) -> str:
    text = str(error.args[1]) if len(error.args) > 1 else ""
    return " ".join(text.split()) or "the connection is closed"


def _blamed(error: Exception) -> str:
    """Name what was violated: the message itself may hold values of the row."""
    text = _one_line(error)
    for pattern, said in _NAMES:
        found = pattern.search(text)
        if found:
            return f"{type(error).__name__}, {said.format(found[1])}"
    return type(error).__name__

"""What errors of MySQL and SQLite mean is told by their codes, and without values of rows."""

import builtins
import sqlite3
from typing import Any

import pymysql.err
import pytest

from cdc.errors import (
    CdcError,
    ConfigurationError,
    ReadError,
    ReadRefused,
    ReadUnavailable,
    SourceRefused,
)
from cdc.sink import mysql_session, sqlite_session
from cdc.sink.engine import connect, create_engine
from cdc.sink.refused import UNREACHABLE, RowsRefused
from cdc.source.connection import connect as connect_source

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("number", "text", "kind", "said"),
    [
        (1062, f"Duplicate entry '{SECRET}' for key 'PRIMARY'", RowsRefused, "key PRIMARY"),
        (1062, f"Duplicate entry 'for key '{SECRET}'' for key 'name'", RowsRefused, "key name"),
        (1048, "Column 'needed' cannot be null", RowsRefused, "column needed is null"),
        (1406, "Data too long for column 'name' at row 1", RowsRefused, "column name is too short"),
        (1264, "Out of range value for column 'n' at row 3", RowsRefused, "column n"),
        (
            1366,
            f"Incorrect integer value: '{SECRET}' for column `d`.`t`.`n` at row 1",
            RowsRefused,
            "column n",
        ),
        (1292, f"Incorrect datetime value: '{SECRET}'", RowsRefused, "error 1292"),
        (
            1452,
            "Cannot add or update a child row: a foreign key constraint fails (`d`.`child`, "
            "CONSTRAINT `child_ibfk_1` FOREIGN KEY (`up`) REFERENCES `parent` (`id`))",
            RowsRefused,
            "constraint child_ibfk_1",
        ),
        (4025, "CONSTRAINT `no_secret` failed for `d`.`t`", RowsRefused, "constraint no_secret"),
        (3819, "Check constraint 'no_secret' is violated.", RowsRefused, "constraint no_secret"),
        (1644, f"{SECRET} said a trigger", RowsRefused, "error 1644"),
        (1045, "Access denied for user 'x'@'y'", ReadRefused, "Access denied"),
        (1049, "Unknown database 'none'", ReadRefused, "Unknown database"),
        (1142, "INSERT command denied to user", ReadError, "INSERT command denied"),
        (1146, "Table 'd.t' doesn't exist", ReadError, "doesn't exist"),
        (1205, "Lock wait timeout exceeded", ReadUnavailable, "Lock wait"),
        (1213, "Deadlock found", ReadUnavailable, "Deadlock"),
        (2013, "Lost connection to MySQL server during query", ReadUnavailable, "Lost"),
        (2003, "Can't connect to MySQL server", ReadUnavailable, "connect"),
        (1053, "Server shutdown in progress", ReadUnavailable, "shutdown"),
        (0, "", ReadUnavailable, "the connection is closed"),
    ],
)
def test_what_a_number_of_mysql_means(
    number: int, text: str, kind: type[CdcError], said: str
) -> None:
    error = mysql_session.read_error(pymysql.err.OperationalError(number, text))
    assert type(error) is kind
    assert said in str(error)
    assert SECRET not in str(error) + str(error.hint)
    # What is there need not be started.
    assert (error.hint == UNREACHABLE) is (number in {2003, 2013})


def test_an_error_of_the_driver_itself_blames_the_value_it_could_not_send() -> None:
    error = mysql_session.read_error(pymysql.err.ProgrammingError(f"{SECRET} can not be used"))
    assert type(error) is RowsRefused
    assert SECRET not in str(error)


def sqlite_error(code: int, name: str, text: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("code", "name", "kind"),
    [
        (2067, "SQLITE_CONSTRAINT_UNIQUE", RowsRefused),
        (787, "SQLITE_CONSTRAINT_FOREIGNKEY", RowsRefused),
        (18, "SQLITE_TOOBIG", RowsRefused),
        (20, "SQLITE_MISMATCH", RowsRefused),
        (5, "SQLITE_BUSY", ReadUnavailable),
        (517, "SQLITE_BUSY_SNAPSHOT", ReadUnavailable),
        (13, "SQLITE_FULL", ReadUnavailable),
        (778, "SQLITE_IOERR_WRITE", ReadUnavailable),
        (14, "SQLITE_CANTOPEN", ReadRefused),
        (1032, "SQLITE_READONLY_DBMOVED", ReadRefused),
        (26, "SQLITE_NOTADB", ReadRefused),
        (11, "SQLITE_CORRUPT", ReadError),
        (1, "SQLITE_ERROR", ReadError),
    ],
)
def test_what_a_result_code_of_sqlite_means(code: int, name: str, kind: type[CdcError]) -> None:
    error = sqlite_session.read_error(sqlite_error(code, name, "said"))
    assert type(error) is kind
    assert name in str(error)


def test_a_driver_that_is_missing_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without_pymysql(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "pymysql":
            raise ModuleNotFoundError("No module named 'pymysql'", name="pymysql")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_pymysql)
    with pytest.raises(ConfigurationError, match="the driver pymysql") as caught:
        create_engine(f"mysql+pymysql://u:{SECRET}@h/d")
    assert caught.value.hint == "pip install 'cdc-daemon[mysql]'"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:{}@127.0.0.1:1/d?nosuch=1",
        "postgresql+psycopg://u:{}@127.0.0.1:1/d?sslmode=bogus",
        "postgresql+psycopg://u:{}@/d?service=nosuch",
        "mysql+pymysql://u:{}@127.0.0.1:1/d?nosuch=1",
        "mysql+pymysql://u:{}@127.0.0.1:1/d?connect_timeout=soon",
        "mysql+pymysql://u:{}@127.0.0.1:1/d?ssl_ca=/no/such/file",
    ],
)
def test_a_parameter_that_cannot_be_used_is_refused_and_not_retried(url: str) -> None:
    with pytest.raises(ReadRefused) as caught:
        connect(create_engine(url.format(SECRET)))
    assert "read.url" in str(caught.value.hint)
    assert SECRET not in str(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize(
    "parameters", ["sslmode=bogus", "port=99999", "service=nosuch", "connect_timeout=soon"]
)
def test_a_parameter_of_the_write_database_is_refused_likewise(parameters: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        connect_source(f"host=127.0.0.1 port=1 user=u password={SECRET} {parameters}")
    assert "source.dsn" in str(caught.value.hint)

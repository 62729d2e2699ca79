"""A read database of each dialect, for the tests that are run through all of them."""

from pathlib import Path

import pytest

from tests.read_databases import MariaRead, PostgresRead, ReadDatabase, SQLiteRead


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ReadDatabase:
    if request.param == "postgres":
        return PostgresRead(request.getfixturevalue("read"))
    if request.param == "mariadb":
        return MariaRead(request.getfixturevalue("mariadb"))
    return SQLiteRead(tmp_path / "read.db")

"""`cdc check` finds what keeps the rows that exist from being copied."""

from collections.abc import Callable, Iterator

import pytest

from cdc.operate.check import Finding, check
from tests.conftest import Configuration, Database

Configure = Callable[..., Configuration]
SCHEMA = 'create schema "S.x"'
PLAIN = 'create table "S.x"."T t" (id int primary key, v text)'
PARTED = 'create table "S.x".parted (id int primary key) partition by range (id)'
PART = 'create table "S.x".part partition of "S.x".parted for values from (0) to (10)'
MIRRORS = [{"source": '"S.x".T t', "target": "t"}, {"source": '"S.x".parted', "target": "p"}]


@pytest.fixture
def role(write: Database) -> Iterator[str]:
    name = f"Role {write.name}"
    write.run(f'create role "{name}" login replication', SCHEMA, PLAIN, PARTED, PART)
    yield name
    write.run(f'drop owned by "{name}"', f'drop role "{name}"')


@pytest.fixture
def found(write: Database, role: str, configuration: Configure) -> Callable[..., list[Finding]]:
    dsn = write.server.dsn(write.name, role)

    def check_it(**copy: object) -> list[Finding]:
        wanted = configuration(mirrors=MIRRORS).with_(source={"dsn": dsn}, copy=copy)
        unowned = "publication_missing"  # is another matter
        return [f for f in check(wanted.settings()) if f.blocks and f.name != unowned]

    return check_it


def test_what_the_role_may_not_read_is_mended_by_the_grants_that_are_told(
    write: Database, role: str, found: Callable[..., list[Finding]]
) -> None:
    told = found()
    assert {finding.remedy for finding in told} == {
        f'grant usage on schema "S.x" to "{role}";',
        f'grant select on table "S.x"."T t" to "{role}";',
        f'grant select on table "S.x"."parted" to "{role}";',
    }
    assert {finding.name for finding in told} == {"schema_usage", "table_select"}
    write.run(*(finding.remedy for finding in told))
    assert found() == []
    with write.connect() as reader:  # the partition needs no grant of its own
        reader.execute(f'set role "{role}"'.encode())
        reader.execute("set row_security = off")
        with reader.transaction():
            reader.execute('lock table "S.x".parted in access share mode')
            reader.execute('select * from "S.x".parted')


def test_one_column_alone_is_not_enough(
    write: Database, role: str, found: Callable[..., list[Finding]]
) -> None:
    write.run(
        f'grant usage on schema "S.x" to "{role}"',
        f'grant select (id, v) on "S.x"."T t" to "{role}"',
        f'grant select on "S.x".parted to "{role}"',
    )
    (told,) = found()
    assert told.remedy == f'grant select on table "S.x"."T t" to "{role}";'


def test_row_level_security_that_hides_rows_is_found(
    write: Database, role: str, found: Callable[..., list[Finding]]
) -> None:
    write.run(
        f'grant usage on schema "S.x" to "{role}"',
        f'grant select on all tables in schema "S.x" to "{role}"',
        'alter table "S.x"."T t" enable row level security',
        'alter table "S.x".part enable row level security',
    )
    (told,) = found()
    assert "T t" in told.what
    assert told.name == "row_security"
    write.run(told.remedy)
    assert found() == []


def test_a_message_that_may_not_be_written_is_found(
    write: Database, role: str, found: Callable[..., list[Finding]]
) -> None:
    write.run(
        f'grant usage on schema "S.x" to "{role}"',
        f'grant select on all tables in schema "S.x" to "{role}"',
        "revoke execute on function pg_logical_emit_message(boolean, text, text) from public",
    )
    (told,) = found()
    assert told.name == "emit_message"
    assert "pg_logical_emit_message(boolean,text,text)" in told.remedy
    write.run(told.remedy)
    assert found() == []


def test_where_nothing_is_copied_no_right_to_read_is_asked_for(
    found: Callable[..., list[Finding]],
) -> None:
    assert found(enabled=False) == []

"""Read tables: made where missing, refused with the SQL that mends them where they do not fit."""

import enum
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from cdc.errors import ReadTableMismatch
from cdc.projection.mirror import PostgresType
from cdc.sink import checkpoint, tables
from cdc.sink.engine import create_engine
from tests.conftest import Database


class Mood(enum.Enum):
    GOOD = 1


@pytest.fixture
def connection(read: Database) -> Iterator[sa.Connection]:
    engine = create_engine(read.url)
    with engine.connect() as opened, opened.begin():
        yield opened
    engine.dispose()


def make(connection: sa.Connection, *wanted: sa.Table) -> None:
    tables.create(connection, tables.missing(connection, wanted))


def misfit(connection: sa.Connection, table: sa.Table) -> ReadTableMismatch | None:
    found = tables.misfits(connection, [table])
    assert len(found) <= 1
    return found[0] if found else None


def statements(error: ReadTableMismatch) -> str:
    assert error.hint is not None
    assert error.hint.startswith("on the read database: ")
    return error.hint.removeprefix("on the read database: ").partition(" Or drop the table")[0]


def table(name: str = "t", *columns: "sa.Column[int]", schema: str | None = None) -> sa.Table:
    given = columns or (
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20)),
        sa.Column("mood", sa.Enum(Mood, name="mood")),
        sa.Column("price", sa.Numeric(10, 2), nullable=False),
        sa.Column("tags", ARRAY(sa.Text)),
        sa.Column("document", JSONB),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("as_printed", PostgresType("numeric(20,5)[]")),
    )
    return sa.Table(name, sa.MetaData(), *given, schema=schema)


@pytest.mark.parametrize("name", ["t", "Mixed Case", "per%cent", 'quo"te', "dot.ted", "select"])
def test_what_we_make_fits(connection: sa.Connection, name: str) -> None:
    wanted = table(name, sa.Column(name, sa.Integer, primary_key=True), sa.Column("v", sa.Text))
    assert tables.missing(connection, [wanted]) == [wanted]
    make(connection, wanted)
    assert tables.missing(connection, [wanted]) == []
    assert misfit(connection, wanted) is None


def test_every_kind_of_column_fits_once_it_is_made(connection: sa.Connection) -> None:
    make(connection, table())
    assert misfit(connection, table()) is None


def test_a_column_whose_name_is_cut_fits(connection: sa.Connection) -> None:
    """Postgres keeps 63 bytes of a name."""
    columns = [sa.Column(name, sa.Integer) for name in ("x" * 70, "é" * 40)]
    wanted = table("t", sa.Column("id", sa.Integer, primary_key=True), *columns)
    make(connection, wanted)
    assert misfit(connection, wanted) is None
    again = table("t", sa.Column("id", sa.Integer, primary_key=True), *columns_like(columns))
    assert tables.misfits(connection, [again, again]) == []


def columns_like(columns: "list[sa.Column[int]]") -> "list[sa.Column[int]]":
    return [sa.Column(column.name, column.type) for column in columns]


def test_tables_are_found_as_far_as_the_role_sees(
    read: Database, connection: sa.Connection
) -> None:
    """A schema that it may not use hides no other table, nor its own; the system's are no tables."""
    read.run(
        "create schema hidden",
        "create table hidden.t (id int)",
        "revoke all on schema hidden from public",
    )
    make(connection, table("seen"))
    wanted = [table("seen"), table(schema="hidden"), table(schema="none"), table("pg_class")]
    found = tables.missing(connection, wanted)
    assert found == wanted[2:]


def test_a_table_in_a_schema_of_its_own(read: Database, connection: sa.Connection) -> None:
    read.run('create schema "My Schema"')
    connection.exec_driver_sql("create table t (id text)")
    wanted = table(schema="My Schema")
    make(connection, wanted)
    assert misfit(connection, wanted) is None


def test_our_own_bookkeeping_fits(connection: sa.Connection) -> None:
    make(connection, checkpoint.TABLE)
    assert misfit(connection, checkpoint.TABLE) is None


def test_tables_with_indexes_and_foreign_keys_are_made_in_their_order(
    connection: sa.Connection,
) -> None:
    metadata = sa.MetaData()
    parent = sa.Table("a_parent", metadata, sa.Column("id", sa.Integer, primary_key=True))
    child = sa.Table(
        "a_child",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.ForeignKey("a_parent.id"), index=True),
    )
    make(connection, parent, child)
    indexes = sa.inspect(connection).get_indexes("a_child")
    assert [index["column_names"] for index in indexes] == [["parent_id"]]
    assert misfit(connection, child) is None


@pytest.mark.parametrize(
    ("existing", "said"),
    [
        ("(id int primary key)", ['"name" is missing']),
        ("(id bigint primary key, name text)", ['"id" is bigint, not integer', '"name" is text']),
        ("(id text primary key, name varchar(20))", ['"id" is text, not integer']),
        ("(id int primary key, name varchar(5))", ['"name" is character varying(5)']),
        ("(id int primary key, name int)", ['"name" is integer']),
        ("(id int, name varchar(20))", ["nothing makes its key (id) unique"]),
        ("(id int, name varchar(20) primary key)", ["nothing makes its key (id) unique"]),
        (
            "(id int, name varchar(20), primary key (id, name))",
            ["nothing makes its key (id) unique"],
        ),
        ("(id int, name varchar(20), unique (id) deferrable)", ["(id) unique"]),
        ("(id int primary key, name varchar(20), more int not null)", ['"more"', "required"]),
        ('(id int primary key, name varchar(20), "A % b" int not null)', ['"A % b"']),
    ],
)
def test_a_difference_is_told_and_the_hint_mends_it(
    connection: sa.Connection, existing: str, said: list[str]
) -> None:
    wanted = table(
        "Odd t%",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20)),
    )
    connection.execute(sa.text(f'create table "Odd t%" {existing}'))
    error = misfit(connection, wanted)
    assert error is not None
    for part in ("Odd t%", *said):
        assert part in str(error)
    cursor = connection.connection.cursor()
    cursor.execute(statements(error))
    cursor.close()
    assert misfit(connection, wanted) is None


@pytest.mark.parametrize(
    "existing",
    [
        "(id int primary key, name varchar(20), more text)",
        "(id int primary key, name varchar(20), more int not null default 5)",
        "(more int generated always as identity, name varchar(20), id int unique)",
        "(id int primary key, name varchar(20), more int generated always as (id) stored)",
        "(name varchar(20), id int4, constraint x primary key (id))",
    ],
)
def test_what_only_has_more_fits(connection: sa.Connection, existing: str) -> None:
    wanted = table(
        "t", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20))
    )
    connection.exec_driver_sql(f"create table t {existing}")
    assert misfit(connection, wanted) is None


def test_a_partial_index_makes_no_key(connection: sa.Connection) -> None:
    wanted = table("t", sa.Column("id", sa.Integer, primary_key=True))
    connection.exec_driver_sql("create table t (id int)")
    connection.exec_driver_sql("create unique index on t (id) where id > 0")
    connection.exec_driver_sql("create unique index on t ((id + 1))")
    assert misfit(connection, wanted) is not None


@pytest.mark.parametrize(
    "made",
    [
        ["create unlogged table t (id int primary key)"],
        [
            "create table t (id int primary key) partition by range (id)",
            "create unlogged table p partition of t default",
        ],
    ],
)
def test_what_a_crash_would_empty_is_refused(connection: sa.Connection, made: list[str]) -> None:
    """The checkpoint would stay, and the rows be gone for good."""
    wanted = table("t", sa.Column("id", sa.Integer, primary_key=True))
    for statement in made:
        connection.exec_driver_sql(statement)
    error = misfit(connection, wanted)
    assert error is not None
    assert "is unlogged" in str(error)
    for statement in error.sql:
        connection.exec_driver_sql(statement)
    assert misfit(connection, wanted) is None


def test_the_comparison_leaves_nothing_behind(connection: sa.Connection) -> None:
    make(connection, table())
    query = "select count(*) from pg_class"
    before = connection.exec_driver_sql(query).scalar()
    misfit(connection, table())
    assert connection.exec_driver_sql(query).scalar() == before

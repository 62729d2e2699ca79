"""Read tables in MariaDB and SQLite: made where missing, refused where they do not fit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from cdc.errors import ReadTableMismatch
from cdc.projection.mirror import PostgresType
from cdc.sink import checkpoint, tables
from cdc.sink.engine import create_engine
from tests.mariadb import MariaDB
from tests.read_databases import MariaRead, ReadDatabase, SQLiteRead

BOTH = ["mariadb", "sqlite"]


@pytest.fixture(params=BOTH)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> ReadDatabase:
    if dialect == "mariadb":
        return MariaRead(request.getfixturevalue("mariadb"))
    return SQLiteRead(tmp_path / "read.db")


@pytest.fixture
def connection(store: ReadDatabase) -> Iterator[sa.Connection]:
    engine = create_engine(store.url)
    with engine.connect() as opened, opened.begin():
        yield opened


def make(connection: sa.Connection, *wanted: sa.Table) -> None:
    tables.create(connection, tables.missing(connection, wanted))


def misfit(connection: sa.Connection, table: sa.Table) -> ReadTableMismatch | None:
    found = tables.misfits(connection, [table])
    assert len(found) <= 1
    return found[0] if found else None


def table(name: str = "t") -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20), unique=True),
        sa.Column("label", sa.String, index=True),
        sa.Column("long", sa.Text),
        sa.Column("mood", sa.Enum("good", "bad", name="mood")),
        sa.Column("document", sa.JSON),
        sa.Column("uuid", sa.Uuid),
        sa.Column("ratio", sa.Float),
        sa.Column("raw", sa.LargeBinary),
        sa.Column("flag", sa.Boolean),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("as_printed", PostgresType("numeric(20,5)[]")),
        sa.Column("mirrored", PostgresType("bytea")),
    )


def test_every_kind_of_column_fits_once_it_is_made(connection: sa.Connection) -> None:
    wanted = [table(), checkpoint.TABLE]
    assert tables.missing(connection, wanted) == wanted
    make(connection, *wanted)
    assert tables.missing(connection, wanted) == []
    assert [misfit(connection, one) for one in wanted] == [None, None]


@pytest.mark.parametrize("name", ["Mixed Case", "per%cent", 'quo"te', "dot.ted", "select"])
def test_what_we_make_fits_whatever_its_name(connection: sa.Connection, name: str) -> None:
    columns = [sa.Column(name, PostgresType("text"), primary_key=True), sa.Column("v", sa.Text)]
    wanted = sa.Table(name, sa.MetaData(), *columns)
    make(connection, wanted)
    assert misfit(connection, wanted) is None


def test_a_mirrors_key_fits_alone_composite_and_under_foreign_keys(
    connection: sa.Connection,
) -> None:
    metadata = sa.MetaData()
    text = PostgresType("text")
    parent = sa.Table("a_parent", metadata, sa.Column("k", text, primary_key=True))
    child = sa.Table(
        "b_child",
        metadata,
        *(sa.Column(f"k{n}", text, primary_key=True) for n in range(8)),
        sa.Column("raw", PostgresType("bytea"), primary_key=True),
        sa.Column("up", sa.ForeignKey("a_parent.k"), index=True),
    )
    make(connection, parent, child)
    assert [misfit(connection, one) for one in (parent, child)] == [None, None]
    indexes = sa.inspect(connection).get_indexes("b_child")
    assert ["up"] in [index["column_names"] for index in indexes]


COLUMNS = {
    "mariadb": "id int primary key, name varchar(20) character set utf8mb4 collate {bin}",
    "sqlite": "id integer primary key, name varchar(20)",
}


def small() -> sa.Table:
    return sa.Table(
        "odd t",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20)),
    )


@pytest.mark.parametrize(
    ("dialect", "existing", "said"),
    [
        ("mariadb", "(id int primary key)", '"name" is missing'),
        ("mariadb", "(id bigint primary key, name {text})", '"id" is bigint(20), not int(11)'),
        (
            "mariadb",
            "(id int primary key, name varchar(20))",
            '"name" is varchar(20) collate latin',
        ),
        (
            "mariadb",
            "(id int primary key, name {text20general})",
            "not varchar(20) collate utf8mb4_n",
        ),
        ("mariadb", "(id int, name {text})", "nothing makes its key (id) unique"),
        ("mariadb", "(id int primary key, name {text}, more int not null)", '"more" is not known'),
        ("mariadb", "(id int primary key, name {text}) engine=Aria", "its engine is Aria"),
        ("sqlite", "(id integer primary key)", '"name" is missing'),
        ("sqlite", "(id integer, name varchar(20))", "nothing makes its key (id) unique"),
    ],
)
def test_a_difference_is_told_and_the_hint_mends_it(
    connection: sa.Connection, existing: str, said: str
) -> None:
    text = "varchar(20) character set utf8mb4 collate utf8mb4_"
    columns = existing.format(text=f"{text}nopad_bin", text20general=f"{text}general_ci")
    name = connection.dialect.identifier_preparer.quote_identifier("odd t")
    connection.exec_driver_sql(f"create table {name} {columns}")
    error = misfit(connection, small())
    assert error is not None
    assert said in str(error)
    assert error.hint is not None
    statements = error.hint.removeprefix("on the read database: ").partition(" Or drop")[0]
    for statement in statements.split("; "):
        connection.exec_driver_sql(statement)
    assert misfit(connection, small()) is None


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_sqlite_cannot_alter_is_to_be_dropped(connection: sa.Connection) -> None:
    connection.exec_driver_sql('create table "odd t" (id integer primary key, name integer)')
    error = misfit(connection, small())
    assert error is not None
    assert '"name" is INTEGER, not VARCHAR(20)' in str(error)
    assert error.hint == "on the read database, drop the table: it is made anew, empty."


def test_what_only_has_more_fits(connection: sa.Connection, dialect: str) -> None:
    columns = COLUMNS[dialect].format(bin="utf8mb4_nopad_bin")
    name = connection.dialect.identifier_preparer.quote_identifier("odd t")
    more = "more int, other int not null default 5"
    connection.exec_driver_sql(f"create table {name} ({columns}, {more})")
    assert misfit(connection, small()) is None


def test_the_comparison_leaves_nothing_behind(connection: sa.Connection) -> None:
    make(connection, table())
    before = sa.inspect(connection).get_table_names()
    misfit(connection, table())
    misfit(connection, table())
    assert sa.inspect(connection).get_table_names() == before


def test_a_type_that_the_dialect_lacks_is_refused_with_what_to_do(
    connection: sa.Connection,
) -> None:
    wanted = sa.Table(
        "t",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("v", ARRAY(sa.Text)),
    )
    with pytest.raises(ReadTableMismatch, match="read table t cannot be made") as caught:
        make(connection, wanted)
    assert "with_variant" in str(caught.value.hint)


def test_names_that_differ_in_case_alone_are_refused(connection: sa.Connection) -> None:
    key = sa.Column("id", sa.Integer, primary_key=True)
    twice = sa.Table("t", sa.MetaData(), key, sa.Column("ID", sa.Integer))
    with pytest.raises(ReadTableMismatch, match="two columns of t are both named id"):
        tables.require_definable(connection, [twice])
    with pytest.raises(ReadTableMismatch, match="both named t"):
        tables.require_definable(connection, [table("t"), table("T")])


def test_a_setup_that_was_killed_between_two_tables_is_finished_by_the_next(
    mariadb: MariaDB,
) -> None:
    """MySQL commits each table by itself: what is there is there whole, with its indexes."""
    store = MariaRead(mariadb)
    wanted = [checkpoint.TABLE, table("a"), table("b")]
    engine = create_engine(store.url)
    with engine.connect() as connection:
        tables.create(connection, wanted[:2])
        connection.invalidate()  # as if killed: nothing is committed by us
    with engine.connect() as connection, connection.begin():
        assert tables.missing(connection, wanted) == wanted[2:]
        make(connection, *wanted)
        assert [misfit(connection, one) for one in wanted] == [None, None, None]
        indexed = {
            column
            for (column,) in store.query(
                "select column_name from information_schema.statistics where table_name = 'a' "
                "and table_schema = database()"
            )
        }
        assert indexed == {"id", "name", "label"}

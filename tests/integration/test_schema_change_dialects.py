"""Source tables that change, mirrored into MariaDB and SQLite: followed, or mended as told."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cdc.lsn import Lsn
from tests.conftest import Configuration, Database, RunningDaemon
from tests.integration.test_schema_change import EXIT, FOLLOW, MIRROR, advice, stops
from tests.integration.test_types_dialects import as_stored, printed
from tests.read_databases import MariaRead, ReadDatabase, SQLiteRead

Configure = Callable[..., Configuration]
Run = Callable[..., Any]

DEFAULTS: Final = [
    ("integer", "default 7"),
    ("bigint", "not null default -9223372036854775808"),
    ("boolean", "default true"),
    ("bytea", "default '\\x005c27ff'"),
    ("bytea", "default ''"),
    ("uuid", "default 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("time without time zone", "default '24:00:00'"),
    ("numeric(10,3)", "not null default 1.5"),
    ("double precision", "default 'NaN'"),
    ("text", "default ''"),
    ("text", "default E'it''s \\\\ 100%% %s :x ? \\n\\u00e9\\U0001F600\"`'"),
    ("character(5)", "default 'ab'"),
    ("timestamp with time zone", "default '2024-02-29 10:34:56+02'"),
    ("timestamp without time zone", "default 'infinity'"),
    ("interval", "default '1 mon -00:00:01'"),
    ("integer[]", "default '{1,NULL}'"),
    ("text[]", """default '{"a,b","{c}"}'"""),
    ("jsonb", """default '{"a": [1.50]}'"""),
    ('"Odd Type"', "default 'so so'"),
    ("price", "default 1"),
    ("text", ""),
    ("integer", ""),
]


@pytest.fixture(params=["mariadb", "sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> ReadDatabase:
    if dialect == "mariadb":
        return MariaRead(request.getfixturevalue("mariadb"))
    return SQLiteRead(tmp_path / "read.db")


@pytest.fixture
def begun(
    write: Database, store: ReadDatabase, configuration: Configure, cdc_run: Run
) -> Configuration:
    """A mirror of t (id, v), of which row 1 has come."""
    write.run("create table t (id int primary key, v text)")
    wanted = configuration("pgoutput", mirrors=MIRROR).with_(read={"url": store.url})
    cdc_run(wanted)
    write.run("insert into t values (1, 'a')")
    cdc_run(wanted)
    return wanted


class DaemonInto(RunningDaemon):
    """A daemon in the background that writes to a read database of any dialect."""

    def __init__(self, configuration: Configuration, store: ReadDatabase) -> None:
        self._store = store
        super().__init__(configuration, store)  # type: ignore[arg-type]  those below alone read it

    def checkpoint(self) -> Lsn | None:
        found = self._store.query("select lsn from cdc_checkpoint")
        return Lsn(found[0][0]) if found and found[0][0] is not None else None

    def copied(self) -> bool:
        states = self._store.query("select state from cdc_copy")
        return bool(states) and not {("waiting",), ("copying",)} & set(states)


@pytest.fixture
def start_into() -> Iterator[Callable[..., DaemonInto]]:
    started: list[DaemonInto] = []

    def start(configuration: Configuration, store: ReadDatabase) -> DaemonInto:
        started.append(DaemonInto(configuration, store))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.kill()


def equal(write: Database, store: ReadDatabase, dialect: str) -> None:
    """Compare all columns of the source's table with the read table's, by their names."""
    columns = write.rows(
        "select quote_ident(attname), format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null) "
        "from pg_attribute a join pg_type t on t.oid = a.atttypid where attrelid = 't'::regclass "
        "and attnum > 0 and not attisdropped order by attnum"
    )
    quote = '"{}"' if dialect == "sqlite" else "`{}`"
    names = [quote.format(name.strip('"')) for name, _ in columns]
    sent = ", ".join(printed(name).replace("%", "%%") for name, _ in columns)
    with write.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute("set intervalstyle = 'postgres'")
        rows = connection.execute(f"select {sent} from t order by id", ()).fetchall()
    wanted = [
        tuple(
            None if text is None else as_stored(type_, dialect, text)
            for text, (_, type_) in zip(row, columns, strict=True)
        )
        for row in rows
    ]
    assert store.query(f"select {', '.join(names)} from t order by id") == wanted


def mend(store: ReadDatabase, told: str) -> list[str]:
    """Run the statements that the hint of a stop offers."""
    offered = advice(told)
    assert offered, told
    for statement in offered:
        store.query(statement.rstrip(";"))
    return offered


def change_with_defaults(write: Database) -> None:
    """Add columns, with rows from before each that are still to come."""
    write.run(
        "create type \"Odd Type\" as enum ('ok', 'so so')",
        "create domain price as numeric(10,2)",
        "insert into t values (2, 'b')",
    )
    for number, (type_, default) in enumerate(DEFAULTS):
        write.run(
            f"alter table t add column c{number} {type_} {default}",
            f"insert into t (id, v) values ({10 + number}, 'between')",
        )
    write.run("update t set v = 'moved', id = 4 where id = 1", "update t set c0 = null where id=2")


def test_added_columns_are_followed_with_what_their_defaults_gave_the_rows_from_before(
    begun: Configuration, write: Database, store: ReadDatabase, dialect: str, cdc_run: Run
) -> None:
    change_with_defaults(write)
    cdc_run(begun.with_(projection=FOLLOW))
    equal(write, store, dialect)


def test_the_ddl_of_a_stop_gives_the_columns_what_their_defaults_gave_the_rows_from_before(
    begun: Configuration, write: Database, store: ReadDatabase, dialect: str, cdc_run: Run
) -> None:
    write.run(
        "insert into t values (2, 'b')",
        "alter table t add column w int default 7, add column x text, add column y text "
        "default 'it''s'",
        "insert into t values (3, 'c', 8, 'x', 'y')",
    )
    told = stops(cdc_run(begun, succeeds=False), "public.t", '"w", "x", "y"', "follow_schema")
    mend(store, told)
    cdc_run(begun)
    equal(write, store, dialect)


def test_columns_added_while_streaming_and_inside_a_transaction_are_followed(
    begun: Configuration,
    write: Database,
    store: ReadDatabase,
    dialect: str,
    start_into: Callable[..., DaemonInto],
) -> None:
    daemon = start_into(begun.with_(projection=FOLLOW), store)
    daemon.wait_for(write.run("insert into t values (2, 'b')"))
    daemon.wait_for(
        write.commit(
            "insert into t values (3, 'c')",
            "alter table t add column w int default 7",
            "insert into t values (4, 'd', 8)",
            'alter table t add column "100% X" text',
            "update t set \"100% X\" = 'e' where id < 3",
        )
    )
    equal(write, store, dialect)
    daemon.wait_for(write.run("insert into t values (5, 'f', 9, 'g')"))
    equal(write, store, dialect)
    assert daemon.stop() == 0


def test_an_added_column_stops_a_running_daemon_that_goes_on_after_its_ddl(
    begun: Configuration,
    write: Database,
    store: ReadDatabase,
    dialect: str,
    start_into: Callable[..., DaemonInto],
    cdc_run: Run,
) -> None:
    daemon = start_into(begun, store)
    daemon.wait_for(write.run("insert into t values (2, 'b')"))
    write.commit(
        "insert into t values (3, 'c')",
        "alter table t add column w int default 7",
        "insert into t values (4, 'd', 8)",
    )
    assert daemon.ends() == EXIT
    mend(store, daemon.log)
    cdc_run(begun)
    equal(write, store, dialect)


def test_a_column_whose_past_is_not_known_is_not_followed(
    begun: Configuration, write: Database, store: ReadDatabase, dialect: str, cdc_run: Run
) -> None:
    write.run("alter table t add w uuid default gen_random_uuid()", "insert into t values (2, 'b')")
    told = stops(cdc_run(begun.with_(projection=FOLLOW), succeeds=False), '"w"', "from before")
    mend(store, told)
    past = write.value("select w from t where id = 1")
    store.query(f"update t set w = '{past}' where id = 1")
    cdc_run(begun.with_(projection=FOLLOW))
    equal(write, store, dialect)


@pytest.mark.parametrize("name", ["V 2", "back\\slash", "it's"])
def test_a_renamed_column_stops_with_the_ddl_and_pending_rows_go_where_they_belong(
    begun: Configuration,
    write: Database,
    store: ReadDatabase,
    dialect: str,
    cdc_run: Run,
    name: str,
) -> None:
    write.run(
        "insert into t values (2, 'b')",
        f'alter table t rename column v to "{name}"',
        "insert into t values (3, 'c')",
        f"update t set \"{name}\" = 'd' where id = 1",
    )
    told = stops(cdc_run(begun.with_(projection=FOLLOW), succeeds=False), 'column "v" was renamed')
    mend(store, told)
    cdc_run(begun.with_(projection=FOLLOW))
    equal(write, store, dialect)


@pytest.mark.parametrize("name", ["v", "back\\slash", "it's"])
def test_a_column_dropped_and_made_again_is_refused_until_its_past_is_right(
    write: Database,
    store: ReadDatabase,
    dialect: str,
    configuration: Configure,
    cdc_run: Run,
    name: str,
) -> None:
    write.run(f'create table t (id int primary key, "{name}" text)')
    wanted = configuration("pgoutput", mirrors=MIRROR).with_(read={"url": store.url})
    cdc_run(wanted)
    write.run(
        f'alter table t drop column "{name}"',
        f'alter table t add column "{name}" text',
        "insert into t values (2, 'b')",
    )
    told = stops(cdc_run(wanted.with_(projection=FOLLOW), succeeds=False), "another one")
    mend(store, told)
    cdc_run(wanted.with_(projection=FOLLOW))
    equal(write, store, dialect)

"""The round trip of every type, through both plugins, in a mirror and through a projector."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from cdc.servers import Server, find_wheel
from tests import matrix
from tests.conftest import FAST, Configuration, Database, require, tells_not_numbers
from tests.matrix import KINDS, UNREADABLE, Kind

Configure = Callable[..., Configuration]
Run = Callable[..., Any]

# What a daemon's sessions print by, on both sides (cdc.source.connection, cdc.sink.engine).
PINNED = (
    "set datestyle = 'ISO'",
    "set intervalstyle = 'postgres'",
    "set timezone = 'UTC'",
    "set extra_float_digits = 3",
    "set bytea_output = 'hex'",
    "set lc_monetary = 'C'",
    "set search_path = pg_catalog",
)
LOOKING = '''
"""Look at every value of the matrix."""

import sqlalchemy as sa

from cdc import Deleted, UNCHANGED, Upsert, projector

looked = sa.Table(
    "looked",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("seen", sa.Text),
    sa.Column("printed", sa.Text),
)


def seen(row, name):
    try:
        value = row[name]
    except ValueError as error:
        assert f'"{name}"' in str(error)
        return "unreadable"
    return f"{type(value).__name__} {value!r}"


@projector("public.v", into=looked)
def look(change):
    if isinstance(change, Deleted):
        return
    row = change.row
    for name in row:
        text = row.text(name)
        assert text is not UNCHANGED or row[name] is UNCHANGED
        assert (text is None) == (row[name] is None if text is None else False)
        if name not in ("id", "touched") and isinstance(text, str):
            yield Upsert(looked, id=row["id"], name=name, seen=seen(row, name), printed=text)
'''


def shown(value: object) -> str:
    return UNREADABLE if value is UNREADABLE else f"{type(value).__name__} {value!r}"


def sql_value(value: str) -> str:
    """Write a value of the matrix as SQL: a literal without backslash escapes, or itself."""
    return value if value.startswith("(select") else "'" + value.replace("'", "''") + "'"


HAS = """
select name::text from pg_available_extensions
union all select 'libxml' from pg_config where name = 'CONFIGURE' and setting like '%--with-libxml%'
"""


def prepare(database: Database) -> list[Kind]:
    """Create the matrix's types; give the kinds of which this server can have values."""
    has = {name for (name,) in database.rows(HAS)}
    kinds = [kind for kind in KINDS if kind.needs is None or kind.needs in has]
    for extension in {kind.needs for kind in kinds} - {None, "libxml"}:
        database.run(f"create extension {extension}")
    database.run(*matrix.USER_TYPES)
    return kinds


def carried(kind: Kind, *, not_numbers: bool) -> tuple[str, ...]:
    """Give the values that a plugin can carry which sends NaN and infinities, or does not."""
    return (*kind.values, *kind.not_numbers) if not_numbers else kind.values


ALL_TYPES = """
select format_type(t.oid, null), t.oid
from pg_type t left join pg_class c on c.oid = t.typrelid
where t.typtype in ('b', 'e', 'd', 'c', 'r', 'm') and coalesce(c.relkind, 'c') = 'c'
  and not (t.typcategory = 'A' and t.typelem <> 0)
  and t.oid not in (select objid from pg_depend where deptype = 'e' and classid = 'pg_type'::regclass)
"""


def test_every_type_of_the_catalog_is_in_the_matrix_or_impossible(write: Database) -> None:
    """Arrays follow from their elements, and the row types of all tables from that of one."""
    prepare(write)
    assert_all_covered(write)


def assert_all_covered(write: Database) -> None:
    covered = {write.value("select to_regtype(%s)::oid", kind.sql) for kind in KINDS}
    missing = {name for name, oid in write.rows(ALL_TYPES) if oid not in covered}
    assert missing == set(matrix.IMPOSSIBLE)


@pytest.mark.parametrize("name", matrix.IMPOSSIBLE)
def test_a_type_that_is_impossible_takes_no_value(write: Database, name: str) -> None:
    for value in ("", "1", "{}", "\\x00"):
        with pytest.raises(Exception, match=r"cannot accept a value|not implemented"):
            write.value(f"select %s::{name}", value)


def test_the_matrix_says_which_types_can_be_a_key(write: Database) -> None:
    kinds = prepare(write)
    for kind in kinds:
        possible = write.value(
            "select exists (select from pg_opclass o join pg_am m on m.oid = o.opcmethod "
            "where m.amname = 'btree' and o.opcdefault and o.opcintype = %s::regtype)",
            kind.sql,
        )
        if possible:
            assert kind.key, kind.sql
        if not kind.key:
            with pytest.raises(Exception, match="has no default operator class"):
                write.run(f"create table t (k {kind.sql} primary key)")


class Values:
    """A table with a column of every type, and one of every type's array.

    `kinds_per_table`: several such tables, for a read database that bounds how wide one may be.
    """

    def __init__(self, write: Database, plugin: str, *, kinds_per_table: int = 10_000) -> None:
        self.write = write
        self.plugin = plugin
        self.not_numbers = tells_not_numbers(write, plugin)
        self.kinds = prepare(write)
        numbers = range(len(self.kinds))
        parts = [numbers[i : i + kinds_per_table] for i in numbers[::kinds_per_table]]
        self.tables = {f"v{part or ''}": kinds for part, kinds in enumerate(parts)}
        for table, kinds in self.tables.items():
            columns = [
                f"{column} {type_}" for number in kinds for column, type_ in self.columns(number)
            ]
            write.run(
                f"create table {table} (id int primary key, touched int, {', '.join(columns)})"
            )

    def columns(self, number: int) -> list[tuple[str, str]]:
        """Give the columns of a kind, each with its type."""
        kind = self.kinds[number]
        return [(f"c{number}", kind.sql), *([(f"a{number}", f"{kind.sql}[]")] * kind.array)]

    def values(self, table: str) -> Iterator[tuple[int, int, Kind, str]]:
        """Give each value of a table with the number of its column and a key of its own."""
        for number in self.tables[table]:
            kind = self.kinds[number]
            for position, value in enumerate(carried(kind, not_numbers=self.not_numbers)):
                yield number, number * 1000 + position * 10, kind, value

    def fill(self) -> None:
        """Write each value as insert, update, unchanged, and NULL."""
        for table in self.tables:
            self.write.run(f"insert into {table} (id) values (-1)")
            for number, key, kind, value in self.values(table):
                self._fill(table, number, key, kind=kind, value=value)

    def _fill(self, table: str, number: int, key: int, *, kind: Kind, value: str) -> None:
        column, literal = f"c{number}", f"({sql_value(value)})::{kind.sql}"
        self.write.run(
            f"insert into {table} (id, {column}) values ({key}, {literal})",
            f"insert into {table} (id) values ({key + 1})",
            f"update {table} set {column} = {literal} where id = {key + 1}",
            f"insert into {table} (id, {column}) values ({key + 2}, {literal})",
            f"update {table} set touched = 1 where id = {key + 2}",
            f"insert into {table} (id, {column}) values ({key + 3}, {literal})",
            f"update {table} set {column} = null where id = {key + 3}",
            f"insert into {table} (id, {column}) values ({key + 4}, {literal})",
            f"update {table} set id = {key + 5} where id = {key + 4}",
        )
        if kind.array:
            array = f"array[{literal}, null, {literal}]"
            self.write.run(
                f"insert into {table} (id, a{number}) values ({key + 6}, {array})",
                f"update {table} set touched = 2 where id = {key + 6}",
            )


@pytest.fixture
def values(write: Database, plugin: str) -> Values:
    return Values(write, plugin)


def pinned(*databases: Database) -> None:
    for database in databases:
        for statement in PINNED:
            database.connection.execute(statement.encode())


MERGED = {"batch_changes": 20_000}
ALONE = {"batch_changes": 1}


@pytest.mark.parametrize("batches", [MERGED, ALONE], ids=["merged", "alone"])
def test_every_type_arrives_as_it_left(
    values: Values, read: Database, configuration: Configure, cdc_run: Run, batches: dict[str, int]
) -> None:
    round_trip(values, read, configuration(values.plugin).with_(read=batches), cdc_run)


def test_every_type_arrives_as_it_left_the_newest_server(
    read: Database, configuration: Configure, cdc_run: Run
) -> None:
    newest = find_wheel()
    require(newest, "the wheel's Postgres server")
    assert newest is not None
    with Server(newest, FAST) as server, closing(Database(server)) as write:
        wanted = configuration("pgoutput").with_(source={"dsn": write.dsn})
        values = Values(write, "pgoutput")
        assert_all_covered(write)
        round_trip(values, read, wanted, cdc_run)


def round_trip(values: Values, read: Database, wanted: Configuration, cdc_run: Run) -> None:
    """Write all values while they are mirrored and looked at; compare both sides."""
    (wanted.folder / "looking.py").write_text(LOOKING)
    mirrors = [{"source": "public.v"}]
    wanted = wanted.with_(projection={"mirrors": mirrors, "modules": ["looking"]})
    cdc_run(wanted)
    values.fill()
    cdc_run(wanted)
    pinned(values.write, read)
    assert_equal_texts(values, read)
    assert_stored_as(values, read)
    assert_seen(values, read)


def assert_equal_texts(values: Values, read: Database) -> None:
    """Column by column, so that a difference is told of its type."""
    for number, kind in enumerate(values.kinds):
        for column, _ in values.columns(number):
            query = f"select id, {{}} from {{}}.v where {column} is distinct from null order by id"
            as_source = query.format(_as_text(kind, column), "public")
            source = values.write.rows(as_source)
            assert source, column
            assert read.rows(query.format(f"{column}::text", "cdc")) == source, kind.sql
    count = "select count(*), sum(id) from {}.v"
    assert read.rows(count.format("cdc")) == values.write.rows(count.format("public"))


def _as_text(kind: Kind, column: str) -> str:
    """Give the source's text. What is stored as text is held to what the type itself prints."""
    return f"{column}::text" if kind.column_type != "text" else f"format('%s', {column})"


COLUMN_TYPES = """
select attname::text, format_type(atttypid, atttypmod) from pg_attribute
where attrelid = '{}.v'::regclass and attnum > 0
"""


def assert_stored_as(values: Values, read: Database) -> None:
    found = dict(read.rows(COLUMN_TYPES.format("cdc")))
    source = dict(values.write.rows(COLUMN_TYPES.format("public")))
    for number, kind in enumerate(values.kinds):
        assert found[f"c{number}"] == (kind.stored_as or source[f"c{number}"]), kind.sql


def assert_seen(values: Values, read: Database) -> None:
    seen = {
        (id_, name): (text, printed)
        for id_, name, text, printed in read.rows("select id, name, seen, printed from cdc.looked")
    }
    for number, key, kind, value in values.values("v"):
        column = f"c{number}"
        printed = values.write.value(
            f"select format('%%s', {column}) from public.v where id = %s", key
        )
        moved_unsent = len(printed) > 2000  # TOAST that the move left alone
        for changed in (key, key + 1, key + 2, key + (4 if moved_unsent else 5)):
            text, told = seen[changed, column]
            assert told == printed, (kind.sql, value[:50])
            wanted = kind.expected(value, printed)
            assert text == shown(wanted), (kind.sql, value[:50])


def test_every_type_that_can_be_a_key_is_one(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    kinds = [kind for kind in prepare(write) if kind.key]
    for number, kind in enumerate(kinds):
        write.run(f"create table k{number} (k {kind.sql} primary key, n int)")
    not_numbers = tells_not_numbers(write, plugin)
    wanted = configuration(plugin, mirrors=[{"source": "public.k*"}])
    cdc_run(wanted)
    for number, kind in enumerate(kinds):
        write_keys(write, f"k{number}", carried(kind, not_numbers=not_numbers), kind.sql)
    for _ in range(2):
        cdc_run(wanted)
        pinned(write, read)
        for number, kind in enumerate(kinds):
            query = f"select {{}}, n from {{}}.k{number} order by n"
            source = write.rows(query.format(_as_text(kind, "k"), "public"))
            assert read.rows(query.format("k::text", "cdc")) == source, kind.sql
        write.run("set search_path = public", "set lc_monetary = 'C'")
        for number in range(len(kinds)):
            write.run(f"delete from k{number} where n > 0")


def write_keys(write: Database, table: str, values: tuple[str, ...], type_: str) -> None:
    """Insert each value as a key, touch it, use it again; move one away and back."""
    short = [value for value in values if len(value) < 2000]
    literals = [f"({sql_value(value)})::{type_}" for value in short]
    for n, literal in enumerate(literals):
        insert = f"insert into {table} values ({literal}, {n}) on conflict do nothing"
        write.run(insert, f"update {table} set n = n where n = {n}")
        write.run(f"delete from {table} where n = {n}", insert)
    if len(short) > 1:
        first, last, n = literals[0], literals[-1], len(short) - 1
        write.run(f"delete from {table} where n = 0")
        write.run(f"update {table} set k = {first} where n = {n}")
        write.commit(
            f"update {table} set k = {last} where n = {n}",
            f"update {table} set n = -1 where n = {n}",
            f"update {table} set k = {first} where n = -1",
        )


def test_xml_arrives_as_the_server_prints_it(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    """The type's own output function drops the declaration, which a cast to text keeps."""
    write.run("create table t (id int primary key, x xml)")
    wanted = configuration(plugin, mirrors=[{"source": "public.t"}])
    cdc_run(wanted)
    write.run("""insert into t values (1, '<?xml version="1.0" encoding="UTF-8"?><a/>')""")
    cdc_run(wanted)
    assert write.value("select format('%s', x) from t") == "<a/>"
    assert read.value("select x::text from t") == "<a/>"

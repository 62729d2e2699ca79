"""Both plugins decode the same writes into the same transactions."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from cdc.assemble import Assembler, Transaction
from cdc.change import Deleted, Inserted, Truncated, Updated
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operate.setup import Plan
from cdc.projection.mirror import mirrors
from cdc.projection.registry import Registry
from cdc.settings import MirrorSettings
from cdc.source import pgoutput, publication, wal2json
from cdc.source.catalog import describe
from cdc.source.connection import connect, connect_replication
from cdc.source.frame import HEADER_BYTES
from cdc.source.relations import Relations
from cdc.source.slot import mark_now
from cdc.source.slot_creation import create_slot
from cdc.source.stream import Stream
from cdc.values import UNCHANGED
from tests.conftest import Database, require

PLUGINS = {"wal2json": wal2json.Wal2Json, "pgoutput": pgoutput.PgOutput}


class Recorder:
    """Two slots, made before the writes and read after them by one plugin each."""

    def __init__(self, write: Database, tables: Iterable[str], plugins: Iterable[str]) -> None:
        self.write = write
        self.source = connect(write.dsn)
        self.schema = describe(self.source, [TableName.parse(table) for table in tables])
        insert_only = [name for name, table in self.schema.items() if not table.key]
        settings = [
            MirrorSettings(source=str(name), target=str(name), insert_only=name in insert_only)
            for name in self.schema
        ]
        registry = Registry(mirrors(settings, self.schema, hash_key=b""))
        self.plan = Plan(registry, self.schema)
        self.publications = self.plan.publications(f"pub_{write.name}")
        publication.publish(self.source, self.publications, slot_exists=False)
        self.slots = {plugin: f"{plugin}_{write.name}" for plugin in plugins}
        self.starts = {plugin: self.create(plugin) for plugin in self.slots}

    def create(self, plugin: str) -> Lsn:
        with connect_replication(self.write.dsn) as replication:
            slot = self.slots[plugin]
            return create_slot(replication, slot, plugin, source=self.source, seconds=0)

    def options(self, plugin: str) -> dict[str, str]:
        if plugin == "pgoutput":
            return pgoutput.options(self.publications)
        return wal2json.options(
            name for table in self.schema.values() for name in (table.name, *table.leaves)
        )

    def transactions(self, plugin: str, *, piece_bytes: int = 2**40) -> list[Transaction]:
        """Give the transactions that have changes, to what is committed now."""
        target = mark_now(self.source)
        with connect_replication(self.write.dsn) as replication:
            stream = Stream(replication, slot=self.slots[plugin], options=self.options(plugin))
            stream.start(self.starts[plugin])
            try:
                whole = list(self.streamed(plugin, stream, target, piece_bytes))
            finally:
                stream.close()
        return [one for one in whole if one.changes or piece_bytes < 2**40]

    def streamed(
        self, plugin: str, stream: Stream, target: Lsn, piece_bytes: int
    ) -> Iterator[Transaction]:
        decoder = PLUGINS[plugin](Relations(self.schema))
        assembler = Assembler(self.starts[plugin], piece_bytes=piece_bytes)
        while True:
            frames, _ = stream.read(seconds=1.0)
            for frame in frames:
                for message in decoder.decode(frame[HEADER_BYTES:]):
                    whole = assembler.feed(message, len(frame))
                    if whole is not None:
                        yield whole
            stream.feedback()
            if stream.received >= target and assembler.between_transactions:
                return

    def close(self) -> None:
        self.source.close()


@pytest.fixture
def recorder(write: Database) -> Iterator[Callable[..., Recorder]]:
    require(write.server.installation.wal2json, "wal2json")
    made: list[Recorder] = []

    def make(*tables: str) -> Recorder:
        made.append(Recorder(write, tables, PLUGINS))
        return made[-1]

    yield make
    for recorder in made:
        recorder.close()


def shown(change: Any) -> tuple[Any, ...]:
    relation = change.relation
    if isinstance(change, Truncated):
        return ("truncated", relation.name)
    columns = tuple((c.name, c.type_oid, c.decoded_as) for c in relation.columns)
    head = (type(change).__name__, relation.name, columns, relation.key)
    match change:
        case Inserted():
            return (*head, change.values)
        case Updated():
            old = change.old_key_values, change.old_values
            return (*head, change.values, *old, change.partial)
        case Deleted():
            return (*head, change.key_values, change.old_values)


def compared(transaction: Transaction) -> tuple[Any, ...]:
    lsns = transaction.commit_lsn, transaction.end_lsn
    changes = [shown(change) for change in transaction.changes]
    return (transaction.xid, *lsns, transaction.commit_time, changes)


def same(recorder: Recorder) -> list[Transaction]:
    """Hold both plugins' transactions to one another; give them."""
    by_json, by_pgoutput = (recorder.transactions(plugin) for plugin in PLUGINS)
    assert list(map(compared, by_json)) == list(map(compared, by_pgoutput))
    return by_json


def changes(transactions: list[Transaction]) -> list[Any]:
    return [change for one in transactions for change in one.changes]


TYPES = {
    "smallint": ["-32768", "0", "32767"],
    "integer": ["-2147483648", "2147483647"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "numeric": ["0", "0.000", "-0.00000000000000000001", "1" + "0" * 200, "3." + "14159" * 10],
    "numeric(10,2)": ["12345678.90", "-0.01"],
    "real": ["1.5", "-0", "1e-30", "3.4028235e+38", "0.1"],
    "double precision": [
        "-0",
        "0",
        "1e-300",
        "1.7976931348623157e+308",
        "0.1",
        "1e15",
        "123456789",
    ],
    "text": ["", "a\tb\nc\\d\"e'f\x01\x7f", "é😀\u2028", "null", "\\N", "\\."],
    "varchar(5)": ["abcde", ""],
    "char(5)": ["ab", ""],
    '"char"': ["x"],
    "name": ["pg_x"],
    "bytea": ["\\x", "\\xdeadbeef00", "\\x5c"],
    "boolean": ["t", "f"],
    "date": ["2024-02-29", "infinity", "0044-03-15 BC", "10000-01-01"],
    "time": ["24:00:00", "00:00:00.000001"],
    "timetz": ["12:00:00+05:30"],
    "timestamp": ["2024-02-29 10:34:56.123456", "-infinity", "0044-03-15 00:00:00 BC"],
    "timestamptz": ["2024-02-29 10:34:56.1+02", "infinity", "10000-01-01 00:00:00+00"],
    "interval": ["1 year 2 mons -3 days 04:05:06.7", "-00:00:01"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a": 1,  "a":2}', "null", '"x"', "1e400"],
    "jsonb": ['{"a": [1, 2.50, null]}', "null", "12345678901234567890.5"],
    "xml": ["<a>&lt;é</a>"],
    "inet": ["10.0.0.1/8", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "bit(3)": ["101"],
    "varbit": ["", "0101"],
    "point": ["(1,-2.5)"],
    "box": ["(3,4),(1,2)"],
    "tsvector": ["'a':1 'b':2A"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "nummultirange": ["{[1.5,2),[3,)}", "{}"],
    "integer[]": ["{1,NULL,3}", "{}", "{{1,2},{3,4}}", "[0:1]={1,2}"],
    "text[]": ['{"a,b","c\\"d","\\\\",NULL,"NULL",""}'],
    "bytea[]": ['{"\\\\xff",NULL}'],
    "double precision[]": ["{NaN,Infinity,-0}"],
    "timestamptz[]": ['{"2024-02-29 10:34:56+00",infinity}'],
    "money": ["$1,234.50"],
    "pg_lsn": ["16/B374D848"],
    "oid": ["4294967295"],
    "mood": ["so so"],
    "positive": ["7"],
    "price": ["1.50"],
    "flag": ["t"],
    "raw": ["\\xff"],
    "pair": ['(1,"x,""y")'],
    "mood[]": ['{"so so",ok}'],
    "price[]": ["{1.50,2}"],
}
USER_TYPES = (
    "create type mood as enum ('ok', 'so so')",
    "create domain positive as int check (value > 0)",
    "create domain price as numeric(10,2)",
    "create domain flag as boolean",
    "create domain raw as bytea",
    "create type pair as (a int, b text)",
)


def test_every_type_as_value_null_and_unchanged(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(TYPES))
    write.run(*USER_TYPES, f"create table t (id int primary key, {columns}, touched int)")
    record = recorder("public.t")
    write.run("insert into t (id) values (0)")
    insert = "insert into t (id, {}) values ({}, %s)"
    for number, values in enumerate(TYPES.values()):
        for position, value in enumerate(values, 1):
            key = number * 100 + position
            write.connection.execute(insert.format(f"c{number}", key).encode(), [value])
            write.run(f"update t set touched = 1 where id = {key}")
            write.run(f"update t set c{number} = null, id = -id where id = {key}")
    write.run("delete from t")
    transactions = same(record)
    inserted = {c.values[0]: c for c in changes(transactions) if isinstance(c, Inserted)}
    for number, (type_, values) in enumerate(TYPES.items()):
        for position, value in enumerate(values, 1):
            printed = write.value(f"select format('%%s', %s::{type_})", value)
            assert inserted[str(number * 100 + position)].row.text(f"c{number}") == printed, type_


def test_a_megabyte_that_is_unchanged_is_not_sent_and_not_null(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run(
        "create table plain (id int primary key, big text, v int, b bytea)",
        "create table whole (id int primary key, big text, v int, b bytea)",
        "alter table whole replica identity full",
        "create table indexed (id int primary key, big text, v int not null, b bytea)",
        "create unique index indexed_v on indexed (v)",
        "alter table indexed replica identity using index indexed_v",
        *(f"alter table {t} alter big set storage external" for t in ("plain", "whole", "indexed")),
    )
    record = recorder("plain", "whole", "indexed")
    for table in ("plain", "whole", "indexed"):
        write.run(
            f"insert into {table} values (1, repeat('x', 1000000), 1, repeat('b', 9000)::bytea)",
            f"update {table} set v = 2",
            f"update {table} set id = 2, v = 3",
            f"update {table} set big = repeat('y', 1000000)",
            f"update {table} set big = null",
            f"delete from {table}",
        )
        write.commit(
            f"insert into {table} values (1, repeat('x', 1000000), 1, null)",
            f"update {table} set v = v + 1",
        )
    found = changes(same(record))
    updates = [c for c in found if isinstance(c, Updated) and c.relation.name.table == "plain"]
    assert [c.row.text("big") is UNCHANGED for c in updates] == [True, True, False, False, True]
    assert updates[1].old_key_values == ("1",)
    full = [c for c in found if isinstance(c, Updated) and c.relation.name.table == "whole"]
    assert not any(c.partial for c in full)
    assert full[0].row["big"] == "x" * 1_000_000


def test_a_toasted_key(write: Database, recorder: Callable[..., Recorder]) -> None:
    write.run(
        "create table t (k text primary key, v int, w text)",
        "alter table t alter k set storage external",
    )
    record = recorder("t")
    write.run(
        "insert into t select string_agg(i::text, ','), 1, 'w' from generate_series(1, 500) i",
        "update t set v = 2",
        "update t set k = k || 'x'",
        "delete from t",
    )
    found = changes(same(record))
    assert [type(c) for c in found] == [Inserted, Updated, Updated, Deleted]
    assert not found[1].partial
    assert found[1].old_key_values is None


def test_keys_that_change_swap_and_are_used_again(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table t (v text, b int, a int, primary key (a, b))")
    record = recorder("t")
    write.run("insert into t select 'x', i, i from generate_series(1, 4) i")
    write.commit(
        "update t set a = 0 where a = 1",
        "update t set a = 1 where a = 2",
        "update t set a = 2 where a = 0",
    )
    write.run("update t set a = a, b = b", "update t set b = -b", "delete from t where a = 3")
    write.commit("insert into t values ('y', 3, 3)", "delete from t where a = 3")
    write.run("insert into t values ('z', 3, 3)")
    same(record)


def test_every_replica_identity(write: Database, recorder: Callable[..., Recorder]) -> None:
    write.run(
        "create table whole (id int primary key, v text)",
        "alter table whole replica identity full",
        "create table keyless (a int, b text)",
        "alter table keyless replica identity full",
        "create table indexed (id int primary key, b int not null, a text not null, v int)",
        "create unique index by_a_b on indexed (a, b)",
        "alter table indexed replica identity using index by_a_b",
        "create table only_key (a int, b int, primary key (b, a))",
        "alter table only_key replica identity full",
    )
    record = recorder("whole", "indexed", "only_key")
    write.run(
        "insert into whole values (1, null), (2, 'b')",
        "update whole set v = 'c' where id = 1",
        "update whole set id = 3 where id = 2",
        "delete from whole",
        "insert into indexed values (1, 2, 'x', 4)",
        "update indexed set id = 5, v = null",
        "update indexed set a = 'y', v = 6",
        "delete from indexed",
        "insert into only_key values (1, 2)",
        "update only_key set a = 3",
        "delete from only_key",
    )
    found = changes(same(record))
    indexed = [c for c in found if c.relation.name.table == "indexed"]
    assert indexed[0].relation.key == ("a", "b")
    assert indexed[2].old_key_values == ("x", "2")


def test_a_table_without_a_key_has_its_inserts_and_truncates(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table log (at timestamptz, what text)")
    record = recorder("log")
    write.run("insert into log values (now(), 'a'), (null, 'a')", "truncate log")
    assert [type(c) for c in changes(same(record))] == [Inserted, Inserted, Truncated]


def test_truncates_of_one_many_and_cascading(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run(
        "create table a (id int primary key)",
        "create table b (id int primary key references a)",
        "create table c (id serial primary key)",
        "create table unwanted (id int primary key)",
    )
    record = recorder("a", "b", "c")
    write.run("insert into a values (1)", "insert into b values (1)")
    write.run("truncate c restart identity", "truncate a, b, unwanted", "truncate a cascade")
    write.commit("insert into a values (1)", "truncate a cascade", "insert into a values (2)")
    by_plugin = [record.transactions(plugin) for plugin in PLUGINS]

    def told(transactions: list[Transaction]) -> list[Any]:
        # One truncate's tables are a set: the plugins need not tell them in one order.
        return [
            (one.xid, one.end_lsn, sorted(map(repr, map(shown, one.changes))))
            for one in transactions
        ]

    assert told(by_plugin[0]) == told(by_plugin[1])
    assert len(changes(by_plugin[0])) == 2 + 1 + 2 + 2 + 4


def test_generated_and_dropped_columns_and_defaults(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run(
        "create table t (id int generated always as identity primary key, gone int, v text, "
        "doubled text generated always as (v || v) stored, d int default 5)",
        "alter table t drop column gone",
        "alter table t add column later text default 'later'",
    )
    record = recorder("t")
    write.run(
        "insert into t (v) values ('a'), (null)",
        "update t set v = 'b'",
        "update t set v = repeat('x', 5000)",
        "update t set d = 6",
        "delete from t",
    )
    found = changes(same(record))
    assert found[0].relation.names == ("id", "v", "d", "later")
    assert dict(found[0].row) == {"id": 1, "v": "a", "d": 5, "later": "later"}


def test_partitions_are_told_as_their_root(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run(
        "create table p (id int, k int, v text, primary key (id, k)) partition by range (k)",
        "create table p1 partition of p for values from (0) to (10)",
        "create table p2 (v text, k int not null, id int not null, gone int)",
        "alter table p2 drop column gone",
        "alter table p attach partition p2 for values from (10) to (20)",
        "create table p3 partition of p for values from (20) to (30) partition by list (id)",
        "create table p3a partition of p3 default",
    )
    record = recorder("p")
    write.run(
        "insert into p values (1, 1, 'a'), (2, 11, 'b'), (3, 21, 'c')",
        "update p set v = 'd'",
        "update p set id = 9 where id = 3",
        "update p set k = 12 where id = 1",
        "update p set k = 25 where id = 2",
        "delete from p where id = 9",
    )
    found = changes(same(record))
    assert {c.relation.name for c in found} == {TableName("public", "p")}


def test_a_truncate_of_a_partitioned_table_is_told_once(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run(
        "create table p (id int primary key) partition by range (id)",
        "create table p1 partition of p for values from (0) to (10)",
        "create table p2 partition of p for values from (10) to (20)",
    )
    record = recorder("p")
    write.run("insert into p values (1), (11)", "truncate p")
    assert [type(c) for c in changes(same(record))] == [Inserted, Inserted, Truncated]


def test_a_truncate_of_one_partition_is_not_taken_for_one_of_the_whole(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run(
        "create table p (id int primary key) partition by range (id)",
        "create table p1 partition of p for values from (0) to (10)",
        "create table p2 partition of p for values from (10) to (20)",
    )
    record = recorder("p")
    write.run("insert into p values (1), (11)", "truncate p1")
    for plugin in PLUGINS:
        # Which rows are gone cannot be told: an error is right, nothing (pgoutput) is not better
        # but all that is sent; all rows gone is wrong.
        with suppress(ProtocolError):
            found = changes(record.transactions(plugin))
            assert not any(isinstance(change, Truncated) for change in found), plugin


NAMES = ["Mixed Case", "dot.ted", 'quo"ted', "per%cent", "back\\slash", "Straße", "a,b", "it's"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_schema_table_and_column(
    write: Database, recorder: Callable[..., Recorder], name: str
) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    table = f"{quoted}.{quoted}"
    write.run(
        f"create schema {quoted}",
        f"create type {table} as enum ('a')",
        f'create table {quoted}.{quoted[:-1]}_t" ({quoted} int primary key, e {table}, v text)',
        "create table other (id int primary key)",
    )
    record = recorder(str(TableName(name, f"{name}_t")))
    target = f'{quoted}.{quoted[:-1]}_t"'
    write.run(
        f"insert into {target} values (1, 'a', 'x')",
        f"update {target} set {quoted} = 2",
        f"delete from {target}",
        f"truncate {target}",
        "insert into other values (1)",
    )
    found = changes(same(record))
    assert [type(c) for c in found] == [Inserted, Updated, Deleted, Truncated]
    assert found[0].relation.name == (name, f"{name}_t")
    assert found[0].relation.names[0] == name


def test_what_is_rolled_back_is_not_told(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table t (id int primary key, v int)")
    record = recorder("t")
    write.run(
        "begin",
        "insert into t values (1)",
        "savepoint a",
        "insert into t values (2)",
        "rollback to a",
        "insert into t values (3)",
        "savepoint b",
        "update t set v = 1",
        "release b",
        "commit",
        "begin",
        "insert into t values (4)",
        "rollback",
        "do $$ begin insert into t values (5); begin insert into t values (6); "
        "raise exception 'x'; exception when others then insert into t values (7); end; end $$",
    )
    found = changes(same(record))
    assert [c.values[0] for c in found] == ["1", "3", "1", "3", "5", "7"]


def test_prepared_transactions_come_when_they_commit(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table t (id int primary key)")
    record = recorder("t")
    name = write.name
    write.run(
        "begin",
        "insert into t values (1)",
        f"prepare transaction '{name}_a'",
        "begin",
        "insert into t values (2)",
        f"prepare transaction '{name}_b'",
        "begin",
        "insert into t values (3)",
        f"prepare transaction '{name}_c'",
        "insert into t values (4)",
        f"commit prepared '{name}_b'",
        f"rollback prepared '{name}_c'",
        f"commit prepared '{name}_a'",
    )
    transactions = same(record)
    assert [c.values[0] for c in changes(transactions)] == ["4", "2", "1"]
    ends = [one.end_lsn for one in transactions]
    assert ends == sorted(ends)  # type: ignore[type-var]


def test_interleaved_transactions_come_in_the_order_of_their_commits(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table t (id int primary key)")
    record = recorder("t")
    with write.connect(autocommit=False) as first, write.connect(autocommit=False) as second:
        for number in range(6):
            (first, second)[number % 2].execute("insert into t values (%s)", [number])
        second.commit()
        first.commit()
    assert [c.values[0] for c in changes(same(record))] == ["1", "3", "5", "0", "2", "4"]


def test_empty_transactions_and_messages_are_nothing(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table t (id int primary key)", "create table unwanted (id int primary key)")
    record = recorder("t")
    message = "select pg_logical_emit_message({}, '{}', '{}')"
    write.run(
        "insert into unwanted values (1)",
        "create table later (id int)",
        message.format("true", "cdc", "x"),
        message.format("false", "cdc", "y"),
        message.format("true", "someone", 'low "x"'),
        "select pg_logical_emit_message(true, 'bytes', '\\xff00'::bytea)",
        "begin",
        message.format("true", "cdc", "z"),
        "insert into t values (1)",
        "commit",
        "analyze",
    )
    assert len(same(record)) == 1


def test_columns_that_come_and_go_while_streaming(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table t (id int primary key, v text, w int)")
    record = recorder("t")
    write.run("insert into t values (1, 'a', 1)")
    write.commit(
        "alter table t add column x text default 'x'",
        "insert into t values (2, 'b', 2, 'y')",
        "alter table t drop column w",
        "insert into t values (3, 'c', 'z')",
        "alter table t rename column v to u",
        "insert into t values (4, 'd', 'z')",
    )
    write.run("alter table t alter u type varchar(10)", "insert into t values (5, 'e', 'z')")
    names = [c.relation.names for c in changes(same(record))]
    assert names[0] == ("id", "v", "w")
    assert names[-1] == ("id", "u", "x")


def test_a_large_transaction_comes_in_pieces_that_make_up_the_whole(
    write: Database, recorder: Callable[..., Recorder]
) -> None:
    write.run("create table t (id int primary key, v text)")
    record = recorder("t")
    write.commit(
        "insert into t select i, 'x' from generate_series(1, 3000) i",
        "delete from t where id < 100",
    )
    write.run("insert into t values (1)")
    for plugin in PLUGINS:
        whole = record.transactions(plugin)
        pieces = record.transactions(plugin, piece_bytes=10_000)
        assert len(pieces) > 5
        assert [shown(c) for c in changes(pieces)] == [shown(c) for c in changes(whole)]
        assert {one.end_lsn for one in whole} <= {one.end_lsn for one in pieces if one.ends}


@pytest.mark.parametrize("seed", range(3))
def test_random_writes(write: Database, recorder: Callable[..., Recorder], seed: int) -> None:
    write.run(
        "create table a (id int primary key, n numeric, t text, b bytea, f float8)",
        "create table b (k text, i int, t text, primary key (k, i))",
        "alter table b replica identity full",
        "alter table a alter t set storage external",
    )
    record = recorder("a", "b")
    choose = random.Random(seed)
    for _ in range(60):
        statements = [random_statement(choose) for _ in range(choose.randint(1, 6))]
        with suppress(Exception):
            write.commit(*statements)
    assert len(same(record)) > 5


def random_statement(choose: random.Random) -> str:
    key, other = choose.randint(1, 8), choose.randint(1, 8)
    long = f"repeat('{choose.choice('xyz')}', {choose.choice([1, 10, 9000])})"
    return choose.choice(
        [
            (
                f"insert into a values ({key}, random(), {long}, '\\x00ff', -0.0) "
                f"on conflict (id) do update set n = excluded.n"
            ),
            f"update a set n = {key}.{other}0 where id <> {other}",
            f"update a set id = {key} where id = {other}",
            f"update a set t = null, b = null where id = {key}",
            f"delete from a where id = {key}",
            f"insert into b values ({long}, {key}, {long}) on conflict do nothing",
            f"update b set i = i + {other}, t = {long} where i = {key}",
            f"update b set k = k || 'x' where i = {key}",
            f"delete from b where i = {key}",
            "truncate b" if choose.random() < 0.2 else "select 1",
        ]
    )

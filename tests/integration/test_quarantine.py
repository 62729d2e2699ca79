"""What fails for a reason that will not pass is set aside, key by key, in every dialect."""

import logging
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from cdc import Delete, Upsert, projector
from cdc.assemble import Transaction, placed_at
from cdc.change import Change, Column, Deleted, Inserted, Relation, Truncated, Updated
from cdc.copy_state import Unit
from cdc.errors import ProjectionError, QuarantineFull, ReadUnavailable, WriteRefused
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.projection.batch import Batch
from cdc.projection.quarantine import from_json, to_json
from cdc.projection.registry import Registry
from cdc.sink import checkpoint, quarantine, tables
from cdc.sink.engine import create_engine
from cdc.sink.writer import Writer
from cdc.values import UNCHANGED
from tests.conftest import Configuration, Database, RunningDaemon, alive, uncollected, until
from tests.read_databases import ReadDatabase, losing

NOW = datetime(2024, 1, 1, tzinfo=UTC)
IDENTITY = checkpoint.Identity("s", "pgoutput", "7", 1)
START = Lsn(100)
SOURCE = Relation(
    TableName("public", "source"), (Column("id", 23, 23), Column("v", 25, 25)), ("id",)
)
CHILD = Relation(
    TableName("public", "child"), (Column("id", 23, 23), Column("parent", 23, 23)), ("id",)
)
UNIT = Unit("parents", SOURCE.name)
CHILDREN = Unit("children", CHILD.name)
SECRET = "s3cr3t"

METADATA = sa.MetaData()
PARENT_TABLE = sa.Table(
    "parent",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("v", sa.String(40), nullable=False, unique=True),
)
CHILD_TABLE = sa.Table(
    "child",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("parent", sa.ForeignKey(PARENT_TABLE.c.id), nullable=False),
)


class Raising:
    """What the projector raises on; a test mends it."""

    def __init__(self) -> None:
        self.on: set[str] = {"raise"}
        self.mended = False

    def __call__(self, key: int, value: Any) -> Any:
        if value in self.on:
            raise ValueError(SECRET)
        return f"{key}: {value}" if self.mended else value


class Sink:
    """A writer that sets aside, on a database of its own, and what the source has."""

    def __init__(self, store: ReadDatabase, *, limit: int | None = 50) -> None:
        self.store = store
        self.raising = Raising()
        self.registry = Registry(projectors(self.raising))
        self.engine = create_engine(store.url)
        self.lsn, self.xids = START, count(1)
        self.source: dict[str, str | None] = {}
        self.begin(limit)

    def begin(self, limit: int | None = 50) -> None:
        """Open a writer, as a daemon does that starts."""
        self.limit = limit
        self.writer = Writer(self.engine, IDENTITY.slot, quarantine_limit=limit)
        connection = self.connection = self.writer.open()
        with connection.begin():
            wanted = [checkpoint.TABLE, quarantine.TABLE, PARENT_TABLE, CHILD_TABLE]
            tables.create(connection, tables.missing(connection, wanted))
            stored = checkpoint.load(connection, IDENTITY.slot)
        if stored is None:
            with connection.begin():
                checkpoint.intend(connection, IDENTITY)
                checkpoint.advance(connection, IDENTITY, old=None, new=START, commit_time=None)
        lsn = stored.lsn if stored else START
        assert lsn is not None
        self.writer.resume(IDENTITY, lsn, self.registry)

    def again(self, limit: int | None = 50) -> None:
        """Let another writer go on, of whom nothing is known but what is stored."""
        self.writer.close()
        self.begin(limit)

    def transaction(self, *changes: Change, ends: bool = True) -> Transaction:
        commit_lsn, self.lsn = self.lsn, Lsn(self.lsn + 10)
        xid = next(self.xids)
        return Transaction(
            xid, commit_lsn, self.lsn if ends else None, NOW, list(changes), len(changes)
        )

    def batch(self, *transactions: Transaction, copied: bool = False) -> Batch:
        batch = Batch(held=self.writer.held)
        for one in transactions:
            if copied:
                batch.add_copied(one, self.registry)
                batch.reach(one.commit_lsn)
            else:
                batch.add(one, self.registry)
        return batch

    def apply(self, *changes: Change) -> None:
        """Apply changes as one transaction of a batch of its own."""
        self.writer.apply(self.batch(self.transaction(*changes)))

    def each(self, *changes: Change) -> None:
        """Apply changes as transactions of one batch."""
        self.writer.apply(self.batch(*(self.transaction(change) for change in changes)))

    def copy(self, *changes: Change) -> None:
        self.writer.apply(self.batch(placed_at(self.lsn, list(changes)), copied=True))

    def parents(self) -> list[tuple[Any, ...]]:
        return self.store.query("select id, v from parent order by id")

    def children(self) -> list[tuple[Any, ...]]:
        return self.store.query("select id, parent from child order by id")

    def held(self, unit: Unit = UNIT) -> list[str]:
        """Give the keys in quarantine: those that the writer knows are those that are stored."""
        with self.engine.connect() as connection:
            stored, _ = quarantine.load(connection, IDENTITY.slot, isolates=True)
        assert stored.chains == self.writer.held.chains
        return sorted(str(key[0]) for key in stored.of(unit))

    def stored(self) -> list[quarantine.Described]:
        with self.engine.connect() as connection:
            return quarantine.describe(connection, IDENTITY.slot)

    def wish(self, wish: quarantine.Wish, *chains: int) -> None:
        """Ask for something as a command does, and let the writer see to it."""
        self.ask(wish, *chains)
        self.attend()

    def ask(self, wish: quarantine.Wish, *chains: int) -> None:
        chosen = chains or [one.chain for one in self.stored()]
        with self.engine.begin() as connection:
            quarantine.ask(connection, IDENTITY.slot, chosen, wish)

    def attend(self) -> None:
        self.writer._look_at = 0.0
        self.writer.attend()


def projectors(raising: Raising) -> list[Any]:
    @projector("public.source", into=PARENT_TABLE, name="parents")
    def parents(change: Any) -> Any:
        if isinstance(change, Deleted):
            return Delete(PARENT_TABLE, id=change.key["id"])
        key = change.row["id"]
        return Upsert(PARENT_TABLE, id=key, v=raising(key, change.row["v"]))

    @projector("public.child", into=CHILD_TABLE, name="children")
    def children(change: Any) -> Any:
        if isinstance(change, Deleted):
            return Delete(CHILD_TABLE, id=change.key["id"])
        return Upsert(CHILD_TABLE, id=change.row["id"], parent=change.row["parent"])

    return [parents, children]


def inserted(key: int, v: str | None, *, copied: bool = False) -> Change:
    return Inserted(SOURCE, (str(key), v), copied=copied)


def updated(key: int, v: str | None, *, old: int | None = None) -> Change:
    return Updated(SOURCE, (str(key), v), None if old is None else (str(old),))


def deleted(key: int) -> Change:
    return Deleted(SOURCE, (str(key),))


def child(key: int, parent: int) -> Change:
    return Inserted(CHILD, (str(key), str(parent)))


@pytest.fixture
def sink_of(store: ReadDatabase) -> Iterator[Callable[..., Sink]]:
    made: list[Sink] = []

    def make(**options: Any) -> Sink:
        made.append(Sink(store, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.writer.close()
        sink.engine.dispose()


@pytest.fixture
def sink(sink_of: Callable[..., Sink]) -> Sink:
    return sink_of()


# What is set aside.


def test_a_change_whose_projection_raises_is_set_aside_and_all_else_flows_on(sink: Sink) -> None:
    sink.each(inserted(1, "a"), inserted(2, "raise"), inserted(3, "c"), updated(2, "d"))
    assert sink.parents() == [(1, "a"), (3, "c")]
    sink.apply(inserted(4, "e"), updated(2, "f"))  # by the way that costs nothing
    assert sink.parents() == [(1, "a"), (3, "c"), (4, "e")]
    assert sink.held() == ["2"]
    assert [one.changes for one in sink.stored()] == [3]


def test_a_batch_with_poison_goes_from_memory_once_it_is_applied(sink: Sink) -> None:
    """At once, and not when Python's collector comes to look for what refers to itself."""
    with uncollected():
        for key, poison in enumerate(("raise", None)):
            sink.apply(inserted(1, "a"), inserted(2 + key, poison))
            assert not alive(Transaction)
    assert sink.held() == ["2", "3"]


def test_a_row_that_the_read_database_refuses_is_set_aside(sink: Sink) -> None:
    sink.each(inserted(1, "a"), inserted(2, None), inserted(3, "a"), updated(1, "b"))
    assert (sink.parents(), sink.held()) == ([(1, "b")], ["2", "3"])
    errors = {one.keys[0][0]: one.error for one in sink.stored()}
    assert "null" in errors["2"].lower()
    assert "uni" in errors["3"].lower() or "23505" in errors["3"] or "1062" in errors["3"]


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_what_a_trigger_refuses_is_set_aside(sink: Sink) -> None:
    sink.store.query(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin if new.v = 'bad' then raise exception 'no'; end if; "
        "if new.v = 'own' then raise exception 'no' using errcode = 'SHOP1'; end if; "
        "return new; end $$; "
        "create trigger refuses before insert or update on parent "
        "for each row execute function refuse()"
    )
    sink.each(inserted(1, "bad"), inserted(2, "b"), inserted(3, "own"))
    assert (sink.held(), sink.parents()) == (["1", "3"], [(2, "b")])
    assert [one.error[-7:] for one in sink.stored()] == ["(P0001)", "(SHOP1)"]


def test_what_is_in_one_transaction_with_poison_is_applied(sink: Sink) -> None:
    changes = [inserted(key, f"v{key}") for key in range(100)]
    changes[50] = inserted(50, None)
    before = sink.writer.steps
    sink.apply(*changes, updated(50, None), updated(51, "other"))
    assert sink.writer.steps > before + 2  # each part of it is seen to get on
    assert sink.held() == ["50"]
    assert len(sink.parents()) == 99
    assert (51, "other") in sink.parents()


def test_a_child_follows_its_parent_and_both_come_back(sink: Sink) -> None:
    sink.apply(inserted(1, None), child(10, 1))
    sink.apply(child(11, 1), inserted(2, "b"), child(12, 2))
    assert (sink.held(), sink.held(CHILDREN)) == (["1"], ["10", "11"])
    assert sink.children() == [(12, 2)]
    sink.apply(updated(1, "a"))
    sink.wish("replay")  # the net effect is no poison any more
    assert sink.parents() == [(1, "a"), (2, "b")]
    assert sink.children() == [(10, 1), (11, 1), (12, 2)]
    assert sink.stored() == []


def test_a_child_that_comes_before_its_parent_is_no_poison(sink: Sink) -> None:
    sink.apply(child(10, 1), inserted(2, None), inserted(1, "a"))
    assert sink.held() == ["2"]
    assert sink.children() == [(10, 1)]


def test_a_row_that_moves_takes_its_new_key_into_quarantine(sink: Sink) -> None:
    sink.each(inserted(1, "a"), updated(1, "raise"))
    sink.each(updated(2, "b", old=1), updated(2, "c"), inserted(1, "new"), inserted(3, "d"))
    assert sink.held() == ["1", "2"]
    assert sink.parents() == [(1, "a"), (3, "d")]
    assert [one.changes for one in sink.stored()] == [4]
    sink.raising.on.clear()
    sink.wish("replay")
    assert sink.parents() == [(1, "new"), (2, "c"), (3, "d")]


def test_a_row_that_moves_between_two_keys_in_quarantine_joins_them(sink: Sink) -> None:
    sink.each(inserted(1, "raise"), inserted(2, None), deleted(2), updated(2, "b", old=1))
    (one,) = sink.stored()
    assert (set(one.keys), one.changes) == ({("1",), ("2",)}, 4)
    sink.again()
    sink.raising.on.clear()
    sink.wish("replay")
    assert (sink.parents(), sink.held()) == ([(2, "b")], [])


def test_a_move_that_fails_holds_both_keys(sink: Sink) -> None:
    sink.apply(inserted(1, "a"))
    sink.apply(updated(2, "raise", old=1))
    assert sink.held() == ["1", "2"]
    sink.raising.on.clear()
    sink.wish("replay")
    assert sink.parents() == [(2, "raise")]


def test_a_truncate_clears_the_quarantine_of_its_table(sink: Sink) -> None:
    sink.apply(child(1, 1), inserted(5, "raise"))
    sink.each(Truncated(CHILD), inserted(6, "b"))
    assert (sink.held(), sink.held(CHILDREN)) == (["5"], [])
    sink.apply(inserted(7, "raise"), Truncated(CHILD), Truncated(SOURCE), inserted(5, "a"))
    assert sink.parents() == [(5, "a")]
    assert sink.stored() == []


def test_what_is_set_aside_is_known_after_a_restart(sink: Sink) -> None:
    sink.apply(inserted(1, "raise"))
    sink.again()
    sink.apply(updated(1, "a"), inserted(2, "b"))
    assert (sink.held(), sink.parents()) == (["1"], [(2, "b")])
    sink.raising.on.clear()
    sink.wish("replay")
    assert sink.parents() == [(1, "a"), (2, "b")]


def test_a_batch_projected_before_a_key_was_set_aside_knows_of_it(sink: Sink) -> None:
    first = sink.batch(sink.transaction(inserted(1, None)))
    second = sink.batch(sink.transaction(updated(1, "a"), inserted(2, "b")))
    sink.writer.apply(first)
    sink.writer.apply(second)
    assert (sink.held(), sink.parents()) == (["1"], [(2, "b")])
    third = sink.batch(sink.transaction(updated(1, "c")))
    sink.wish("replay")
    sink.writer.apply(third)
    assert (sink.held(), sink.parents()) == ([], [(1, "c"), (2, "b")])


def test_a_transaction_in_pieces_sets_aside_too(sink: Sink) -> None:
    pieces = [
        sink.transaction(inserted(1, "a"), inserted(2, None), ends=False),
        sink.transaction(updated(2, "b"), inserted(3, "c"), ends=False),
        sink.transaction(inserted(4, "d")),
    ]
    for piece in pieces:
        batch = sink.batch(piece)
        batch.continues = piece is not pieces[0]
        sink.writer.apply(batch)
    assert (sink.held(), sink.parents()) == (["2"], [(1, "a"), (3, "c"), (4, "d")])


# A fault.


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)
def test_what_is_too_large_to_be_set_aside_is_told(sink: Sink) -> None:
    """The server hangs up on it, which looks like one that went away, and would be tried for ever."""
    with pytest.raises(WriteRefused, match=r"id='2'.*max_allowed_packet"):
        sink.each(inserted(1, "a"), inserted(2, "x" * 17 * 1024**2))
    sink.again()
    assert (sink.held(), sink.parents()) == ([], [])


def test_more_keys_than_the_limit_are_a_fault(sink_of: Callable[..., Sink]) -> None:
    sink = sink_of(limit=2)
    sink.apply(inserted(1, "a"))
    with pytest.raises(QuarantineFull, match="more than 2 keys"):
        sink.each(*(inserted(key, "raise") for key in range(2, 5)), updated(1, "b"))
    sink.again(2)
    assert (sink.held(), sink.parents()) == ([], [(1, "a")])
    sink.raising.on.clear()
    sink.each(*(inserted(key, f"v{key}") for key in range(2, 5)))
    assert len(sink.parents()) == 4


def test_with_stop_it_stops_but_what_is_set_aside_stays_so(sink: Sink) -> None:
    sink.apply(inserted(1, None))
    sink.again(None)
    sink.apply(updated(1, "a"), inserted(2, "b"))
    assert (sink.held(), sink.parents()) == (["1"], [(2, "b")])
    with pytest.raises(ProjectionError):
        sink.batch(sink.transaction(inserted(3, "raise")))
    with pytest.raises(WriteRefused):
        sink.apply(inserted(3, None))
    sink.again(None)
    assert sink.held() == ["1"]


def test_one_line_tells_of_a_key_without_its_values(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sink.each(inserted(4711, "raise"), updated(4711, "raise"))
        sink.each(updated(4711, "raise"))
    (line,) = [one for one in caplog.records if one.message == "quarantined a key"]
    told = str(line.__dict__)
    assert "ValueError" in told
    assert "parents" in told
    assert not [text for text in ("4711", SECRET) if text in told]


# Copies.


def test_a_copied_row_that_fails_is_set_aside_and_the_copy_goes_on(sink: Sink) -> None:
    sink.copy(*(inserted(n, v, copied=True) for n, v in enumerate(["a", "raise", None, "d"])))
    assert (sink.held(), sink.parents()) == (["1", "2"], [(0, "a"), (3, "d")])


def test_a_row_copied_anew_leaves_quarantine(sink: Sink) -> None:
    sink.each(inserted(1, "raise"), inserted(2, None), inserted(3, "a"))
    sink.copy(inserted(1, "b", copied=True), inserted(2, None, copied=True))
    assert (sink.held(), sink.parents()) == (["2"], [(1, "b"), (3, "a")])


# Replaying and dropping.


def test_what_still_fails_stays(sink: Sink) -> None:
    sink.each(inserted(1, "raise"), inserted(2, "once"), inserted(3, None), updated(1, "a"))
    sink.raising.on = {"other"}
    sink.wish("replay")
    assert (sink.held(), sink.parents()) == (["3"], [(1, "a"), (2, "once")])
    (left,) = sink.stored()
    assert left.asked is None
    sink.each(updated(3, "c"), updated(1, "d"))
    assert sink.parents() == [(1, "d"), (2, "once")]
    sink.wish("replay")
    assert sink.parents() == [(1, "d"), (2, "once"), (3, "c")]


@pytest.mark.parametrize("step", ["before it connects", "before it resumes", "once it resumed"])
def test_what_is_asked_for_while_a_daemon_starts_is_done(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It is looked up again and again, and not taken from what was found at the start."""
    sink.each(inserted(1, "raise"), inserted(2, "b"))
    sink.raising.on.clear()
    resume = Writer.resume

    def resumed(writer: Writer, *position: Any) -> None:
        if step == "before it resumes":
            sink.ask("replay")
        resume(writer, *position)

    monkeypatch.setattr(Writer, "resume", resumed)
    if step == "before it connects":
        sink.ask("replay")
    sink.again()
    if step == "once it resumed":
        sink.ask("replay")
    sink.attend()
    assert (sink.parents(), sink.held()) == ([(1, "raise"), (2, "b")], [])


def test_what_is_dropped_is_gone_and_later_changes_flow(sink: Sink) -> None:
    sink.each(inserted(1, "raise"), inserted(2, "raise"), updated(1, "a"))
    first = next(one.chain for one in sink.stored() if one.keys == (("1",),))
    sink.wish("drop", first)
    sink.apply(updated(1, "b"))
    assert (sink.held(), sink.parents()) == (["2"], [(1, "b")])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_commit_whose_answer_is_lost_is_found_out(sink: Sink, after: bool) -> None:
    def persist(attempt: Callable[[], None]) -> None:
        with losing(sink.writer._connection, sink.store, after=after):
            with pytest.raises(ReadUnavailable):
                attempt()
        attempt()

    batch = sink.batch(sink.transaction(inserted(1, "raise"), inserted(2, "b")))
    persist(lambda: sink.writer.apply(batch))
    assert (sink.held(), sink.parents()) == (["1"], [(2, "b")])
    assert [one.changes for one in sink.stored()] == [1]
    sink.raising.on.clear()
    sink.ask("replay")
    persist(sink.attend)
    assert (sink.held(), sink.parents()) == ([], [(1, "raise"), (2, "b")])


# Any workload.


@pytest.mark.parametrize("seed", range(2))
def test_rows_that_are_not_in_quarantine_are_the_sources_and_after_a_replay_all_are(
    sink: Sink, seed: int
) -> None:
    chance = random.Random(seed)
    source: dict[int, str | None] = {}
    values = iter(range(10_000))

    def value() -> str | None:
        return chance.choice(["raise", None, "twice", *(f"v{next(values)}" for _ in range(9))])

    def change() -> Change:
        key = chance.randrange(12)
        if key not in source:
            source[key] = value()
            return inserted(key, source[key])
        if chance.random() < 0.2:
            del source[key]
            return deleted(key)
        free = sorted(set(range(12)) - source.keys())
        if chance.random() < 0.3 and free:
            new = chance.choice(free)
            del source[key]
            source[new] = value()
            return updated(new, source[new], old=key)
        source[key] = value()
        return updated(key, source[key])

    for _ in range(10):
        transactions = [
            sink.transaction(*(change() for _ in range(chance.randrange(1, 5))))
            for _ in range(chance.randrange(1, 4))
        ]
        sink.writer.apply(sink.batch(*transactions))
        held = set(map(int, sink.held()))
        expected = [pair for pair in sorted(source.items()) if pair[0] not in held]
        assert [row for row in sink.parents() if row[0] not in held] == expected
        if chance.random() < 0.2:
            sink.again()
        if chance.random() < 0.2 and held:
            sink.wish("replay")
    sink.raising.on.clear()
    sink.raising.mended = True
    sink.wish("replay")
    sink.each(*(updated(key, v) for key, v in source.items()))
    expected = [(key, f"{key}: {v}") for key, v in sorted(source.items())]
    assert (sink.parents(), sink.stored()) == (expected, [])


RAISING = """
import sqlalchemy as sa
from cdc import Upsert, projector

SEEN = sa.Table("seen", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))

@projector("public.p", into=SEEN)
def seen(change):
    return Upsert(SEEN, id=10 // change.row["id"])
"""


def test_poison_before_a_table_is_given_a_column(
    write: Database,
    read: Database,
    configuration: Callable[..., Configuration],
    cdc_start: Callable[..., RunningDaemon],
) -> None:
    write.run("create table t (id int primary key)", "create table p (id int primary key)")
    wanted = configuration(mirrors=[{"source": "public.t"}], modules=["raising"])
    wanted = wanted.with_(projection={"follow_schema": True})
    (wanted.folder / "raising.py").write_text(RAISING)
    daemon = cdc_start(wanted)
    daemon.wait_started()
    lsn = write.commit(
        "insert into p values (0)",
        "insert into p values (1)",
        "alter table t add column w int",
        "insert into t values (2, 2)",
    )
    daemon.wait_for(lsn)
    assert read.rows("select * from t") == [(2, 2)]
    assert read.rows("select * from seen") == [(10,)]
    assert read.value("select count(*) from cdc_quarantine") == 1


def test_what_a_mirror_leaves_out_or_masks_is_not_stored_in_quarantine(
    write: Database,
    read: Database,
    configuration: Callable[..., Configuration],
    cdc_run: Callable[..., Any],
) -> None:
    write.run("create table t (id int primary key, v text, a text, b text, c text)")
    mirror = {"source": "public.t", "exclude": ["a"], "mask": {"b": "hash", "c": "null"}}
    wanted = configuration(mirrors=[mirror])
    cdc_run(wanted)
    write.run(f"insert into t values (1, 'good', '{SECRET}', '{SECRET}', '{SECRET}')")
    cdc_run(wanted)
    read.run("alter table t add constraint no_bad check (v <> 'bad')")
    write.run(f"insert into t values (2, 'bad', '{SECRET}', '{SECRET}', '{SECRET}')")
    cdc_run(wanted)
    assert SECRET not in read.value("select cdc_quarantine::text from cdc_quarantine")
    read.run("alter table t drop constraint no_bad", "update cdc_quarantine set asked = 'replay'")
    until(lambda: cdc_run(wanted) and read.value("select count(*) from cdc_quarantine") == 0)
    assert len(set(read.rows("select b, c from t"))) == 1


def test_a_row_without_a_key_is_set_aside_alone(
    write: Database,
    read: Database,
    configuration: Callable[..., Configuration],
    cdc_run: Callable[..., Any],
) -> None:
    write.run("create table t (v text)")
    wanted = configuration(mirrors=[{"source": "public.*", "insert_only": True}])
    cdc_run(wanted)
    read.run("alter table t add constraint no_bad check (v <> 'bad')")
    write.run("insert into t values ('a')", "insert into t values ('bad')")
    write.run("insert into t select 'b' from generate_series(1, 500)")
    cdc_run(wanted)
    assert read.value("select count(*) from t") == 501
    write.run("insert into t values ('c'), ('bad')")
    read.run("alter table t drop constraint no_bad")
    cdc_run(wanted)
    held = read.rows("select row_key, chain from cdc_quarantine")
    assert (len(held), len(set(held))) == (2, 1)
    assert "bad" not in held[0][0]
    assert read.value("select count(*) from t") == 502


def test_a_change_is_written_down_whole() -> None:
    changes: list[Change] = [
        Inserted(SOURCE, ("1", "é\n\\"), copied=True),
        Updated(SOURCE, ("2", UNCHANGED), ("1",), ("1", None), partial=True),
        Deleted(SOURCE, ("2",), ("2", "x")),
    ]
    assert [from_json(to_json(one), gone=lambda _: frozenset()) for one in changes] == changes

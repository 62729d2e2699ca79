"""Whatever happens to a row in whichever gap of a chunk's life, the read row is right afterwards.

The threads of the pipeline are stepped through by hand: each gap comes about for certain.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc.assemble import Transaction
from cdc.chunk import Chunk
from cdc.copy_state import Copy, Purpose
from cdc.lookout import Lookout
from cdc.observe.metrics import Metrics
from cdc.projection.batch import Batch
from cdc.retry import Retry
from cdc.servers import Server
from cdc.session import Databases, Session
from cdc.settings import Settings
from cdc.sink.engine import create_engine
from cdc.sink.writer import Writer
from cdc.source.chunks import ChunkReader
from cdc.source.connection import connect
from cdc.source.opener import Opener
from cdc.source.slot import mark_now
from tests.conftest import Configuration, Database, require
from tests.read_databases import PostgresRead, ReadDatabase, SQLiteRead

Configure = Callable[..., Configuration]

GAPS = (
    "before the snapshot",
    "after the snapshot",
    "after it was opened",
    "after the rows",
    "after the watermark",
    "after its arrival",
    "after it was placed",
)
BIG = "repeat('b{}', 4000)"
COLUMNS = ("id", "v", "big")


class Steps:
    """A pipeline without its threads, and chunks of two rows read by hand."""

    def __init__(self, settings: Settings, write: Database, store: ReadDatabase) -> None:
        self.write = write
        self.store = store
        url, source = settings.read.url.get_secret_value(), settings.source
        self.writer = Writer(create_engine(url), source.slot)
        self.lookout = Lookout()
        opener = Opener(source.dsn.get_secret_value(), self.lookout, seconds=source.silence_seconds)
        databases = Databases(opener, self.writer, create_engine(url, reading=True))
        metrics = Metrics()
        self.session = Session(settings, databases, metrics, until=None)
        self.pipeline, _ = self.session._begin(Retry(metrics, threading.Event()))
        self.copying = self.pipeline.copying
        (self.unit,) = self.copying.copies
        copier = self.pipeline.copier
        self.chunks = ChunkReader(
            lambda: connect(write.dsn),
            copier.schema[self.unit.source],
            copier.relations.known(self.unit.source),
        )
        self.asked = 1

    def pump(self, *, most: int = sys.maxsize) -> None:
        """Apply what was committed, and place so many of the chunks that can be, or parts."""
        lsn = mark_now(self.write.connection)
        batch = Batch()
        while batch.end_lsn is None or batch.end_lsn < lsn or not batch.complete:
            frames, _ = self.pipeline.stream.read(seconds=1)
            for item in self.pipeline.reader.read(frames):
                if isinstance(item, Transaction) and not item.changes and item.end_lsn:
                    batch.reach(item.end_lsn)
                else:
                    self.pipeline._add(item, batch)
        while most and self.copying.ready(batch):
            most -= 1
            for full in self.copying.placed(batch):
                self.apply(full)
                batch = Batch()
            batch.reach(lsn)
        if batch.can_commit:
            self.apply(batch)

    def apply(self, batch: Batch) -> None:
        batch.effect.seal()
        self.writer.apply(batch)

    @property
    def copy(self) -> Copy:
        return self.copying.copies[self.unit]

    def begin(self, purpose: Purpose, *, passes: int = 1) -> None:
        """Begin the copy anew."""
        self.asked += 1
        self.copying.ask(Copy(self.unit, purpose=purpose, asked=self.asked, passes=passes))
        self.store.query(f"update cdc_copy set asked = {self.asked}")

    def chunk(
        self, step: Callable[[str], None] = lambda _: None, *, rows: int = 2, ends: bool = True
    ) -> None:
        """Let a chunk live its life."""
        step("before the snapshot")
        snapshot = self.chunks.begin()
        step("after the snapshot")
        while (opened := self.copying.window.open(self.unit.source, snapshot)) is None:
            self.chunks.rollback()
            snapshot = self.chunks.begin()
        step("after it was opened")
        partitions = self.chunks.partitions()
        keys = self.copy.again if self.copy.reached and self.ended else ()
        after = self.copy.reached
        page = self.chunks.read_keys(keys) if keys else self.chunks.read(after=after, rows=rows)
        step("after the rows")
        watermark = self.chunks.mark()
        step("after the watermark")
        chunk = Chunk(
            self.unit,
            self.asked,
            self.chunks.relation,
            opened,
            watermark,
            text=page.text,
            count=page.count,
            after=after,
            last=page.last,
            ends=ends if keys else page.ends,
            keys=keys,
            ordered=self.chunks.ordered,
            partitions=partitions,
        )
        self.copying.expect()
        self.copying.arrived(chunk)
        step("after its arrival")
        self.pump(most=1)
        self.ended = self.ended or chunk.ends
        step("after it was placed")

    ended = False

    def finish(self) -> None:
        for _ in range(20):
            self.pump()
            if not self.copy.due:
                self.ended = False
                return
            self.chunk()
        raise AssertionError(f"the copy does not end: {self.copy}")

    def close(self) -> None:
        self.chunks.close()
        self.writer.close()
        self.pipeline.stream.close()
        ended = threading.Event()
        ended.set()
        self.lookout.run(ended)


MUTATIONS = {
    "nothing": [],
    "update": ["update t set v = 'new', big = 'short' where id = {30}"],
    "partial update": ["update t set v = 'new' where id = {30}"],
    "partial update twice": [
        "update t set v = 'new' where id = {30}",
        "update t set v = 'newer' where id = {30}",
    ],
    "partial update of a copied row": ["update t set v = 'new' where id = {10}"],
    "partial update of a row to come": ["update t set v = 'new' where id = {50}"],
    "update of all": ["update t set v = 'new'"],
    "delete": ["delete from t where id = {30}"],
    "delete of a copied row": ["delete from t where id = {10}"],
    "delete of a row to come": ["delete from t where id = {50}"],
    "insert": ["insert into t values ({35}, 'new', 'big')"],
    "insert, then partial update": [
        f"insert into t values ({{35}}, 'new', {BIG.format('n')})",
        "update t set v = 'newer' where id = {35}",
    ],
    "insert among the copied": ["insert into t values ({15}, 'new', 'big')"],
    "insert among those to come": ["insert into t values ({55}, 'new', 'big')"],
    "move inside the chunk": ["update t set id = {35} where id = {30}"],
    "move back": ["update t set id = {15} where id = {30}"],
    "move ahead": ["update t set id = {55} where id = {30}"],
    "move ahead and back": [
        "update t set id = {55} where id = {30}",
        "update t set id = {30} where id = {55}",
    ],
    "move from those to come": ["update t set id = {35} where id = {50}"],
    "move from those to come to the copied": ["update t set id = {15} where id = {50}"],
    "move from those to come to the copied and on": [
        "update t set id = {15} where id = {50}",
        "update t set v = 'new' where id = {15}",
        "update t set id = {35} where id = {15}",
    ],
    "move of a copied row": ["update t set id = {35} where id = {10}"],
    "move of a copied row ahead": ["update t set id = {55} where id = {10}"],
    "delete, then insert": [
        "delete from t where id = {30}",
        "insert into t values ({30}, 'new', null)",
    ],
    "delete, then move there from those to come": [
        "delete from t where id = {30}",
        "update t set id = {30} where id = {50}",
    ],
    "delete, then move there from the copied": [
        "delete from t where id = {30}",
        "update t set id = {30} where id = {10}",
    ],
    "move, then another one there": [
        "update t set id = {55} where id = {30}",
        "update t set id = {30} where id = {10}",
        "insert into t values ({10}, 'new', 'big')",
    ],
    "swap with a row to come": [
        "begin; update t set id = {99} where id = {30}; update t set id = {30} where id = {50}; "
        "update t set id = {50} where id = {99}; commit"
    ],
    "swap with a copied row": [
        "begin; update t set id = {99} where id = {30}; update t set id = {30} where id = {10}; "
        "update t set id = {10} where id = {99}; commit"
    ],
    "truncate": ["truncate t"],
    "truncate, then insert": [
        "truncate t",
        "insert into t values ({30}, 'new', 'big'), ({10}, 'new', 'big')",
    ],
    "insert that is rolled back": ["begin; insert into t values ({35}, 'no', 'no'); rollback"],
}


def statements(mutation: str, key: str) -> list[str]:
    """Write the keys as the table's key type has them."""
    written = MUTATIONS[mutation]
    for number in (10, 15, 30, 35, 50, 55, 99):
        literal = f"'{number}'" if key == "text" else str(number)
        written = [statement.replace(f"{{{number}}}", literal) for statement in written]
    return written


@pytest.fixture(
    params=[
        ("pgoutput", "bigint", "postgres"),
        pytest.param(("wal2json", "text", "postgres"), marks=pytest.mark.wal2json),
        ("pgoutput", "text", "sqlite"),
        ("pgoutput", "bigint", "postgres", "in parts"),
    ],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Give a plugin, the type of the key, the kind of read database, and how chunks are placed."""
    return request.param


@pytest.fixture
def plugin(case: tuple[str, ...], write_server: Server) -> str:
    if case[0] == "wal2json":
        require(write_server.installation.wal2json, "wal2json")
    return case[0]


@pytest.fixture
def key(case: tuple[str, ...]) -> str:
    return case[1]


@pytest.fixture
def store(case: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path) -> ReadDatabase:
    if case[2] == "postgres":
        return PostgresRead(request.getfixturevalue("read"))
    return SQLiteRead(tmp_path / "read.db")


@pytest.fixture
def steps(
    write: Database,
    configuration: Configure,
    store: ReadDatabase,
    case: tuple[str, ...],
    key: str,
    plugin: str,
) -> Iterator[Steps]:
    write.run(
        f"create table t (id {key} primary key, v text, big text)",
        "alter table t alter big set storage external",
    )
    chosen = configuration(plugin, mirrors=[{"source": "public.t"}]).with_(read={"url": store.url})
    made = Steps(chosen.settings(), write, store)
    # Row by row while changes are streamed, which in a test is always; or whole.
    made.copying.part_bytes = 1 if "in parts" in case else sys.maxsize
    yield made
    made.close()


ROWS = [(number, f"v{number}", BIG.format(number)) for number in range(10, 70, 10)]
FILL = "insert into t values " + ", ".join(f"('{n}', '{v}', {big})" for n, v, big in ROWS)


def both(steps: Steps, store: ReadDatabase) -> tuple[Any, Any]:
    listed = "select id, v, big from t"
    source = [tuple(map(str, row)) for row in steps.write.rows(listed)]
    return sorted(source), sorted(tuple(map(str, row)) for row in store.query(listed))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_whatever_happens_in_a_gap_the_read_row_is_right(
    steps: Steps, store: ReadDatabase, mutation: str, key: str
) -> None:
    wrong = []
    for purpose in ("first", "again"):
        for gap in gaps(mutation):
            for streamed in (False, True):
                happen(steps, store, statements(mutation, key), purpose, gap, streamed)
                source, read = both(steps, store)
                if source != read:
                    wrong.append((purpose, gap, streamed, *differences(source, read)))
    assert not wrong


def test_a_row_that_is_read_once_more_before_the_table_ends_does_not_end_the_copy(
    steps: Steps, store: ReadDatabase
) -> None:
    steps.write.run("truncate t", FILL)
    steps.pump()
    steps.begin("again")
    store.query("delete from t")
    steps.chunk()
    steps.write.run("update t set id = '15' where id = '50'")
    steps.pump()
    assert steps.copy.again == (("15",),)
    steps.ended = True  # a chunk came to nothing: the rest is still to be read
    steps.chunk(ends=False)
    assert steps.copy.due
    steps.ended = False
    steps.finish()
    source, read = both(steps, store)
    assert source == read


def test_a_row_that_is_read_once_more_does_not_take_the_place_of_another_pass(
    steps: Steps, store: ReadDatabase
) -> None:
    """A row moves just after the first of two passes has found the table's end."""
    steps.write.run("truncate t", FILL)
    steps.pump()
    steps.begin("again", passes=2)
    seen = []

    def place(chunk: Chunk) -> None:
        steps.copying.arrived(chunk)
        steps.pump()
        seen.append(chunk.ends)
        if seen.count(True) == 1:
            steps.write.run("update t set id = '15' where id = '50'")
            steps.pump()

    copier = steps.pipeline.copier
    copier._feed = copier._feed_to(place)
    copier._copy(steps.unit)
    assert steps.copy.due
    assert seen == [True]
    copier._copy(steps.unit)
    assert not steps.copy.due
    source, read = both(steps, store)
    assert source == read


def test_very_many_rows_that_are_to_be_read_once_more_are_read_with_the_whole_table(
    steps: Steps, store: ReadDatabase, key: str
) -> None:
    number = "('1' || i)" if key == "text" else "100000 + i"
    steps.write.run(
        "truncate t",
        FILL,
        f"insert into t select {number}, 'v', {BIG.format('x')} from generate_series(1, 1100) i",
    )
    steps.pump()
    steps.begin("again")
    store.query("delete from t")
    steps.chunk()
    moved = "'0' || id" if key == "text" else "-id"
    steps.write.run(f"update t set id = {moved} where v = 'v'")
    steps.pump()
    assert len(steps.copy.again) < 1000
    assert steps.copy.passes == 2
    while steps.copy.due:
        steps.chunk(rows=500)
    source, read = both(steps, store)
    assert source == read


def gaps(mutation: str) -> list[str]:
    """Name the gaps in which it can happen: a truncate waits for whoever reads the table."""
    locked = {"after the snapshot", "after it was opened", "after the rows"}
    return [gap for gap in GAPS if "truncate" not in mutation or gap not in locked]


def differences(source: Any, read: Any) -> Any:
    short = [[tuple(v[:9] for v in row) for row in side] for side in (source, read)]
    return sorted(set(short[0]) - set(short[1])), sorted(set(short[1]) - set(short[0]))


def happen(
    steps: Steps,
    store: ReadDatabase,
    mutation: list[str],
    purpose: Purpose,
    gap: str,
    streamed: bool,
) -> None:
    """Copy the table, with something happening to it in a gap of its second chunk."""
    steps.write.run("truncate t", FILL)
    steps.pump()
    if purpose == "first":
        steps.begin("first")
        store.query("delete from t")  # of what is copied for the first time nothing is there
    else:
        steps.begin(purpose)
    steps.chunk()

    def step(name: str) -> None:
        if name == gap:
            for statement in mutation:
                steps.write.connection.execute(statement.encode())
            if streamed:
                steps.pump()

    steps.chunk(step)
    steps.finish()
    steps.pump()


def test_a_copy_asked_for_anew_while_a_chunk_is_placed_begins_at_the_beginning(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.write.run("truncate t", FILL)
    steps.begin("again")
    place = steps.copying._place

    def place_and_ask(chunk: Chunk, batch: Batch) -> bool:
        placed = place(chunk, batch)
        steps.begin("again")
        return placed

    monkeypatch.setattr(steps.copying, "_place", place_and_ask)
    steps.chunk()
    assert steps.copy.asked == steps.asked
    assert steps.copy.reached is None
    monkeypatch.undo()
    steps.finish()


@pytest.mark.parametrize("back", ["while it is read", "after the table's end"])
def test_the_rows_of_a_partition_that_was_away_are_copied(
    write: Database, read: Database, configuration: Configure, back: str
) -> None:
    write.run(
        "create table t (id bigint primary key, v text) partition by range (id)",
        "create table low partition of t for values from (0) to (40)",
        "create table high partition of t for values from (40) to (100)",
        "insert into t select i, 'v' from generate_series(10, 60, 10) i",
    )
    chosen = configuration("pgoutput", mirrors=[{"source": "public.t"}])
    steps = Steps(chosen.settings(), write, PostgresRead(read))
    try:
        steps.begin("first")
        steps.chunk()
        write.run("alter table t detach partition low")
        steps.chunk(rows=1)
        if back == "after the table's end":
            steps.chunk(rows=9)
        write.run("alter table t attach partition low for values from (0) to (40)")
        steps.finish()
        assert read.rows("select id from t order by id") == [(n,) for n in range(10, 70, 10)]
    finally:
        steps.close()

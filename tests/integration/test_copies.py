"""The copies' bookkeeping, on every read database, and what becomes of it at a start."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from cdc.copy_state import Copy, Unit
from cdc.names import TableName
from cdc.operate.copy_plan import settle
from cdc.operate.setup import prepare_read_side
from cdc.projection.registry import Registry
from cdc.sink import copies
from cdc.sink.engine import connect, create_engine
from tests.read_databases import ReadDatabase

SLOT = "s"
BEGAN = datetime(2024, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
ODD = TableName("Odd.schema", 't"é')


@pytest.fixture
def unprepared(store: ReadDatabase) -> Iterator[sa.Connection]:
    engine = create_engine(store.url)
    with connect(engine) as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def connection(unprepared: sa.Connection) -> sa.Connection:
    prepare_read_side(unprepared, Registry([]))
    return unprepared


def unit(projector: str = "p", source: str = "t") -> Unit:
    return Unit(projector, TableName("public", source))


def add(connection: sa.Connection, *added: Copy, slot: str = SLOT) -> None:
    with connection.begin():
        copies.add(connection, slot, added)


def loaded(connection: sa.Connection, slot: str = SLOT) -> dict[Unit, Copy]:
    with connection.begin():
        return copies.load(connection, slot) or {}


def test_before_there_is_a_table_of_them_there_are_none(unprepared: sa.Connection) -> None:
    with unprepared.begin():
        assert copies.load(unprepared, SLOT) is None
        copies.forget(unprepared, SLOT)


def test_what_is_added_is_there_afterwards(connection: sa.Connection) -> None:
    full = Copy(
        Unit("mirror:x", ODD),
        purpose="resync",
        state="copying",
        asked=3,
        reached=("7", "é'\\\n"),
        again=(("8", ""), ("9", "null")),
        passes=2,
        copied=2**40,
        expected=2**41,
        started_at=BEGAN,
    )
    before = datetime.now(UTC)
    add(connection, full, Copy(unit()))
    add(connection, Copy(unit(), state="done"), slot="other")
    found = loaded(connection)
    assert set(found) == {full.unit, unit()}
    stored = found[full.unit]
    assert stored.updated_at is not None
    assert stored.updated_at.utcoffset() == BEGAN.utcoffset()
    assert abs((stored.updated_at - before).total_seconds()) < 60
    # MySQL's time type holds whole seconds
    assert stored.started_at is not None
    assert stored.started_at.replace(microsecond=0) == BEGAN.replace(microsecond=0)
    for field in ("purpose", "state", "asked", "reached", "again", "passes", "copied", "expected"):
        assert getattr(stored, field) == getattr(full, field), field
    new = found[unit()]
    assert (new.reached, new.again, new.expected, new.started_at) == (None, (), None, None)
    assert loaded(connection, "other")[unit()].state == "done"


def test_nothing_reached_is_null_and_not_a_json_null(
    connection: sa.Connection, store: ReadDatabase
) -> None:
    add(connection, Copy(unit(), reached=("1",)))
    with connection.begin():
        assert copies.store(connection, SLOT, Copy(unit()))
    assert store.query("select count(*) from cdc_copy where reached is null") == [(1,)]


def test_progress_is_stored_unless_the_copy_was_asked_for_anew(connection: sa.Connection) -> None:
    add(connection, Copy(unit()), Copy(unit(source="u")))
    further = Copy(unit(), state="copying", reached=("5",), copied=5, started_at=BEGAN)
    with connection.begin():
        assert not copies.are_stored(connection, SLOT, [further])
        assert copies.store(connection, SLOT, further)
        assert copies.store(connection, SLOT, further)  # the same again is no refusal
        assert copies.are_stored(connection, SLOT, [further])
        copies.ask(connection, SLOT, unit(), purpose="again", passes=2)
    asked = loaded(connection)[unit()]
    assert (asked.asked, asked.purpose, asked.state, asked.passes) == (2, "again", "waiting", 2)
    assert (asked.reached, asked.copied, asked.started_at) == (None, 0, None)
    with connection.begin():
        assert not copies.store(connection, SLOT, further)
        assert copies.are_stored(connection, SLOT, [further])  # it is of no matter any more
    assert loaded(connection)[unit()].reached is None
    assert loaded(connection)[unit(source="u")].asked == 1


def test_a_unit_that_is_gone_is_not_stored(connection: sa.Connection) -> None:
    with connection.begin():
        assert not copies.store(connection, SLOT, Copy(unit()))
        assert not copies.are_stored(connection, SLOT, [Copy(unit())])
        assert copies.are_stored(connection, SLOT, [])


def test_copies_are_forgotten_by_unit_or_by_slot(connection: sa.Connection) -> None:
    add(connection, Copy(unit()), Copy(unit(source="u")), Copy(unit(source="v")))
    add(connection, Copy(unit()), slot="other")
    with connection.begin():
        copies.forget(connection, SLOT, [unit()])
    assert set(loaded(connection)) == {unit(source="u"), unit(source="v")}
    with connection.begin():
        copies.forget(connection, SLOT)
    assert loaded(connection) == {}
    assert len(loaded(connection, "other")) == 1


# What becomes of them at a start.


class Projecting:
    """A projector, as far as this is about it."""

    def __init__(self, name: str, *sources: str, into: sa.Table | None = None) -> None:
        self.name = name
        self.sources = tuple(TableName("public", source) for source in sources)
        key = sa.Column("id", sa.Integer, primary_key=True)
        self.into = (sa.Table(f"r_{name}", sa.MetaData(), key) if into is None else into,)


def settled(
    connection: sa.Connection, *projectors: Any, enabled: bool = True, first: bool = False
) -> dict[str, str]:
    with connection.begin():
        found = settle(connection, SLOT, Registry(projectors), enabled=enabled, first=first)
    assert found == loaded(connection)
    return {f"{unit.projector}/{unit.source.table}": copy.state for unit, copy in found.items()}


A, B = Projecting("a", "t", "u"), Projecting("b", "t")


@pytest.mark.parametrize(("enabled", "state"), [(True, "waiting"), (False, "skipped")])
def test_on_the_first_start_each_source_of_each_projector_is_a_copy(
    connection: sa.Connection, enabled: bool, state: str
) -> None:
    found = settled(connection, A, B, enabled=enabled, first=True)
    assert found == {"a/t": state, "a/u": state, "b/t": state}
    assert {copy.purpose for copy in loaded(connection).values()} == {"first"}
    assert settled(connection, A, B) == found


def test_read_tables_that_several_write_are_read_twice(connection: sa.Connection) -> None:
    shared = Projecting("c", "t", into=B.into[0])
    settled(connection, A, B, shared, Projecting("d", "t"), first=True)
    passes = {unit.projector: copy.passes for unit, copy in loaded(connection).items()}
    assert passes == {"a": 2, "b": 2, "c": 2, "d": 1}


def test_what_is_added_later_waits_and_what_is_taken_out_is_forgotten(
    connection: sa.Connection,
) -> None:
    settled(connection, A, first=True)
    with connection.begin():
        copies.store(connection, SLOT, Copy(unit("a", "t"), state="done", copied=7))
    fewer = Projecting("a", "t")
    assert settled(connection, fewer, B) == {"a/t": "done", "b/t": "waiting"}
    assert loaded(connection)[unit("a", "t")].copied == 7
    assert settled(connection, B) == {"b/t": "waiting"}
    assert settled(connection, A, B, enabled=False) == {
        "a/t": "skipped",
        "a/u": "skipped",
        "b/t": "waiting",
    }


def test_all_may_be_replaced_at_once(connection: sa.Connection) -> None:
    settled(connection, A, first=True)
    assert settled(connection, B) == {"b/t": "waiting"}


def test_a_first_start_forgets_what_is_left_of_an_earlier_life(connection: sa.Connection) -> None:
    settled(connection, B, first=True)
    with connection.begin():
        copies.store(connection, SLOT, Copy(unit("b", "t"), state="done"))
    assert settled(connection, B, first=True) == {"b/t": "waiting"}


def test_what_streamed_before_there_were_copies_has_its_rows(
    connection: sa.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    add(connection, Copy(unit()), slot="other")
    with caplog.at_level(logging.INFO):
        assert settled(connection, A, B) == {"a/t": "skipped", "a/u": "skipped", "b/t": "skipped"}
    assert "cdc copy --all" in caplog.text
    caplog.clear()
    added = Projecting("c", "t")
    assert settled(connection, A, B, added)["c/t"] == "waiting"
    assert caplog.text == ""

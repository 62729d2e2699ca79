"""Copies that are asked for and watched, through every kind of read database."""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from cdc.copy_state import Copy, Unit
from cdc.errors import NothingToCopy, NotStreaming
from cdc.names import TableName
from cdc.operate.copy import ask, wanted
from cdc.operate.follow import Watch, follow
from cdc.sink import copies
from cdc.sink.engine import connect, create_engine
from tests.conftest import PATIENCE, Configuration, Database, environment, nursery, until
from tests.read_databases import ReadDatabase

Configure = Callable[..., Configuration]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

UNIT = Unit("mirror:public.t", TableName("public", "t"))
FILL = "insert into t select i, 'v' || i from generate_series(1, 100) i"


@pytest.fixture
def streamed(
    write: Database, store: ReadDatabase, configuration: Configure, cdc_run: Run
) -> Configuration:
    """A table whose first copy is done."""
    write.run("create table t (id int primary key, v text)", FILL)
    made = configuration(mirrors=[{"source": "public.t"}]).with_(read={"url": store.url})
    cdc_run(made)
    assert store.query("select count(*) from t") == [(100,)]
    return made


def command(configuration: Configuration, *arguments: str) -> list[str]:
    file = str(configuration.file())
    return [sys.executable, "-m", "cdc", arguments[0], "--config", file, *arguments[1:]]


def copy(configuration: Configuration, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(configuration, "copy", *arguments),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        cwd=configuration.folder,
        env=environment(),
        check=False,
    )


@pytest.fixture
def daemon(streamed: Configuration, write: Database) -> Iterator[None]:
    process = nursery().start(
        ["run", "--config", str(streamed.file())],
        folder=streamed.folder,
        environment=environment(),
        output=Path(os.devnull),
        errors=streamed.folder / "daemon.log",
    )
    active = "select count(*) from pg_replication_slots where slot_name = %s and active"
    until(lambda: write.value(active, streamed.slot))
    yield
    process.kill()
    process.wait()


def damage(store: ReadDatabase) -> None:
    store.query("delete from t where id > 50")
    store.query("update t set v = 'wrong' where id = 7")


def is_mended(store: ReadDatabase) -> bool:
    rows = store.query("select id, v from t order by id")
    return rows == [(i, f"v{i}") for i in range(1, 101)]


@pytest.mark.usefixtures("daemon")
def test_the_running_daemon_is_asked(streamed: Configuration, store: ReadDatabase) -> None:
    damage(store)
    done = copy(streamed, "t")
    assert (done.returncode, done.stdout) == (0, "copied 100 rows of public.t\n"), done.stderr
    assert "copying here" not in done.stderr
    assert is_mended(store)


def test_without_a_daemon_it_is_done_here(streamed: Configuration, store: ReadDatabase) -> None:
    damage(store)
    done = copy(streamed, "--all")
    assert (done.returncode, done.stdout) == (0, "copied 100 rows of public.t\n"), done.stderr
    assert is_mended(store)


# Asking.


def unconfirmed(text: str) -> None:
    pytest.fail(f"asked: {text}")


def stored(configuration: Configuration) -> Copy:
    with reading(configuration) as read:
        return (copies.load(read, configuration.slot) or {})[UNIT]


def reading(configuration: Configuration) -> closing[sa.Connection]:
    url = configuration.settings().read.url.get_secret_value()
    return closing(connect(create_engine(url)))


def put(configuration: Configuration, copy: Copy) -> None:
    """Store how far a copy is, as the daemon does."""
    with reading(configuration) as read, read.begin():
        assert copies.store(read, configuration.slot, copy)


CASES = [
    # purpose, state, restart, asked for
    ("first", "waiting", False, None),
    ("first", "waiting", True, None),  # nothing was written that could be done again
    ("first", "copying", False, None),
    ("first", "copying", True, "again"),  # its projector has been given changes by now
    ("first", "done", False, "again"),
    ("first", "skipped", False, "again"),
    ("again", "waiting", False, None),
    ("again", "copying", True, "again"),
    ("resync", "copying", False, None),
    ("resync", "copying", True, "resync"),  # else rows that are gone would stay
    ("resync", "done", True, "again"),
]


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_what_is_under_way_goes_on_unless_it_is_to_begin_anew(streamed: Configuration) -> None:
    named = wanted(["t"], [], everything=False)
    for purpose, state, restart, asked in CASES:
        before = replace(
            stored(streamed), purpose=purpose, state=state, reached=("7",), copied=7, expected=100
        )
        put(streamed, before)
        result = ask(streamed.settings(), named, restart=restart, confirm=unconfirmed)
        now = stored(streamed)
        if asked is None:
            assert (result.under_way, result.anew) == ([UNIT], []), (purpose, state, restart)
            assert replace(now, updated_at=None) == replace(before, updated_at=None)
        else:
            assert (result.under_way, result.anew) == ([], [UNIT]), (purpose, state, restart)
            assert (now.purpose, now.state, now.copied) == (asked, "waiting", 0)
            assert (now.asked, now.reached) == (before.asked + 1, None)


# Watching.


class Heard:
    """A display that keeps what it is told, and does something at each look."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)
        self.said: list[str] = []
        self.states: list[str] = []

    def show(self, copies: Collection[Copy]) -> None:
        self.states += [copy.state for copy in copies]
        if self._steps:
            self._steps.pop(0)()

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def watch(streamed: Configuration) -> Iterator[Watch]:
    with closing(Watch(streamed.settings(), [UNIT])) as watch:
        yield watch


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_where_nobody_streams_the_wait_ends(streamed: Configuration, watch: Watch) -> None:
    put(streamed, Copy(UNIT))
    heard = Heard()
    with pytest.raises(NotStreaming, match="no daemon has streamed") as caught:
        follow(watch, heard, patience=0.1)
    assert "cdc run" in (caught.value.hint or "")
    assert heard.said == ["waiting: no daemon streams at the moment"]


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_read_database_that_goes_away_is_waited_for(
    streamed: Configuration, store: ReadDatabase, watch: Watch
) -> None:
    put(streamed, Copy(UNIT))
    heard = Heard(store.cut, lambda: put(streamed, Copy(UNIT, state="done", copied=100)))
    follow(watch, heard, patience=PATIENCE)
    assert heard.states == ["waiting", "waiting", "done"]
    assert [said for said in heard.said if said.startswith("waiting: read database")]


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_pipeline_that_is_dropped_is_not_waited_for(
    streamed: Configuration, store: ReadDatabase, watch: Watch
) -> None:
    put(streamed, Copy(UNIT))
    with pytest.raises(NothingToCopy, match="no longer there"):
        follow(watch, Heard(lambda: store.query("delete from cdc_copy")), patience=PATIENCE)

"""An application waits until the read database shows what it wrote."""

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from cdc import wait_for, wait_for_async
from tests.conftest import ROOT, Configuration, Database, RunningDaemon
from tests.unit.test_docs import blocks

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]

POSITION = "select pg_current_wal_insert_lsn()::text"


@pytest.fixture
def pipeline(
    write: Database, configuration: Configure, cdc_start: Start, plugin: str
) -> RunningDaemon:
    write.run(
        "create table notes (id bigint generated always as identity primary key, text text)",
        "create table other (id bigint primary key)",
    )
    daemon = cdc_start(configuration(plugin, mirrors=[{"source": "public.notes"}]))
    daemon.wait_started()
    return daemon


@pytest.fixture
def engine(read: Database) -> Iterator[sa.Engine]:
    made = sa.create_engine(read.url)
    yield made
    made.dispose()


@pytest.mark.usefixtures("pipeline")
def test_what_was_committed_is_there_once_it_was_waited_for(
    write: Database, read: Database, engine: sa.Engine
) -> None:
    for number in range(1, 21):
        write.connection.execute("insert into notes (text) values ('n')")
        assert wait_for(engine, write.value(POSITION), timeout=30)
        assert read.value("select count(*) from notes") == number


@pytest.mark.usefixtures("pipeline")
def test_writes_to_other_tables_are_passed_too(write: Database, engine: sa.Engine) -> None:
    write.connection.execute("insert into other select generate_series(1, 1000)")
    assert wait_for(engine, write.value(POSITION), timeout=30)


@pytest.mark.usefixtures("pipeline")
def test_an_event_loop_goes_on_meanwhile(write: Database, read: Database) -> None:
    async def wait() -> bool:
        made = create_async_engine(read.url)
        try:
            write.connection.execute("insert into notes (text) values ('n')")
            return await wait_for_async(made, write.value(POSITION), timeout=30)
        finally:
            await made.dispose()

    assert asyncio.run(wait())
    assert read.value("select count(*) from notes") == 1


def test_a_position_that_is_not_reached_is_told_after_the_timeout(
    pipeline: RunningDaemon, write: Database, engine: sa.Engine
) -> None:
    pipeline.stop()
    write.connection.execute("insert into notes (text) values ('n')")
    lsn = write.value(POSITION)
    assert not wait_for(engine, lsn, timeout=0.1)
    assert not wait_for(engine, lsn, timeout=0)
    assert wait_for(engine, "0/1", timeout=0)


@pytest.mark.usefixtures("pipeline")
def test_of_several_slots_one_has_to_be_named(read: Database, engine: sa.Engine) -> None:
    name = read.value("select slot from cdc_checkpoint")
    read.run(
        "create temp table one as select * from cdc_checkpoint",
        "update one set slot = 'another', lsn = 0",
        "insert into cdc_checkpoint select * from one",
    )
    with pytest.raises(ValueError, match=f"another, {name}"):
        wait_for(engine, "0/1", timeout=0)
    assert wait_for(engine, "0/1", timeout=0, slot=name)
    with pytest.raises(LookupError, match="slot none"):
        wait_for(engine, "0/1", timeout=0, slot="none")


def test_a_position_must_be_one(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/read.db")
    with pytest.raises(ValueError, match="not an LSN"):
        wait_for(engine, "1; drop table notes", timeout=0)
    engine.dispose()


def test_a_browser_that_is_redirected_is_shown_what_it_wrote(
    pipeline: RunningDaemon, write: Database, engine: sa.Engine
) -> None:
    """The application is the one of the documentation."""
    (source,) = blocks(ROOT / "docs" / "read-your-writes.md", "python")
    names: dict = {"__name__": "docs"}
    exec(compile(source, "read-your-writes.md", "exec"), names)  # noqa: S102
    write_engine = sa.create_engine(write.server.url(write.name))
    application = names["Notes"](write_engine, engine)
    answered: list = []

    def start(status: str, headers: list[tuple[str, str]]) -> None:
        answered[:] = [status, dict(headers)]

    def ask(method: str, query: str = "", form: bytes = b"") -> str:
        environ = {
            "REQUEST_METHOD": method,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(form)),
            "wsgi.input": io.BytesIO(form),
        }
        return b"".join(application(environ, start)).decode()

    for number in range(10):
        ask("POST", form=f"text=note+{number}+%3Cb%3E".encode())
        assert answered[0].startswith("303")
        page = ask("GET", answered[1]["Location"].partition("?")[2])
        assert f"<li>note {number} &lt;b&gt;" in page
        assert "in a moment" not in page
    pipeline.stop()
    ask("POST", form=b"text=late")
    assert "in a moment" in ask("GET", answered[1]["Location"].partition("?")[2])
    write_engine.dispose()

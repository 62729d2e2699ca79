"""The daemon's threads: none of them ends unseen. Its sessions: none of them stays in memory."""

import threading
from collections.abc import Callable

import pytest

from cdc.daemon import Daemon
from cdc.pipeline import Pipeline
from tests.conftest import Configuration, Database, alive, uncollected, until


@pytest.mark.parametrize("part", ["_sample", "_watch", "_keep_lookout"])
def test_a_thread_that_fails_ends_the_daemon(
    write: Database,
    configuration: Callable[..., Configuration],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    write.run("create table t (id int primary key)")

    def fails(_: Daemon) -> None:
        raise LookupError(part)

    monkeypatch.setattr(Daemon, part, fails)
    with pytest.raises(LookupError, match=part):
        Daemon(configuration(mirrors=[{"source": "public.t"}]).settings()).run()


def test_a_session_that_ended_goes_from_memory(
    write: Database, read: Database, configuration: Callable[..., Configuration]
) -> None:
    """With its batches, its queue and its read tables: they refer to one another."""
    write.run("create table t (id int primary key)")
    config = configuration(mirrors=[{"source": "public.t"}])
    daemon = Daemon(config.settings())
    parts = [daemon._serve_to_the_end, daemon._keep_lookout]
    threads = [threading.Thread(target=part) for part in parts]
    with uncollected():
        for thread in threads:
            thread.start()
        try:
            _hold_sessions(write, read, config.slot)
        finally:
            daemon.stop("the test is over")
            for thread in threads:
                thread.join()


def _hold_sessions(write: Database, read: Database, slot: str) -> None:
    """End session after session, each once it has streamed something."""
    for session in range(5):
        write.run(f"insert into t values ({session})")
        until(lambda so_many=session + 1: _rows(read) == so_many)
        assert len(alive(Pipeline)) == 1
        write.run(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots "
            f"where slot_name = '{slot}'"
        )


def _rows(read: Database) -> int:
    """Count the rows that are there, if their table is."""
    if not read.value("select to_regclass('t') is not null"):
        return 0
    return int(read.value("select count(*) from t"))

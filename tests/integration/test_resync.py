"""Killed between any two steps, a resync is finished by whoever starts next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc.operate import setup
from cdc.operate.resync import resync
from cdc.sink import checkpoint
from cdc.source import slot
from tests.conftest import Configuration, Database, RunningDaemon
from tests.integration.test_verify import LIVE
from tests.read_databases import ReadDatabase

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
Run = Callable[..., Any]


class Killed(BaseException):
    """What happens to a process, as far as this one goes."""


def killed(*_: object, **__: object) -> None:
    raise Killed


STEPS = {
    "before the slot was dropped": (slot, "drop_slot"),
    "before the new one was made": (setup, "create_slot"),
    "before its position was stored": (checkpoint, "advance"),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_between_two_steps_it_is_finished_by_the_next_start(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    cdc_run: Run,
    step: str,
    plugin: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write.run(
        "create table t (id int primary key, v text)",
        "insert into t select i, 'v' from generate_series(1, 2000) i",
    )
    chosen = configuration(plugin, mirrors=[{"source": "public.t"}])
    cdc_run(chosen)
    write.run("delete from t where id % 3 = 0", "update t set v = 'new' where id % 5 = 0")
    # What happened is lost: the old slot has been read to here by something else.
    write.run(f"select pg_replication_slot_advance('{chosen.slot}', pg_current_wal_lsn())")
    assert cdc_run(chosen, succeeds=False).returncode == 10
    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], killed)
        with pytest.raises(Killed):
            resync(chosen.settings(), confirm=asked.append)
    assert asked[0].startswith("This drops slot")
    assert read.value("select count(*) from t") == 2000
    daemon = cdc_start(chosen)
    daemon.wait_for(write.run("insert into t values (5000, 'streamed')"))
    daemon.wait_until(daemon.copied)
    daemon.wait_until(lambda: read.value("select bool_and(phase = 'done') from cdc_verify"))
    assert read.texts("t") == write.texts("t")
    assert daemon.stop() == 0


def test_rows_whose_source_rows_are_gone_are_removed_from_every_read_table(
    write: Database,
    configuration: Configure,
    cdc_start: Start,
    cdc_run: Run,
    store: ReadDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "resynced.py").write_text(LIVE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write.run(
        "create table texts (id text primary key, v text, big text)",
        "insert into texts select i, 'v', null from generate_series(1, 2000) i",
    )
    chosen = configuration(mirrors=[{"source": "public.texts"}], modules=["resynced"]).with_(
        read={"url": store.url}
    )
    cdc_run(chosen)
    write.run(
        "delete from texts where id::int % 3 = 0",
        "update texts set id = 'm' || id where id::int % 5 = 0",
        f"select pg_drop_replication_slot('{chosen.slot}')",
    )
    asked: list[str] = []
    store.query("update cdc_checkpoint set system_identifier = '1'")  # that of another cluster
    resync(chosen.settings(), confirm=asked.append)
    assert asked[0].startswith("The write database is another one than before")
    # The stream comes upon rows of before: over them, and to keys that are taken.
    write.run(
        "insert into texts values ('3', 'came again', null)",
        "update texts set id = '6' where id = '7'",
        "delete from texts where id = '8'",
    )
    daemon = cdc_start(chosen)
    daemon.wait_until(
        lambda: store.query("select count(*) from cdc_verify where phase <> 'done'") == [(0,)]
    )
    expected = [tuple(row) for row in write.rows('select id, v from texts order by id collate "C"')]
    texts = sorted(map(tuple, store.query("select id, v from texts")))
    lengths = sorted(map(tuple, store.query("select name, v from lengths")))
    assert texts == expected
    assert lengths == sorted(("n" + key, v) for key, v in expected)
    assert daemon.stop() == 0

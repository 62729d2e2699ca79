"""What `cdc run` finds at start decides: DESIGN's rule 8, row by row, by the command itself.

`tests/unit/test_startup.py` has the combinations; here each row is brought about on real servers.
"""

import subprocess
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from cdc.lsn import Lsn
from cdc.source.connection import connect_replication
from tests.conftest import Configuration, Database, RunningDaemon

Configure = Callable[..., Configuration]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., RunningDaemon]

ADVANCE = "select pg_replication_slot_advance('{slot}', pg_current_wal_insert_lsn())"
DROP = "select pg_drop_replication_slot('{slot}')"
LOCKS = """
select 1 from pg_locks where locktype = 'advisory'
and database = (select oid from pg_database where datname = current_database())
"""
WRITTEN = "insert into t values (2)"


@pytest.fixture
def begun(write: Database, configuration: Configure, cdc_run: Run) -> Configuration:
    """A pipeline that has streamed one row and was stopped."""
    write.run("create table t (id int primary key)", "insert into t values (1)")
    wanted = configuration(mirrors=[{"source": "public.t"}])
    cdc_run(wanted)
    return wanted


def test_no_slot_and_no_checkpoint_begin_and_what_fits_goes_on(
    write: Database, read: Database, begun: Configuration, cdc_run: Run
) -> None:
    assert read.texts("t") == [("1",)]
    write.run(WRITTEN)
    cdc_run(begun)
    assert read.texts("t") == [("1",), ("2",)]


@pytest.mark.parametrize(
    ("source", "target", "code", "remedy"),
    [
        pytest.param([WRITTEN, ADVANCE], [], 10, "cdc resync", id="behind-the-slot"),
        pytest.param([], ["lsn = 9000000000000000"], 11, "cdc resync", id="ahead-of-the-wal"),
        pytest.param([DROP], ["lsn = 9000000000000000"], 11, "cdc resync", id="ahead-no-slot"),
        pytest.param([], ["system_identifier = '1'"], 11, "source.dsn", id="another-system"),
        pytest.param([], ["timeline = 99"], 11, "cdc resync", id="an-older-timeline"),
        pytest.param([], [None], 12, "pg_drop_replication_slot", id="slot-without-checkpoint"),
        pytest.param([DROP], [], 13, "cdc resync", id="checkpoint-without-slot"),
        pytest.param([], ["plugin = 'wal2json'"], 15, "source.plugin", id="another-plugin"),
    ],
)
def test_a_start_that_would_lose_or_double_changes_is_refused(
    write: Database,
    read: Database,
    begun: Configuration,
    cdc_run: Run,
    source: list[str],
    target: list[str | None],
    code: int,
    remedy: str,
) -> None:
    write.run(*(statement.format(slot=begun.slot) for statement in source))
    for change in target:
        read.run(f"update cdc_checkpoint set {change}" if change else "delete from cdc_checkpoint")
    before = read.rows("select * from cdc_checkpoint"), write.slots()
    ran = cdc_run(begun, succeeds=False)
    assert ran.returncode == code, ran.stderr
    assert remedy in ran.stderr.partition("hint:")[2]
    assert (read.rows("select * from cdc_checkpoint"), write.slots()) == before
    assert read.texts("t") == [("1",)]


def streaming(write: Database, wanted: Configuration, checkpoint: Any) -> Any:
    replication = connect_replication(write.dsn)
    replication.execute(
        f"START_REPLICATION SLOT {wanted.slot} LOGICAL {Lsn(checkpoint)} "
        f"(proto_version '1', publication_names '{wanted.slot}')".encode()
    )
    return replication


def test_a_slot_that_is_read_elsewhere_is_stood_by_for(
    write: Database, read: Database, begun: Configuration, cdc_start: Start
) -> None:
    stored = read.value("select lsn from cdc_checkpoint")
    with closing(streaming(write, begun, stored)):
        daemon = cdc_start(begun)
        daemon.wait_until(lambda: "standby" in daemon.log)
        daemon.wait_until(lambda: not read.rows(LOCKS))  # who streams may need it
    daemon.wait_for(write.run(WRITTEN))
    assert read.texts("t") == [("1",), ("2",)]

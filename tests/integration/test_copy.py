"""Rows that were there before: copied in chunks, beside the stream."""

from collections.abc import Callable

import pytest

from tests.conftest import Configuration, Database, RunningDaemon

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]

TABLE = "create table t (id bigint primary key, v text, big text)"
FILL = "insert into t select i, 'v' || i, null from generate_series(1, {}) i"


def wait_copied(daemon: RunningDaemon, read: Database) -> None:
    exists = "select to_regclass('cdc_copy') is not null"
    left = "select count(*) filter (where state <> 'done') = 0 and count(*) > 0 from cdc_copy"
    daemon.wait_until(lambda: read.value(exists) and read.value(left))


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_rows_from_before_are_copied(
    write: Database, read: Database, configuration: Configure, cdc_start: Start, plugin: str, rows: int
) -> None:
    write.run(TABLE, FILL.format(rows))
    daemon = cdc_start(configuration(plugin, mirrors=[{"source": "public.t"}]))
    wait_copied(daemon, read)
    daemon.wait_for(write.run("insert into t values (1000000, 'new', 'big')"))
    assert read.texts("t") == write.texts("t")
    assert daemon.stop() == 0

"""The lag does not lie: caught up, stuck with nothing received, standing by, cut off."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests import roles
from tests.acceptance.conftest import Pipeline, until
from tests.acceptance.test_commands import series, value
from tests.proxy import Proxy

POSITIONS = tuple(
    f"cdc_{name}_position_bytes"
    for name in ("source_wal", "received", "checkpoint", "acknowledged")
)


def lag(url: str) -> tuple[float, float]:
    return value(url, "cdc_replication_lag_bytes"), value(url, "cdc_replication_lag_seconds")


def sender(pipeline: Pipeline) -> int:
    query = f"select active_pid from pg_replication_slots where slot_name = '{pipeline.name}'"
    return int(pipeline.source(query)[0][0])


@contextmanager
def paused(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_the_lag_is_told_in_every_state(one_pipeline: Pipeline) -> None:
    pipeline = one_pipeline
    pipeline.source("create table t (id int primary key)")
    pipeline.mirror("public.t")
    with Proxy(pipeline.write.port) as proxy:
        through = proxy.through(
            pipeline.write.dsn(pipeline.name, roles.write_role(pipeline.plugin))
        )
        url = pipeline.url(pipeline.start(CDC_SOURCE__DSN=through))
        pipeline.caught_up()
        until(lambda: lag(url) == (0, 0), what="there is no lag")
        found = series(url)
        positions = [found[name, frozenset()] for name in POSITIONS]
        assert positions == sorted(positions, reverse=True)
        assert positions[-1] > 0

        standby = pipeline.url(pipeline.start())
        until(lambda: value(standby, "cdc_state", state="standby") == 1, what="it stands by")
        until(lambda: value(standby, "cdc_slot_active") == 1, what="it has looked")
        until(lambda: lag(standby) == (0, 0), what="who stands by has none either")
        assert value(standby, POSITIONS[2]) > 0

        with paused(sender(pipeline)):
            received = value(url, POSITIONS[1])
            pipeline.source("insert into t values (1)")
            for one in (url, standby):
                until(lambda one=one: min(lag(one)) > 3, what="it grows, though nothing comes")
            assert value(url, POSITIONS[1]) == received
        for one in (url, standby):
            until(lambda one=one: lag(one) == (0, 0), what="it is caught up again")

        proxy.stall_all()
        until(lambda: lag(url)[1] > 10, what="nobody can tell what is written: it grows")
        assert value(url, POSITIONS[2]) > 0
        proxy.heal()

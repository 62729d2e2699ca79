"""A real Prometheus scrapes a real daemon under load: every query and every alert has its data."""

import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import Configuration, Database, RunningDaemon
from tests.prometheus import dashboard
from tests.prometheus.server import Prometheus, rules, shipped_configuration

MODULE = """
import sqlalchemy as sa
from cdc import Delete, Deleted, Upsert, projector

LOUD = sa.Table("loud", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True),
                sa.Column("v", sa.Text))

@projector("public.t", into=LOUD)
def loud(change):
    if isinstance(change, Deleted):
        return Delete(LOUD, id=change.key["id"])
    return Upsert(LOUD, id=change.row["id"], v=change.row["v"].upper())
"""
# Nothing of this kind has happened: no alert, no error.
MAY_BE_EMPTY = ("Alerts", "Errors that came, by reason")
SELECTOR = r"\b(?:cdc_\w+|process_\w+|up)\b(?:\{[^}]*\})?"


@contextmanager
def load(write: Database) -> Iterator[None]:
    """Write, as an application does, until the end."""
    ended = threading.Event()

    def writes() -> None:
        with write.connect() as connection:
            while not ended.wait(0.02):
                connection.execute("insert into t (v) select 'v' from generate_series(1, 50)")
                connection.execute("update t set v = 'w' where id = (select max(id) from t)")

    thread = threading.Thread(target=writes)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def has_data(result: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(one["value"][1])) for one in result)


def test_every_query_of_the_dashboard_and_every_alert_finds_its_data(
    write: Database,
    configuration: Callable[..., Configuration],
    cdc_start: Callable[..., RunningDaemon],
    tmp_path: Path,
) -> None:
    write.run("create table t (id bigint generated always as identity primary key, v text)")
    write.run("insert into t (v) select 'old' from generate_series(1, 100)")
    (tmp_path / "loud_module.py").write_text(MODULE)
    made = configuration("pgoutput", mirrors=[{"source": "public.t"}], modules=["loud_module"])
    daemon = cdc_start(made.with_(source={"heartbeat_seconds": 1}))
    daemon.wait_until(lambda: "listening" in daemon.log)
    (target,) = re.findall(r"url=http://(\S+)", daemon.log)
    shipped = shipped_configuration(tmp_path, [target])
    with load(write), Prometheus(shipped) as prometheus:
        daemon.wait_started()
        for title, expression in dashboard.queries():
            asked = dashboard.resolved(expression, job="cdc", interval="5s")
            if title in MAY_BE_EMPTY:
                prometheus.query(asked)
            else:
                until_data(prometheus, asked)
        for rule in rules():
            prometheus.query(rule["expr"])
            for selector in re.findall(SELECTOR, rule["expr"]):
                until_data(prometheus, selector)
        # What has to be so for minutes is told after a second here: and nothing is.
        prometheus.wait_until(lambda: prometheus.query('cdc_state{state="streaming"} == 1'))
        prometheus.wait_until(lambda: prometheus.alerts("firing") == {})
        told = {rule["name"]: rule["health"] for rule in prometheus_rules(prometheus)}
        assert told == dict.fromkeys((rule["alert"] for rule in rules()), "ok")


def until_data(prometheus: Prometheus, expression: str) -> None:
    try:
        prometheus.wait_until(lambda: has_data(prometheus.query(expression)))
    except AssertionError as error:
        raise AssertionError(f"no data: {expression}") from error


def prometheus_rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    (group,) = prometheus.ask("rules")["groups"]
    return list(group["rules"])

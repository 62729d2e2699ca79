"""What does not get on is told after its time, and no sooner."""

import logging
import threading

import pytest

from cdc.lsn import Lsn
from cdc.observe.heartbeats import Heartbeats
from cdc.observe.metrics import Metrics
from cdc.observe.state import State
from cdc.observe.watchdog import Doing, Watchdog
from cdc.operate.budget import Budget
from cdc.retry import Retry
from cdc.source.slot import Sample

WRITING = "writing to the read database"


def looks(watchdog: Watchdog, *doing: Doing, since: int, until: int) -> str | None:
    """Look once a second; give what the last look found."""
    found = None
    for now in range(since, until + 1):
        found = watchdog.look(doing, now=float(now))
    return found


def test_what_stays_where_it_is_is_told_after_its_time():
    watchdog = Watchdog(10)
    assert looks(watchdog, Doing(WRITING, 1), since=100, until=109) is None
    found = looks(watchdog, Doing(WRITING, 1), since=110, until=112)
    assert found == f"{WRITING}: no progress for 12 s"


def test_what_gets_on_is_never_stuck_however_long_it_takes():
    watchdog = Watchdog(10)
    for now in range(1000):
        assert watchdog.look([Doing(WRITING, now // 9)], now=float(now)) is None


def test_where_nothing_is_to_be_done_nothing_is_stuck_and_time_begins_anew():
    watchdog = Watchdog(10)
    assert looks(watchdog, Doing(WRITING, 1), since=0, until=9) is None
    assert looks(watchdog, since=10, until=100) is None
    assert looks(watchdog, Doing(WRITING, 1), since=101, until=110) is None
    assert looks(watchdog, Doing(WRITING, 1), since=111, until=111) is not None


def test_of_several_what_was_first_is_told():
    watchdog = Watchdog(10)
    looks(watchdog, Doing(WRITING, 1), since=0, until=5)
    both = Doing("projector x", 7), Doing(WRITING, 1)
    assert looks(watchdog, *both, since=6, until=20) == f"{WRITING}: no progress for 20 s"


def test_whoever_slept_cannot_tell():
    watchdog = Watchdog(10)
    looks(watchdog, Doing(WRITING, 1), since=0, until=5)
    assert watchdog.look([Doing(WRITING, 1)], now=5000.0) is None
    assert looks(watchdog, Doing(WRITING, 1), since=5001, until=5010) is not None


def test_it_can_be_switched_off():
    assert looks(Watchdog(0), Doing(WRITING, 1), since=0, until=1000) is None


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "cdc")
    return caplog


def test_being_stuck_is_said_once_and_so_is_its_end(said):
    metrics = Metrics()
    retry = Retry(metrics, threading.Event())
    retry.enter(State.STREAMING)
    said.clear()
    for seconds in (60, 61, 62):
        retry.judge(f"{WRITING}: no progress for {seconds} s")
    assert (metrics.state, metrics.retrying) == (State.STUCK, f"{WRITING}: no progress for 62 s")
    assert [record.getMessage() for record in said.records] == ["stuck"]
    retry.judge(None)
    retry.judge(None)
    assert (metrics.state, metrics.retrying) == (State.STREAMING, None)
    assert [record.getMessage() for record in said.records] == ["stuck", "streaming"]


@pytest.mark.parametrize("state", [State.STARTING, State.STANDBY, State.RETRYING, State.STOPPING])
def test_only_who_streams_can_be_stuck(state):
    metrics = Metrics()
    metrics.enter(state, because="why")
    Retry(metrics, threading.Event()).judge("anything")
    assert (metrics.state, metrics.retrying) == (state, "why")


def series(heartbeats: Heartbeats) -> dict[str, float]:
    found = [sample for family in heartbeats.collect() for sample in family.samples]
    return {sample.name: sample.value for sample in found if not sample.labels}


def test_a_heartbeat_has_come_back_once_the_checkpoint_is_past_it():
    heartbeats = Heartbeats()
    heartbeats.sent(Lsn(100), at=5000.0, clock=10.0, now=10.1)
    heartbeats.reached(Lsn(100), now=11.0)  # its message, not its commit
    assert heartbeats.under_way
    assert series(heartbeats)["cdc_last_heartbeat_timestamp_seconds"] == 0
    heartbeats.reached(Lsn(150), now=12.5)
    assert not heartbeats.under_way
    assert series(heartbeats) == {
        "cdc_heartbeat_interval_seconds": 0,
        "cdc_heartbeat_round_trip_seconds_count": 1,
        "cdc_heartbeat_round_trip_seconds_sum": 2.5,
        "cdc_last_heartbeat_timestamp_seconds": 5000.0,
    }


def test_a_heartbeat_may_be_back_before_it_is_noted():
    heartbeats = Heartbeats()
    heartbeats.reached(Lsn(150), now=10.2)
    heartbeats.sent(Lsn(100), at=5000.0, clock=10.0, now=10.5)
    assert series(heartbeats)["cdc_heartbeat_round_trip_seconds_sum"] == 0.5


def test_a_slot_in_danger_is_said_once_and_so_is_its_end(said):
    budget = Budget("cdc")
    for status in ("reserved", "extended", "unreserved", "unreserved", "extended", "lost"):
        budget.look(Sample(wal=1, wal_status=status, safe_wal_size=7, retained=9, decoding=False))
    assert [record.getMessage() for record in said.records] == [
        "slot in danger",
        "slot out of danger",
    ]
    assert (budget.wal_status, budget.safe_wal_bytes) == ("lost", 7)

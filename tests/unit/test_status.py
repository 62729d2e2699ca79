"""The status: the verdict first, then the facts, on a screen of 80 columns."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cdc.observe.state import State
from cdc.operate.status import Status
from cdc.operate.status.screen import lines
from cdc.operate.status.verdict import BEHIND_BYTES, BEHIND_SECONDS, GOES_ON, Seen, judge
from cdc.source.slot import SlotState

READ = SlotState("pgoutput", "shop", True, 7, "reserved", 500, 400, None)
UNREAD = replace(READ, active=False, active_pid=None)
FINE = Seen(READ, True, State.STREAMING, None, 0.0, 0, {}, {})
ASIDE = {"mirror:public.t": 2}


@pytest.mark.parametrize(
    ("seen", "condition", "exit_code", "word"),
    [
        (FINE, "fine", 0, "caught up"),
        (FINE._replace(state=None, lag_seconds=None), "fine", 0, "caught up"),
        (FINE._replace(lag_seconds=BEHIND_SECONDS), "behind", 0, "streaming"),
        (FINE._replace(state=None, lag_bytes=BEHIND_BYTES), "behind", 0, "streaming"),
        (FINE._replace(state=State.STARTING), "behind", 0, "starting"),
        (FINE._replace(state=State.STANDBY, because="it is locked"), "standby", 0, "locked"),
        (FINE._replace(state=State.STUCK, because="a batch"), "stuck", 1, "a batch"),
        (FINE._replace(state=State.RETRYING, because="no answer"), "stuck", 1, "no answer"),
        (FINE._replace(state=State.STOPPING), "stopped", 1, "stopping"),
        (FINE._replace(slot=UNREAD, state=None), "stopped", 1, "no daemon streams"),
        (FINE._replace(slot=None, state=None, has_checkpoint=False), "stopped", 1, "not set up"),
        (FINE._replace(slot=None, state=None), "needs you", 1, "slot is gone"),
        (FINE._replace(slot=None, state=None, replaced=True), "needs you", 1, "is not the one"),
        (FINE._replace(slot=replace(UNREAD, wal_status="lost")), "needs you", 1, "slot is lost"),
        (FINE._replace(state=None, has_checkpoint=False), "needs you", 1, "no checkpoint"),
        (FINE._replace(slot=replace(READ, wal_status="unreserved")), "needs you", 1, "danger"),
        (FINE._replace(quarantined=ASIDE), "needs you", 1, "2 keys set aside"),
        (FINE._replace(mismatched={"seen": 3}), "needs you", 1, "3 read rows wrong"),
        (FINE._replace(state=State.STUCK, quarantined=ASIDE), "stuck", 1, "got on"),
    ],
)
def test_the_worst_decides_the_verdict_and_it_says_what_to_do(
    seen: Seen, condition: str, exit_code: int, word: str
) -> None:
    verdict = judge(seen)
    assert (verdict.condition, int(verdict.condition not in GOES_ON)) == (condition, exit_code)
    assert word in verdict.said
    assert exit_code == 0 or condition == "stopped" or verdict.todo


NOW = datetime(2026, 11, 30, 4, 30, tzinfo=UTC)
STATUS = Status(
    condition="needs you",
    verdict="2 keys set aside; streaming, and caught up",
    next=("`cdc quarantine list` shows what is set aside; mend it, then `cdc quarantine replay`",),
    since="2026-11-30T01:00:00+00:00",
    slot="cdc",
    slot_exists=True,
    streaming=True,
    wal_status="extended",
    safe_wal_bytes=10 * 1024**3,
    retained_wal_bytes=3 * 1024**2,
    checkpoint_lsn="0/10",
    wal_lsn="0/20",
    lag_bytes=16,
    lag_seconds=0.5,
    last_commit_time="2026-11-30T04:29:00+00:00",
    daemon=True,
    state="streaming",
    because=None,
    quarantined_keys=ASIDE,
    copies=(
        {
            "table": "public.t",
            "projector": "mirror:public.t",
            "state": "copying",
            "percent": 45.0,
            "rows": 450,
            "expected_rows": 1000,
        },
    ),
    verification=(
        {
            "projector": "mirror:public.t",
            "table": "public.t",
            "phase": "done",
            "compared": 1000,
            "mismatched": 3,
            "updated_at": "2026-11-30T04:29:30+00:00",
        },
    ),
    errors=(
        {"at": "2026-11-30T04:28:00+00:00", "message": "a \x1b[2Jb " * 20, "hint": "start it"},
    ),
    unreachable=(),
)


def test_a_screen_says_all_of_it_within_80_columns_the_verdict_first() -> None:
    shown = list(lines(STATUS, now=NOW, width=80))
    assert shown[0] == "needs you         2 keys set aside; streaming, and caught up"
    assert max(map(len, shown)) <= 80
    assert len(shown) <= 24
    text = " ".join(" ".join(shown).split())
    for fact in (
        "lag 16 bytes, 0.5 s",
        "since 2026-11-30 01:00:00 UTC, 3 h ago",
        "last commit 2026-11-30 04:29:00 UTC, 60 s ago",
        "cdc: being read, keeps 3.0 MB of WAL, 10.0 GB until it may be lost, extended",
        "copies 0 of 1 done, 1 copying",
        "public.t for mirror:public.t: copying, 45.0 %, 450 of about 1,000 rows",
        "quarantined keys 2 of mirror:public.t",
        "1,000 rows compared, 3 wrong; done",
        "mend: start it",
        "next `cdc quarantine list`",
    ):
        assert fact in text
    assert "\x1b" not in text


def test_of_hundreds_of_tables_a_screen_has_those_that_matter() -> None:
    (copying,), (wrong,) = STATUS.copies, STATUS.verification or ()
    done = {**copying, "table": "public.done", "state": "done"}
    right = {**wrong, "table": "public.done", "mismatched": 0}
    many = replace(STATUS, copies=(*[done] * 300, copying), verification=(*[right] * 300, wrong))
    shown = list(lines(many, now=NOW))
    assert len(shown) <= 24
    assert next(line.split()[0] for line in shown if "450" in line) == "public.t"
    assert any("public.t for mirror:public.t: 1,000 rows compared, 3 wrong" in li for li in shown)
    assert sum("and 297 more, which --json has" in line for line in shown) == 2


def test_a_screen_that_is_no_terminal_keeps_a_fact_on_a_line() -> None:
    shown = list(lines(STATUS, now=NOW))
    assert sum("mend: start it" in line for line in shown) == 1
    assert any(line.endswith("then `cdc quarantine replay`") for line in shown)


def test_what_is_not_known_is_told_as_such() -> None:
    blind = replace(STATUS, copies=(), verification=None, errors=(), unreachable=("no answer",))
    shown = list(lines(blind, now=NOW))
    assert "verification      unknown: the read database does not answer" in shown
    assert "last errors       now: no answer" in shown
    idle = replace(STATUS, verification=(), errors=(), daemon=False, next=())
    shown = list(lines(idle, now=NOW))
    assert "last errors       unknown: no daemon answers here" in shown
    assert shown[-1] == "next              nothing"

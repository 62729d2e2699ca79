"""What is found at start decides: the table of DESIGN's rule 8, row by row."""

from typing import Any

import pytest

from cdc.errors import (
    ChangesConsumedElsewhere,
    SlotActive,
    SlotLost,
    SlotMismatch,
    SlotMissing,
    SlotWithoutCheckpoint,
    SourceReplaced,
    StartRefused,
)
from cdc.lsn import Lsn
from cdc.operate.startup import Start, decide, require_on_timeline
from cdc.sink.checkpoint import Checkpoint, Identity
from cdc.source.slot import SlotState, System

SYSTEM = System("7", 3, Lsn(1000), "shop")


def slot(**differences: Any) -> SlotState:
    fits: dict[str, Any] = {
        "plugin": "pgoutput",
        "database": "shop",
        "active": False,
        "active_pid": None,
        "wal_status": "reserved",
        "confirmed_flush": 500,
        "restart": 400,
        "safe_wal_size": None,
    }
    return SlotState(**fits | differences)


def checkpoint(lsn: int | None = 500, **differences: Any) -> Checkpoint:
    fits: dict[str, Any] = {
        "slot": "s",
        "plugin": "pgoutput",
        "system_identifier": "7",
        "timeline": 3,
    }
    return Checkpoint(Identity(**fits | differences), None if lsn is None else Lsn(lsn), None)


def decided(found: SlotState | None, stored: Checkpoint | None) -> Start:
    return decide(slot=found, checkpoint=stored, system=SYSTEM, name="s", plugin="pgoutput")


LOST = slot(wal_status="lost", restart=None)
# A slot of CREATE_REPLICATION_SLOT that waits for a transaction: there, with no position yet.
UNFINISHED = slot(confirmed_flush=None, restart=None, active=True, active_pid=9)


@pytest.mark.parametrize(
    ("found", "stored", "start"),
    [
        (None, None, Start.CREATE_SLOT),
        (None, checkpoint(None), Start.CREATE_SLOT),
        (slot(), checkpoint(None), Start.ADOPT_SLOT),
        (slot(), checkpoint(500), Start.STREAM),
        (slot(), checkpoint(501), Start.STREAM),
        (slot(), checkpoint(1000), Start.STREAM),
        (slot(wal_status="unreserved"), checkpoint(), Start.STREAM),
        (slot(wal_status="extended"), checkpoint(), Start.STREAM),
        (slot(active=True, active_pid=5), checkpoint(), Start.STREAM),
        (slot(), checkpoint(timeline=2), Start.STREAM),
    ],
)
def test_where_nothing_is_lost_it_begins(
    found: SlotState | None, stored: Checkpoint | None, start: Start
) -> None:
    assert decided(found, stored) is start


@pytest.mark.parametrize(
    ("found", "stored", "refusal"),
    [
        (slot(), checkpoint(499), ChangesConsumedElsewhere),
        (slot(confirmed_flush=900), checkpoint(500), ChangesConsumedElsewhere),
        (slot(), checkpoint(1001), SourceReplaced),
        (None, checkpoint(1001), SourceReplaced),
        (LOST, checkpoint(1001), SourceReplaced),
        (slot(), checkpoint(system_identifier="8"), SourceReplaced),
        (None, checkpoint(system_identifier="8"), SourceReplaced),
        (LOST, checkpoint(system_identifier="8"), SourceReplaced),
        (slot(), checkpoint(None, system_identifier="8"), SourceReplaced),
        (slot(), checkpoint(timeline=4), SourceReplaced),
        (slot(), None, SlotWithoutCheckpoint),
        (slot(active=True), None, SlotWithoutCheckpoint),
        (LOST, None, SlotWithoutCheckpoint),
        (slot(plugin="wal2json"), None, SlotWithoutCheckpoint),
        (None, checkpoint(), SlotMissing),
        (LOST, checkpoint(), SlotLost),
        (LOST, checkpoint(None), SlotLost),
        (slot(wal_status="lost"), checkpoint(), SlotLost),
        (slot(plugin="wal2json"), checkpoint(), SlotMismatch),
        (slot(plugin=None), checkpoint(), SlotMismatch),
        (slot(database="other"), checkpoint(), SlotMismatch),
        (slot(database="other"), checkpoint(None), SlotMismatch),
        (slot(), checkpoint(plugin="wal2json"), SlotMismatch),
        (UNFINISHED, checkpoint(None), SlotActive),
    ],
)
def test_where_changes_would_be_lost_or_doubled_it_is_refused(
    found: SlotState | None, stored: Checkpoint | None, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal) as caught:
        decided(found, stored)
    assert type(caught.value) is refusal
    if isinstance(caught.value, StartRefused):
        assert caught.value.hint
        assert not caught.value.transient


def test_a_refusal_writes_positions_as_postgres_does() -> None:
    with pytest.raises(ChangesConsumedElsewhere) as caught:
        decided(slot(), checkpoint(499))
    assert "0/1F4" in str(caught.value)
    assert "0/1F3" in str(caught.value)


@pytest.mark.parametrize(("lsn", "left"), [(500, 500), (500, 501), (None, None), (None, 1)])
def test_a_checkpoint_that_the_promoted_standby_had_reached_is_gone_on_from(
    lsn: int | None, left: int | None
) -> None:
    stored = checkpoint(lsn, timeline=2)
    require_on_timeline(stored, SYSTEM, left=None if left is None else Lsn(left))


@pytest.mark.parametrize("left", [None, 499])
def test_a_checkpoint_that_the_promoted_standby_lacks_is_refused(left: int | None) -> None:
    stored = checkpoint(500, timeline=2)
    with pytest.raises(SourceReplaced, match="lacks changes") as refused:
        require_on_timeline(stored, SYSTEM, left=None if left is None else Lsn(left))
    assert "cdc resync" in str(refused.value.hint)

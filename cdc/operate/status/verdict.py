"""Whether a pipeline is fine, in words, and what there is to do."""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from cdc.observe.state import State
from cdc.operate import budget
from cdc.source.slot import SlotState

Condition = Literal["fine", "behind", "stuck", "stopped", "standby", "needs you"]
GOES_ON: Final[frozenset[Condition]] = frozenset({"fine", "behind", "standby"})
"""Where nobody has to do anything: exit code 0."""

BEHIND_SECONDS: Final = 10.0
BEHIND_BYTES: Final = 16 * 1024**2
"""Of a daemon that was not asked: a segment of WAL."""


class Seen(NamedTuple):
    """What the databases and the daemon say. `state` is None where no daemon answered."""

    slot: SlotState | None
    has_checkpoint: bool
    state: State | None
    because: str | None
    lag_seconds: float | None
    lag_bytes: int | None
    quarantined: Mapping[str, int]
    mismatched: Mapping[str, int]
    replaced: bool = False
    """Whether the checkpoint is of another write database."""


class Verdict(NamedTuple):
    """The condition, why, and what there is to do."""

    condition: Condition
    said: str
    todo: tuple[str, ...]


def judge(seen: Seen) -> Verdict:
    """Judge what is seen; the worst decides."""
    lost = _lost(seen)
    if lost is not None:
        return lost
    trouble = list(_trouble(seen))
    todo = tuple(mend for _, mend in trouble)
    condition, said = _streaming(seen)
    if condition in GOES_ON and trouble:
        return Verdict("needs you", "; ".join([*(what for what, _ in trouble), said]), todo)
    return Verdict(condition, said, (*_mend(condition, seen), *todo))


def _lost(seen: Seen) -> Verdict | None:
    """Judge what no daemon goes on from."""
    resync = "`cdc resync` makes a new slot and copies everything again; read tables stay readable"
    if seen.replaced:
        said = "the write database is not the one that the checkpoint belongs to"
        mend = f"correct source.dsn or read.url; if it was replaced or restored: {resync}"
        return Verdict("needs you", said, (mend,))
    match seen.slot, seen.has_checkpoint:
        case None, False:
            return Verdict(
                "stopped",
                "not set up",
                ("`cdc run` or `cdc setup` begins; `cdc check` says what is missing for it",),
            )
        case None, True:
            return Verdict("needs you", "the slot is gone, changes were lost", (resync,))
        case SlotState(lost=True), _:
            return Verdict("needs you", "the slot is lost, changes were lost", (resync,))
        case _, False if seen.state is None:
            said = "the slot has no checkpoint in this read database"
            return Verdict("needs you", said, ("`cdc check` says whose it may be",))
    return None


def hangs() -> tuple[str, str]:
    """Say what is with a daemon that takes a connection and does not answer; and what to do."""
    return (
        "the daemon here does not answer: it is paused or hangs, or something else has http.listen",
        "start it again (`systemctl restart cdc`): nothing is lost by it",
    )


_BY_STATE: Final[Mapping[State | None, tuple[Condition, str]]] = {
    State.STUCK: ("stuck", "nothing has got on for too long"),
    State.RETRYING: ("stuck", "it tries again"),
    State.STANDBY: ("standby", "another daemon streams"),
    State.STARTING: ("behind", "the daemon is starting"),
    State.STOPPING: ("stopped", "the daemon is stopping"),
}


def _streaming(seen: Seen) -> tuple[Condition, str]:
    """Judge how the daemon does, or whether there is one."""
    if seen.state in _BY_STATE:
        condition, said = _BY_STATE[seen.state]
        return condition, f"{said}: {seen.because}" if seen.because else said
    if seen.state is None and not (seen.slot is not None and seen.slot.active):
        return "stopped", "no daemon streams"
    if _is_behind(seen):
        return "behind", "streaming"
    return "fine", "streaming, and caught up"


def _is_behind(seen: Seen) -> bool:
    if seen.state is not None:
        return (seen.lag_seconds or 0) >= BEHIND_SECONDS
    return (seen.lag_bytes or 0) >= BEHIND_BYTES


def _mend(condition: Condition, seen: Seen) -> Iterator[str]:
    if condition == "stopped" and seen.state is None:
        yield "`cdc run` goes on from the checkpoint"
    elif condition == "stuck" and seen.state is State.STUCK:
        yield "see what it waits for; a restart does not help against a lock that somebody holds"
    elif condition == "stuck":
        yield "it goes on by itself when that passes; `cdc check` says what keeps it"


def _trouble(seen: Seen) -> Iterator[tuple[str, str]]:
    """Give what somebody has to look at, also while all is streaming, and what mends it."""
    status = seen.slot.wal_status if seen.slot else None
    if status == "unreserved":
        mend = f"{budget.threat(status)}. `cdc check` gives the SQL that makes room"
        yield "the slot is in danger", mend
    held = sum(seen.quarantined.values())
    if held:
        yield (
            f"{held:,} {'key' if held == 1 else 'keys'} set aside",
            "`cdc quarantine list` shows what is set aside; mend it, then `cdc quarantine replay`",
        )
    for projector, count in seen.mismatched.items():
        if count:
            yield (
                f"{count:,} read rows wrong",
                f"`cdc verify --projector '{projector}' --repair` puts read rows right",
            )

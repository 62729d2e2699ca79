"""How the pipeline stands: from the running daemon, and the two databases: also where none runs."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cdc.copy_state import Copy
from cdc.errors import CdcError
from cdc.lsn import Lsn
from cdc.observe.progress import described
from cdc.observe.state import State
from cdc.operate.status import daemon
from cdc.operate.status.verdict import GOES_ON, Condition, Seen, hangs, judge
from cdc.projection.quarantine import Held
from cdc.settings import Settings
from cdc.sink import checkpoint, copies, quarantine, verifications
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source import slot
from cdc.source.connection import connect
from cdc.verify_state import Verification

__all__ = ["Status", "read_status"]


@dataclass(frozen=True, slots=True)
class Status:
    """What is known. Positions as text, sizes in bytes, times as ISO 8601 text.

    `state`, `because`, `lag_seconds`, `errors` are the daemon's that answered, and `unreachable`
    tells which databases did not: what only these know is None.
    """

    condition: Condition
    verdict: str
    next: tuple[str, ...]
    since: str | None
    slot: str
    slot_exists: bool
    streaming: bool
    wal_status: str | None
    safe_wal_bytes: int | None
    retained_wal_bytes: int | None
    checkpoint_lsn: str | None
    wal_lsn: str | None
    lag_bytes: int | None
    lag_seconds: float | None
    last_commit_time: str | None
    daemon: bool
    state: str | None
    because: str | None
    quarantined_keys: dict[str, int]
    copies: tuple[dict[str, Any], ...]
    verification: tuple[dict[str, Any], ...] | None
    errors: tuple[dict[str, Any], ...]
    unreachable: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON's types."""
        return asdict(self)

    @property
    def goes_on(self) -> bool:
        """Tell whether nobody has to do anything."""
        return self.condition in GOES_ON


class _Source(NamedTuple):
    slot: slot.SlotState | None
    sample: slot.Sample
    system_identifier: str | None


class _Stored(NamedTuple):
    checkpoint: checkpoint.Checkpoint | None
    copies: tuple[Copy, ...]
    held: Held
    verifications: tuple[Verification, ...]


def read_status(settings: Settings) -> Status:
    """Ask the daemon, and both databases.

    Raise a SourceError or ReadError where a database does not answer, and no daemon either.
    """
    heard = daemon.ask(settings)
    answer = heard or None
    unreachable: list[str] = []
    source: _Source | None = None
    stored: _Stored | None = None
    try:
        source = _look_at_source(settings)
    except CdcError as error:
        _require_a_daemon(answer, error)
        unreachable.append(str(error))
    try:
        stored = _look_at_read(settings)
    except CdcError as error:
        _require_a_daemon(answer, error)
        unreachable.append(str(error))
    told = _told(settings, answer or {}, source, stored, unreachable)
    return told if heard is not daemon.SILENT else _silent(told)


def _silent(told: Status) -> Status:
    """Say that the daemon does not answer: the databases may tell of it for a minute still."""
    if told.condition == "needs you":
        return told
    said, todo = hangs()
    return replace(told, condition="stuck", verdict=said, next=(todo, *told.next))


def _require_a_daemon(answer: daemon.Answer | None, error: CdcError) -> None:
    if answer is None:
        raise error


def _look_at_source(settings: Settings) -> _Source:
    name = settings.source.slot
    with closing(connect(settings.source.dsn.get_secret_value())) as source:
        return _Source(
            slot.read_slot(source, name),
            slot.sample(source, name),
            slot.system_identifier(source),
        )


def _look_at_read(settings: Settings) -> _Stored:
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)
    name = settings.source.slot
    with closing(connect_read(engine)) as read, translated():
        found = (copies.load(read, name) or {}).values()
        in_order = sorted(found, key=lambda copy: (copy.unit.source, copy.unit.projector))
        held, _ = quarantine.load(read, name, isolates=False)
        verified = sorted(verifications.load(read, name).values(), key=lambda one: one.unit)
        return _Stored(checkpoint.load(read, name), tuple(in_order), held, tuple(verified))


def _told(
    settings: Settings,
    answer: daemon.Answer,
    source: _Source | None,
    stored: _Stored | None,
    unreachable: Iterable[str],
) -> Status:
    """Put together what is known; what the databases say goes before what the daemon heard."""
    found = source.slot if source else None
    point = stored.checkpoint if stored else None
    lsn = point.lsn if point else None
    state = State(answer["state"]) if answer.get("state") in set(State) else None
    # A daemon that stands by knows nothing of how far the other one is.
    streams = state not in {None, State.STANDBY}
    wal = Lsn(source.sample.wal) if source else None
    lag_bytes = max(0, wal - lsn) if wal is not None and lsn is not None else None
    lag_bytes = answer.get("lag_bytes") if lag_bytes is None and streams else lag_bytes
    lag_seconds = answer.get("lag_seconds") if streams else None
    quarantined = stored.held.counts() if stored else answer.get("quarantined_keys", {})
    verified = stored.verifications if stored else ()
    # Unseen, the slot is what the daemon says of it.
    exists = source is None or found is not None
    verdict = judge(
        Seen(
            slot=found if source else _as_heard(answer),
            has_checkpoint=lsn is not None or stored is None,
            state=state,
            because=answer.get("because"),
            lag_seconds=lag_seconds,
            lag_bytes=lag_bytes,
            quarantined=quarantined,
            mismatched=_mismatched(verified),
            replaced=_replaced(source, point),
        )
    )
    return Status(
        condition=verdict.condition,
        verdict=verdict.said,
        next=verdict.todo,
        since=_since(answer, point),
        slot=settings.source.slot,
        slot_exists=exists,
        streaming=found.active if found else state is State.STREAMING,
        wal_status=found.wal_status if found else answer.get("wal_status"),
        safe_wal_bytes=found.safe_wal_size if found else answer.get("safe_wal_bytes"),
        retained_wal_bytes=source.sample.retained if source else answer.get("retained_wal_bytes"),
        checkpoint_lsn=str(lsn) if lsn is not None else answer.get("checkpoint_lsn"),
        wal_lsn=str(wal) if wal is not None else answer.get("wal_lsn"),
        lag_bytes=lag_bytes,
        lag_seconds=lag_seconds,
        last_commit_time=_iso(point.commit_time) if point else None,
        daemon=bool(answer),
        state=state,
        because=answer.get("because"),
        quarantined_keys=dict(sorted(quarantined.items())),
        copies=tuple(map(described, stored.copies) if stored else answer.get("copies", ())),
        verification=tuple(map(_verification, verified)) if stored else None,
        errors=tuple(map(_error, answer.get("errors", ()))),
        unreachable=tuple(unreachable),
    )


def _replaced(source: _Source | None, point: checkpoint.Checkpoint | None) -> bool:
    if source is None or source.system_identifier is None or point is None:
        return False
    return point.identity.system_identifier != source.system_identifier


def _as_heard(answer: daemon.Answer) -> slot.SlotState:
    active = answer.get("state") not in {None, State.STANDBY}
    return slot.SlotState(
        plugin=answer.get("plugin"),
        database=None,
        active=active,
        active_pid=None,
        wal_status=answer.get("wal_status"),
        confirmed_flush=None,
        restart=0,
        safe_wal_size=answer.get("safe_wal_bytes"),
    )


def _mismatched(verified: Iterable[Verification]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in verified:
        counts[one.unit.projector] = counts.get(one.unit.projector, 0) + one.mismatched
    return counts


def _since(answer: daemon.Answer, point: checkpoint.Checkpoint | None) -> str | None:
    """Give since when: of a daemon its state; without one, when the checkpoint last moved."""
    if answer.get("since"):
        return _iso(datetime.fromtimestamp(answer["since"], UTC))
    return _iso(point.updated_at) if point else None


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time is not None else None


def _verification(one: Verification) -> dict[str, Any]:
    return {
        "projector": one.unit.projector,
        "table": str(one.unit.source),
        "phase": one.phase,
        "compared": one.compared,
        "mismatched": one.mismatched,
        "updated_at": _iso(one.updated_at),
    }


def _error(failure: dict[str, Any]) -> dict[str, Any]:
    return {**failure, "at": _iso(datetime.fromtimestamp(failure["at"], UTC))}

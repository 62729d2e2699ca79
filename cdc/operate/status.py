"""How the pipeline stands, from the two databases: also while no daemon runs."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from cdc.copy_state import Copy
from cdc.observe.progress import described, percent, ratio, rows, summary
from cdc.projection.quarantine import Held
from cdc.settings import Settings
from cdc.sink import checkpoint, copies, quarantine
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source import slot
from cdc.source.connection import connect


@dataclass(frozen=True, slots=True)
class Status:
    """What the slot and the checkpoint say. Positions as text, sizes in bytes."""

    slot: str
    slot_exists: bool
    streaming: bool
    wal_status: str | None
    checkpoint_lsn: str | None
    wal_lsn: str
    lag_bytes: int | None
    last_commit_time: str | None
    verdict: str
    quarantined_keys: dict[str, int]
    copies: tuple[Copy, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON's types."""
        return asdict(self) | {"copies": [described(copy) for copy in self.copies]}

    def lines(self) -> Iterator[str]:
        """Give it for people: a line for each fact, and for each copy."""
        for name, value in asdict(self).items():
            if name not in {"copies", "quarantined_keys"}:
                yield _line(name.replace("_", " "), "-" if value is None else value)
        held = [f"{count} of {projector}" for projector, count in self.quarantined_keys.items()]
        yield _line("quarantined keys", ", ".join(held) or "none")
        yield _line("copies", summary(self.copies))
        for copy in self.copies:
            share = f"{percent(ratio(copy))} %, {rows(copy)}"
            said = "skipped" if copy.state == "skipped" else f"{copy.state}, {share}"
            yield _line("", f"{copy.unit.source} for {copy.unit.projector}: {said}")


def _line(name: str, value: object) -> str:
    return f"{name:17} {value}"


def read_status(settings: Settings) -> Status:
    """Ask both databases; raise a SourceError or ReadError."""
    name = settings.source.slot
    with closing(connect(settings.source.dsn.get_secret_value())) as source:
        state, wal = slot.read_slot(source, name), slot.current_lsn(source)
    stored, copied, held = _stored(settings)
    lsn = stored.lsn if stored else None
    commit_time = stored.commit_time if stored else None
    return Status(
        slot=name,
        slot_exists=state is not None,
        streaming=state is not None and state.active,
        wal_status=state.wal_status if state else None,
        checkpoint_lsn=str(lsn) if lsn is not None else None,
        wal_lsn=str(wal),
        lag_bytes=max(0, wal - lsn) if lsn is not None else None,
        last_commit_time=commit_time.isoformat() if commit_time else None,
        verdict=_verdict(state, lsn is not None),
        quarantined_keys=dict(sorted(held.counts().items())),
        copies=copied,
    )


def _stored(
    settings: Settings,
) -> tuple[checkpoint.Checkpoint | None, tuple[Copy, ...], Held]:
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)
    name = settings.source.slot
    with closing(connect_read(engine)) as read, translated():
        found = copies.load(read, name) or {}
        in_order = sorted(found.values(), key=lambda copy: (copy.unit.source, copy.unit.projector))
        held, _ = quarantine.load(read, name, isolates=False)
        return checkpoint.load(read, name), tuple(in_order), held


def _verdict(state: slot.SlotState | None, has_checkpoint: bool) -> str:  # noqa: FBT001
    match state, has_checkpoint:
        case None, False:
            return "not set up: `cdc run` or `cdc setup` begins"
        case None, True:
            return "the slot is gone, changes were lost: `cdc resync`"
        case slot.SlotState(lost=True), _:
            return "the slot is lost, changes were lost: `cdc resync`"
        case _, False:
            return "the slot has no checkpoint in this read database"
        case slot.SlotState(active=True), _:
            return "streaming"
        case _:
            return "stopped: `cdc run` goes on from the checkpoint"

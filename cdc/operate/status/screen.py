"""The status on one screen: a line for each fact, the verdict first."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cdc.observe.logs import printable
from cdc.observe.progress import summary_of
from cdc.operate.status import Status

_INDENT: Final = 18
_ERRORS: Final = 3
_LISTED: Final = 4
_COPIED: Final = {"done", "skipped"}
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")
_KILO: Final = 1024


def lines(status: Status, *, now: datetime, width: int | None = None) -> Iterator[str]:
    """Give it for people; wrapped where a width is given."""
    for name, value in _facts(status, now):
        text = f"{name:{_INDENT - 1}} {printable(value)}" if name or value else ""
        if width is None or len(text) <= width:
            yield text
        else:
            yield from textwrap.wrap(text, width, subsequent_indent=" " * _INDENT)


def _facts(status: Status, now: datetime) -> Iterator[tuple[str, str]]:
    yield status.condition, status.verdict
    yield "lag", _lag(status)
    yield "since", _ago(status.since, now)
    yield "last commit", _ago(status.last_commit_time, now)
    yield "slot", _slot(status)
    yield "checkpoint", f"{status.checkpoint_lsn or '-'}; WAL is at {status.wal_lsn or '-'}"
    yield "copies", summary_of([copy["state"] for copy in status.copies])
    due_first = sorted(status.copies, key=lambda copy: copy["state"] in _COPIED)
    told = [f"{copy['table']} for {copy['projector']}: {_copied(copy)}" for copy in due_first]
    yield from (("", line) for line in _some(told))
    held = [f"{count} of {projector}" for projector, count in status.quarantined_keys.items()]
    yield "quarantined keys", ", ".join(held) or "none"
    yield from _verification(status, now)
    yield from _errors(status, now)
    for number, todo in enumerate(status.next):
        yield "" if number else "next", todo
    if not status.next:
        yield "next", "nothing"


def _some(told: Sequence[str]) -> Iterator[str]:
    """Give the first of them, and how many more there are: it is one screen."""
    yield from told[:_LISTED]
    if len(told) > _LISTED:
        yield f"and {len(told) - _LISTED} more, which --json has"


def _copied(copy: Mapping[str, Any]) -> str:
    if copy["state"] == "skipped":
        return "skipped"
    due = copy["state"] != "done" and copy["expected_rows"]
    expected = f" of about {copy['expected_rows']:,}" if due else ""
    return f"{copy['state']}, {copy['percent']} %, {copy['rows']:,}{expected} rows"


def _lag(status: Status) -> str:
    size = "-" if status.lag_bytes is None else _size(status.lag_bytes)
    return size if status.lag_seconds is None else f"{size}, {status.lag_seconds:.1f} s"


def _slot(status: Status) -> str:
    if not status.slot_exists:
        return f"{status.slot}: there is none"
    parts = [f"{status.slot}: {'being read' if status.streaming else 'nobody reads it'}"]
    if status.retained_wal_bytes is not None:
        parts.append(f"keeps {_size(status.retained_wal_bytes)} of WAL")
    if status.safe_wal_bytes is not None:
        parts.append(f"{_size(max(0, status.safe_wal_bytes))} until it may be lost")
    if status.wal_status not in {None, "reserved"}:
        parts.append(str(status.wal_status))
    return ", ".join(parts)


def _verification(status: Status, now: datetime) -> Iterator[tuple[str, str]]:
    if status.verification is None:
        yield "verification", "unknown: the read database does not answer"
        return
    found = sorted(
        status.verification, key=lambda one: (-one["mismatched"], one["phase"] == "done")
    )
    for number, line in enumerate(_some([_verified(one, now) for one in found])):
        yield "" if number else "verification", line
    if not found:
        yield "verification", "none yet: `cdc verify` compares both sides"


def _verified(one: Mapping[str, Any], now: datetime) -> str:
    said = f"{one['compared']:,} rows compared, {one['mismatched']:,} wrong"
    when = f"{one['phase']}, {_ago(one['updated_at'], now)}"
    return f"{one['table']} for {one['projector']}: {said}; {when}"


def _errors(status: Status, now: datetime) -> Iterator[tuple[str, str]]:
    told = [f"now: {message}" for message in status.unreachable]
    told += [
        f"{_ago(error['at'], now)}: {error['message']}"
        + (f"; mend: {error['hint']}" if error["hint"] else "")
        for error in status.errors
        if error["message"] not in status.unreachable
    ]
    for number, error in enumerate(told[:_ERRORS]):
        yield "" if number else "last errors", error
    if not told:
        yield "last errors", "none" if status.daemon else "unknown: no daemon answers here"


def _size(count: float) -> str:
    unit = 0
    while count >= _KILO and unit + 1 < len(_UNITS):
        count, unit = count / _KILO, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if not unit else f"{count:.1f} {_UNITS[unit]}"


def _ago(time: str | None, now: datetime) -> str:
    if time is None:
        return "-"
    at = datetime.fromisoformat(time).astimezone(UTC)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC, {_long((now - at).total_seconds())} ago"


def _long(seconds: float) -> str:
    whole = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"

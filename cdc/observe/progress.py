"""How far copies are, in figures and words."""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cdc.copy_state import Copy, Unit
from cdc.names import TableName

_NEARLY: Final = 0.999  # the most, while an estimate has been passed and rows are still to come


def ratio(copy: Copy) -> float:
    """Give how far a copy is, from 0 to 1; 1 only where nothing is left of it."""
    if not copy.due:
        return 1.0
    return min(copy.copied / copy.expected, _NEARLY) if copy.expected else 0.0


def ratios(copies: Iterable[Copy]) -> dict[TableName, float]:
    """Give how far each source table is: as far as the projector that is furthest behind."""
    found: dict[TableName, float] = {}
    for copy in copies:
        source = copy.unit.source
        found[source] = min(ratio(copy), found.get(source, 1.0))
    return found


def percent(share: float) -> float:
    """Give a share in percent, rounded down to a tenth."""
    return int(share * 1000) / 10


def names(units: Collection[Unit]) -> dict[Unit, str]:
    """Name units by their tables; with the projector where several copy one table."""
    sources = [unit.source for unit in units]
    return {
        unit: str(unit.source)
        if sources.count(unit.source) == 1
        else f"{unit.source} for {unit.projector}"
        for unit in units
    }


def described(copy: Copy) -> dict[str, Any]:
    """Give a copy as JSON's types. `expected_rows` is the write database's estimate."""
    return {
        "table": str(copy.unit.source),
        "projector": copy.unit.projector,
        "purpose": copy.purpose,
        "state": copy.state,
        "rows": copy.copied,
        "expected_rows": copy.expected,
        "percent": percent(ratio(copy)),
        "started_at": copy.started_at.isoformat() if copy.started_at else None,
        "updated_at": copy.updated_at.isoformat() if copy.updated_at else None,
    }


def summary(copies: Collection[Copy]) -> str:
    """Say in one line how far copies are."""
    return summary_of([copy.state for copy in copies])


def summary_of(states: Sequence[str]) -> str:
    """Say in one line how far copies in these states are."""
    if not states:
        return "none"
    parts = [f"{states.count('done')} of {len(states)} done"]
    others = ("copying", "waiting", "skipped")
    parts += [f"{states.count(state)} {state}" for state in others if state in states]
    return ", ".join(parts)


def rows(copy: Copy) -> str:
    """Say how many rows were copied, of how many."""
    if copy.due and copy.expected:
        return f"{copy.copied:,} of about {copy.expected:,} rows"
    return f"{copy.copied:,} rows"


def seconds(copy: Copy) -> float | None:
    """Give how long a copy has taken by now, interruptions included."""
    if copy.started_at is None:
        return None
    return round((datetime.now(UTC) - copy.started_at).total_seconds(), 1)

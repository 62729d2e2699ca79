"""What the read database holds between two lives: the effect of the first commits, and of no other."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from cdc.lsn import Lsn
from cdc.sink import copies
from tests.chaos.workload import COPIED, STAMP, STAMP_SLOWLY, Committed

# One statement, and so one snapshot.
_FOUND: Final = f"""
select distinct 'journal' as place, number as value from journal where number > 0
union all select 'account', balance from account where id = {STAMP}
union all select 'account, slowly', balance from account where id = {STAMP_SLOWLY}
union all select 'summary', twice / 2 from summary where id = {STAMP}
union all select 'summary, slowly', twice / 2 from summary where id = {STAMP_SLOWLY}
union all select 'checkpoint', lsn from cdc_checkpoint where slot = :slot
"""


class State(NamedTuple):
    """The checkpoint, and which transactions the read tables show."""

    checkpoint: Lsn
    journal: set[int]
    stamps: dict[str, int]


def state(connection: sa.Connection, slot: str) -> State | None:
    """Look at the read database; give None before the rows from before are there."""
    stored = copies.load(connection, slot) or {}
    if not stored or any(copy.due for unit, copy in stored.items() if unit.source != COPIED):
        return None
    found = defaultdict(set)
    for place, value in connection.execute(sa.text(_FOUND), {"slot": slot}):
        found[place].add(int(value))
    (checkpoint,) = found.pop("checkpoint")
    journal = found.pop("journal", set())
    return State(Lsn(checkpoint), journal, {place: value for place, (value,) in found.items()})


def wrong(found: State, commits: Sequence[Committed]) -> str | None:
    """Say what is wrong with a state, if it is none that the source was in at the checkpoint.

    A commit's position is known only to lie between its own end and the next commit.
    """
    first, rest = commits[: len(found.journal)], commits[len(found.journal) :]
    if found.journal != {commit.number for commit in first}:
        return "the journal has a gap, or what was never committed"
    if len(first) > 1 and found.checkpoint <= first[-2].position:
        return "the rows are ahead of the checkpoint"
    if rest and found.checkpoint > rest[0].position:
        return "the rows are behind the checkpoint"
    for slowly in (False, True):
        last = max((c.number for c in first if c.slowly is slowly), default=0)
        for place in ("account", "summary"):
            if found.stamps[f"{place}, slowly" if slowly else place] != last:
                return f"{place} is not as far as the journal"
    return None

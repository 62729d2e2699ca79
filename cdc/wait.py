"""Wait, in an application, until the read database shows what was committed."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

import sqlalchemy as sa

from cdc.lsn import Lsn
from cdc.sink.checkpoint import TABLE

_FIRST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.05


class AsyncEngine(Protocol):
    """What is used of sqlalchemy.ext.asyncio.AsyncEngine.

    That module takes SQLAlchemy's ORM with it, a seventh of the daemon's time to start.
    """

    def connect(self) -> Any: ...


def wait_for(
    read_engine: sa.Engine, lsn: str | int, *, timeout: float, slot: str | None = None
) -> bool:
    """Wait until the read database has all that was committed before a WAL position.

    `lsn` is what `select pg_current_wal_insert_lsn()` gives in the write database after the commit;
    `timeout` is in seconds. Tell whether it came to that: where it did not, reads are older. The
    read database may serve several slots: then name one. Raise LookupError where it has no
    checkpoint, ValueError where the position cannot be read or the slot is not named, and
    SQLAlchemy's errors. A pooled connection is held meanwhile.
    """
    wanted = _position(lsn)
    with read_engine.connect() as opened:
        connection = opened.execution_options(isolation_level="AUTOCOMMIT")
        for pause in _pauses(timeout):
            if _reached(connection.execute(_CHECKPOINTS).all(), slot) >= wanted:
                return True
            time.sleep(pause)
    return False


async def wait_for_async(
    read_engine: AsyncEngine,
    lsn: str | int,
    *,
    timeout: float,  # noqa: ASYNC109  to be late is an answer here, not an error
    slot: str | None = None,
) -> bool:
    """Do as `wait_for`, without keeping the event loop from its work."""
    wanted = _position(lsn)
    async with read_engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        for pause in _pauses(timeout):
            found = await connection.execute(_CHECKPOINTS)
            if _reached(found.all(), slot) >= wanted:
                return True
            await asyncio.sleep(pause)
    return False


_CHECKPOINTS: Final = sa.select(TABLE.c.slot, TABLE.c.lsn)


def _position(lsn: str | int) -> Lsn:
    return Lsn(lsn) if isinstance(lsn, int) else Lsn.parse(lsn)


def _pauses(timeout: float) -> Iterator[float]:
    """Give pauses that grow, until the time is over; the last one ends with it."""
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    yield 0


def _reached(rows: Any, slot: str | None) -> int:
    """Give the position of the slot, or of the only one; 0 where nothing is stored yet."""
    positions = {row.slot: row.lsn or 0 for row in rows}
    if slot is not None:
        if slot not in positions:
            raise LookupError(f"the read database has no checkpoint of slot {slot}")
        return int(positions[slot])
    if not positions:
        raise LookupError("the read database has no checkpoint: no daemon has run on it")
    if len(positions) > 1:
        named = ", ".join(sorted(positions))
        raise ValueError(f"the read database serves several slots, name one of them: {named}")
    return int(next(iter(positions.values())))

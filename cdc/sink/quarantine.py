"""The changes in quarantine, stored in the same commit as the checkpoint that passes them."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa

from cdc.copy_state import Unit
from cdc.errors import WriteRefused
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.projection.project import describe as describe_change
from cdc.projection.quarantine import Held, Key, SetAside, to_json
from cdc.sink.checkpoint import METADATA

Wish = Literal["replay", "drop"]

_PAGE: Final = 1000

TABLE: Final = sa.Table(
    "cdc_quarantine",
    METADATA,
    sa.Column("slot", sa.String(63), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, comment="the order of the changes"),
    sa.Column("chain", sa.BigInteger, nullable=False, comment="what is replayed together"),
    sa.Column("projector", sa.String(255), nullable=False),
    sa.Column("source", sa.String(255), nullable=False),
    sa.Column("row_key", sa.Text, nullable=False, comment="as JSON"),
    sa.Column("old_key", sa.Text, comment="as JSON, where the change moved the row"),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("change_json", sa.Text, nullable=False, comment="with the row's values"),
    sa.Column("lsn", sa.BigInteger, nullable=False, comment="where its commit record starts"),
    sa.Column("xid", sa.BigInteger, nullable=False, comment="of the write database; 0: copied"),
    sa.Column("commit_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("set_aside_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("error", sa.Text, comment="what failed; none where an earlier change had failed"),
    sa.Column("asked", sa.String(16), comment="what somebody wants done with it"),
)
_C: Final = TABLE.c


class Stored(NamedTuple):
    """A change in quarantine, its own text unread."""

    number: int
    chain: int
    unit: Unit
    text: str
    lsn: Lsn
    xid: int
    commit_time: datetime


class Described(NamedTuple):
    """A chain: a key, or several that a row had, and what is held of them."""

    chain: int
    unit: Unit
    keys: tuple[Key, ...]
    changes: int
    since: datetime
    error: str
    asked: str | None


class Line(NamedTuple):
    """A change of a chain, as it is shown."""

    kind: str
    lsn: Lsn
    commit_time: datetime
    error: str | None
    text: str


def is_there(connection: sa.Connection) -> bool:
    """Tell whether the read database has the table yet."""
    return sa.inspect(connection).has_table(TABLE.name)


def load(connection: sa.Connection, slot: str, *, isolates: bool) -> tuple[Held, int]:
    """Give the keys in quarantine, and the highest number given so far."""
    if not is_there(connection):
        return Held({}, isolates), 0
    chains: dict[Unit, dict[Key, int]] = {}
    columns = (_C.projector, _C.source, _C.row_key, _C.old_key, _C.chain)
    for row in connection.execute(sa.select(*columns).where(_C.slot == slot).distinct()):
        keys = chains.setdefault(_unit(row), {})
        keys |= {_key(text): row.chain for text in (row.row_key, row.old_key) if text is not None}
    last = sa.select(sa.func.max(_C.number), sa.func.max(_C.chain)).where(_C.slot == slot)
    highest = max(number or 0 for number in connection.execute(last).one())
    return Held(chains, isolates), highest


def _unit(row: Any) -> Unit:
    return Unit(row.projector, TableName.parse(row.source))


def _key(text: str) -> Key:
    return tuple(json.loads(text))


def store(
    connection: sa.Connection,
    slot: str,
    numbered: Iterable[tuple[int, SetAside]],
    held: Held,
    *,
    fits: Callable[[tuple[Any, ...]], bool],
) -> None:
    """Store changes, each with its number; raise WriteRefused where a row does not fit."""
    now = datetime.now(UTC)
    rows = []
    for number, one in numbered:
        rows.append(_row(slot, number, one, held) | {"set_aside_at": now})
        if not fits(tuple(rows[-1].values())):
            raise _too_large(one)
    if rows:
        connection.execute(sa.insert(TABLE), rows)


def _too_large(one: SetAside) -> WriteRefused:
    return WriteRefused(
        f"projector {one.unit.projector}: {describe_change(one.change)}, in the transaction "
        f"committed at {one.transaction.commit_lsn}, has to be set aside, and is larger than the "
        "read database's max_allowed_packet",
        hint="set global max_allowed_packet = 268435456; and in the server's configuration; then "
        "start again: nothing after this transaction was applied",
    )


def _row(slot: str, number: int, one: SetAside, held: Held) -> dict[str, Any]:
    key, *old = one.keys
    return {
        "slot": slot,
        "number": number,
        "chain": held.of(one.unit)[key],
        "projector": one.unit.projector,
        "source": str(one.unit.source),
        "row_key": json.dumps(key),
        "old_key": json.dumps(old[0]) if old else None,
        "kind": type(one.change).__name__.lower(),
        "change_json": to_json(one.change),
        "lsn": int(one.transaction.commit_lsn),
        "xid": one.transaction.xid,
        "commit_time": one.transaction.commit_time.astimezone(UTC),
        "error": one.error,
    }


def join(connection: sa.Connection, slot: str, chains: Collection[int], into: int) -> None:
    """Let chains be one."""
    _update(connection, slot, chains, {"chain": into})


def forget(connection: sa.Connection, slot: str, chains: Collection[int] | None = None) -> int:
    """Delete chains, or all of the slot's; give how many changes that were."""
    if chains is None and not is_there(connection):
        return 0
    which = [_C.slot == slot] if chains is None else [_C.slot == slot, _C.chain.in_(chains)]
    return connection.execute(sa.delete(TABLE).where(*which)).rowcount


def changes(connection: sa.Connection, slot: str, chains: Collection[int]) -> Iterator[Stored]:
    """Give the changes of chains in order, some at a time."""
    last = -1
    while True:
        which = (_C.slot == slot, _C.chain.in_(chains), _C.number > last)
        page = connection.execute(
            sa.select(TABLE).where(*which).order_by(_C.number).limit(_PAGE)
        ).all()
        for row in page:
            time = _in_utc(row.commit_time)
            text = row.change_json
            yield Stored(row.number, row.chain, _unit(row), text, Lsn(row.lsn), row.xid, time)
        if len(page) < _PAGE:
            return
        last = page[-1].number


def ask(connection: sa.Connection, slot: str, chains: Collection[int], wish: Wish) -> int:
    """Ask the daemon to do something with chains; give how many changes they hold."""
    return _update(connection, slot, chains, {"asked": wish})


def asked(connection: sa.Connection, slot: str) -> dict[int, Wish]:
    """Give what is asked for, by chain."""
    which = (_C.slot == slot, _C.asked.is_not(None))
    rows = connection.execute(sa.select(_C.chain, _C.asked).where(*which).distinct())
    return {row.chain: row.asked for row in rows}


def refuse(
    connection: sa.Connection, slot: str, chain: int, *, number: int | None, error: str
) -> None:
    """Note that a chain's replay failed, and at which change."""
    _update(connection, slot, [chain], {"asked": None, "error": None})
    first = sa.select(sa.func.min(_C.number)).where(_C.slot == slot, _C.chain == chain)
    at = number if number is not None else connection.execute(first).scalar_one()
    which = (_C.slot == slot, _C.number == at)
    connection.execute(sa.update(TABLE).where(*which).values(error=error))


def _update(
    connection: sa.Connection, slot: str, chains: Collection[int], values: Mapping[str, Any]
) -> int:
    which = (_C.slot == slot, _C.chain.in_(chains))
    return connection.execute(sa.update(TABLE).where(*which).values(**values)).rowcount


def describe(connection: sa.Connection, slot: str) -> list[Described]:
    """Give the chains, without values of rows but their keys, in the order they came."""
    if not is_there(connection):
        return []
    named = (_C.chain, _C.projector, _C.source, _C.row_key, _C.old_key)
    found: dict[int, tuple[Unit, dict[Key, None]]] = {}
    for row in connection.execute(
        sa.select(*named).where(_C.slot == slot).distinct().order_by(_C.chain)
    ):
        _, keys = found.setdefault(row.chain, (_unit(row), {}))
        keys |= {_key(text): None for text in (row.old_key, row.row_key) if text is not None}
    counted = sa.select(
        _C.chain,
        sa.func.count().label("changes"),
        sa.func.min(_C.set_aside_at).label("since"),
        sa.func.min(_C.error).label("error"),
        sa.func.max(_C.asked).label("asked"),
    )
    rows = connection.execute(counted.where(_C.slot == slot).group_by(_C.chain).order_by(_C.chain))
    return [
        Described(
            chain=row.chain,
            unit=found[row.chain][0],
            keys=tuple(found[row.chain][1]),
            changes=row.changes,
            since=_in_utc(row.since),
            error=row.error or "",
            asked=row.asked,
        )
        for row in rows
        if row.chain in found
    ]


def lines(connection: sa.Connection, slot: str, chain: int) -> Iterator[Line]:
    """Give the changes of a chain in order, with their values."""
    which = (_C.slot == slot, _C.chain == chain)
    for row in connection.execute(sa.select(TABLE).where(*which).order_by(_C.number)):
        time = _in_utc(row.commit_time)
        yield Line(row.kind, Lsn(row.lsn), time, row.error, row.change_json)


def _in_utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time

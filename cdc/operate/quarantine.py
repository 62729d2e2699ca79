"""What is in quarantine: to be looked at, and asked to be replayed or dropped by the daemon."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from typing import Any

import sqlalchemy as sa

from cdc.errors import QuarantineError
from cdc.operate.follow import Watch
from cdc.projection.quarantine import Key, from_json
from cdc.settings import Settings
from cdc.sink import quarantine as storage
from cdc.sink.engine import connect, create_engine, translated
from cdc.sink.quarantine import Described, Line, Wish
from cdc.values import UNCHANGED


def found(settings: Settings, *, projector: str | None = None) -> list[Described]:
    """Give what is in quarantine, of one projector or all; raise a ReadError."""
    with closing(_reading(settings)) as read, translated(), read.begin():
        held = storage.describe(read, settings.source.slot)
    return [one for one in held if projector in {None, one.unit.projector}]


def chosen(held: Collection[Described], key: str) -> list[Described]:
    """Give those with a key, as it is shown; raise QuarantineError where there is none."""
    mine = [one for one in held if key in {text for k in one.keys for text in _spelled(k)}]
    if not mine:
        raise QuarantineError(
            f"key {key} is not in quarantine", hint="`cdc quarantine list` shows those that are"
        )
    return mine


def _spelled(key: Key) -> tuple[str, str]:
    texts = ["null" if text is None else text for text in key]
    return ", ".join(texts), ",".join(texts)


def named(one: Described) -> str:
    """Name it by its table and keys."""
    keys = " -> ".join(_spelled(key)[0] for key in one.keys)
    return f"{one.unit.source} ({keys})"


def told(one: Described) -> str:
    """Say what it is: projector, table, key, how many changes, and what failed."""
    changes = "1 change" if one.changes == 1 else f"{one.changes:,} changes"
    since = one.since.isoformat(timespec="seconds")
    return f"{one.unit.projector}: {named(one)}: {changes} since {since}: {one.error}"


def as_dict(one: Described) -> dict[str, Any]:
    """Give it as JSON's types."""
    return {
        "projector": one.unit.projector,
        "table": str(one.unit.source),
        "keys": [list(key) for key in one.keys],
        "changes": one.changes,
        "since": one.since.isoformat(),
        "error": one.error,
        "asked": one.asked,
    }


def changes_of(settings: Settings, one: Described) -> Iterator[Line]:
    """Give the changes held of a key, in order."""
    with closing(_reading(settings)) as read, translated(), read.begin():
        yield from storage.lines(read, settings.source.slot, one.chain)


def line_told(line: Line, *, values: bool) -> Iterator[str]:
    """Say what a change is; its row's values only where they are wanted."""
    time = line.commit_time.isoformat(timespec="seconds")
    failed = f": {line.error}" if line.error else ""
    yield f"  {line.kind} at {line.lsn}, {time}{failed}"
    for name, value in (_values(line) if values else {}).items():
        yield f"    {name} = {_value_told(value)}"


def line_as_dict(line: Line, *, values: bool) -> dict[str, Any]:
    """Give a change as JSON's types; what was not sent is left out of the values."""
    plain: dict[str, Any] = {
        "kind": line.kind,
        "lsn": str(line.lsn),
        "commit_time": line.commit_time.isoformat(),
        "error": line.error,
    }
    if values:
        plain["values"] = {n: v for n, v in _values(line).items() if v is not UNCHANGED}
    return plain


def _values(line: Line) -> dict[str, Any]:
    change = from_json(line.text, gone=lambda _: frozenset())
    row: Any = getattr(change, "row", None) or change.key  # type: ignore[union-attr]
    return {name: row.text(name) for name in row}


def _value_told(value: object) -> str:
    if value is UNCHANGED:
        return "(not sent)"
    return "null" if value is None else json.dumps(value, ensure_ascii=False)


def ask(settings: Settings, held: Collection[Described], wish: Wish) -> None:
    """Ask the daemon, in the read database, to replay or to drop: it alone knows the order."""
    engine = create_engine(settings.read.url.get_secret_value())
    with closing(connect(engine)) as read, translated(), read.begin():
        storage.ask(read, settings.source.slot, [one.chain for one in held], wish)


def require_dropping(
    settings: Settings, held: Collection[Described], confirm: Callable[[str], None]
) -> None:
    """Say what dropping loses; `confirm` raises where that is not wanted."""
    count = sum(one.changes for one in held)
    tables = " ".join(sorted({str(one.unit.source) for one in held}))
    confirm(
        f"{count} changes of {', '.join(named(one) for one in held)} are deleted and never "
        "applied: the read rows stay as they are until a later change. `cdc copy "
        f"{tables}` brings the rows as they are in slot {settings.source.slot}'s source"
    )


class QuarantineWatch(Watch):
    """Looks whether what was asked for is done."""

    def __init__(self, settings: Settings, held: Collection[Described]) -> None:
        super().__init__(settings, ())
        self._asked = {one.chain for one in held}
        self._is_done = False

    @property
    def done(self) -> bool:
        """Tell whether nothing of it was left to be done at the last look."""
        return self._is_done

    def look(self) -> None:
        """Look what is still asked for; raise a ReadError."""
        with translated(), self.reading().begin():
            asked = storage.asked(self.reading(), self._slot)
        self._is_done = self._asked.isdisjoint(asked)


def left(settings: Settings, held: Collection[Described]) -> list[Described]:
    """Give those that are in quarantine still, or again."""
    keys = {(one.unit, key) for one in held for key in one.keys}
    now = found(settings)
    return [one for one in now if any((one.unit, key) in keys for key in one.keys)]


def _reading(settings: Settings) -> sa.Connection:
    return connect(create_engine(settings.read.url.get_secret_value(), reading=True))

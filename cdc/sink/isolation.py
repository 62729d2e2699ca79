"""Apply a batch in commit order, and set aside what will not be taken, key by key.

Everything happens inside the writer's transaction: what is set aside is stored in the commit whose
checkpoint passes it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from cdc.assemble import Transaction
from cdc.change import Change, Inserted, Relation, Truncated
from cdc.copy_state import Unit
from cdc.errors import CdcError, ProjectionError, QuarantineFull, WriteRefused
from cdc.lsn import Lsn
from cdc.operation import Append, Move, Operation, Truncate
from cdc.projection.batch import Batch, NetEffect
from cdc.projection.project import describe, project_one
from cdc.projection.projector import Projector
from cdc.projection.quarantine import Held, Key, SetAside, from_json, keys_of, set_aside
from cdc.projection.registry import Registry
from cdc.sink import quarantine as storage
from cdc.sink.engine import translated
from cdc.sink.refused import RowsRefused
from cdc.sink.sink import Sink

MEND: Final = (
    "mend the projector, the read table or the row there, and start again: nothing after this "
    "transaction was applied. A constraint that the source has right only at the end of its "
    "transaction has to be deferrable in the read database"
)
_AT_ONCE: Final = 1000

Gone = Callable[[Relation], frozenset[str]]
Failure = ProjectionError | RowsRefused


class News(NamedTuple):
    """A key that came into quarantine, without its values; `kind` is of what failed."""

    unit: Unit
    columns: tuple[str, ...]
    error: str
    kind: type[CdcError]


@dataclass(slots=True, eq=False)
class Quarantine:
    """The keys in quarantine, as the writer has it; nobody else changes them.

    `limit` is how many keys there may be; None: what fails stops the daemon instead. `held` is
    ahead of what is committed by what the open transaction does. `news` nobody was told of yet.
    """

    slot: str
    limit: int | None = None
    held: Held = field(default_factory=Held)
    news: list[News] = field(default_factory=list)
    _highest: int = 0

    def load(self, connection: sa.Connection) -> None:
        """Begin with what is stored."""
        isolates = self.limit is not None
        self.held, self._highest = storage.load(connection, self.slot, isolates=isolates)
        self.news.clear()

    def next(self) -> int:
        """Give a number higher than every one before."""
        self._highest += 1
        return self._highest

    def store(self, connection: sa.Connection, sink: Sink, aside: Iterable[SetAside]) -> None:
        """Store changes in their order; raise WriteRefused for one that is too large."""
        numbered = [(self.next(), one) for one in aside]
        storage.store(connection, self.slot, numbered, self.held, fits=sink.fits)


@dataclass(slots=True, eq=False)
class _Step:
    """A change for one projector; `number` orders those of a transaction, or a replay."""

    number: int
    projector: Projector
    change: Change
    transaction: Transaction
    unit: Unit
    keys: tuple[Key, ...]

    def operations(self) -> list[Operation]:
        """Project it; raise ProjectionError."""
        return project_one(self.projector, self.change, self.transaction)


def _step(number: int, projector: Projector, change: Change, transaction: Transaction) -> _Step:
    unit = Unit(projector.name, change.relation.name)
    return _Step(number, projector, change, transaction, unit, keys_of(projector, change))


class _Projected(NamedTuple):
    """What a change means, or why that cannot be told; and what must stay in order for it."""

    step: _Step
    operations: list[Operation]
    error: ProjectionError | None
    touched: frozenset[Any]


def _projected(step: _Step) -> _Projected:
    keys = {(step.unit, key) for key in step.keys}
    try:
        operations = step.operations()
    except ProjectionError as error:
        return _Projected(step, [], error.alone(), frozenset(keys))
    return _Projected(step, operations, None, frozenset(keys | _read_rows(operations)))


class _Left:
    """The changes that were not taken, and those that wait for one: of its key, or read row."""

    def __init__(self) -> None:
        self._found: list[tuple[_Step, Failure | None]] = []
        self._touched: set[Any] = set()

    def add(self, one: _Projected, error: Failure | None) -> None:
        """Note a change that was not taken."""
        self._found.append((one.step, error))
        self._touched |= one.touched

    def holds_up(self, one: _Projected) -> bool:
        """Tell whether a change cannot be tried; it is left, too."""
        waits = not self._touched.isdisjoint(one.touched)
        if waits or one.error is not None:
            self.add(one, None if waits else one.error)
        return waits or one.error is not None

    def in_order(self) -> list[tuple[_Step, Failure | None]]:
        """Give what is left."""
        return sorted(self._found, key=lambda found: found[0].number)


def check_deferred(sink: Sink, commit_lsn: Lsn) -> None:
    """Check at a transaction's end what may be checked later: a violation is no change's alone.

    Raise WriteRefused, or a ReadError.
    """
    try:
        with translated():
            sink.check_deferred()
    except RowsRefused as error:
        raise WriteRefused(
            f"the read database refused the transaction committed at {commit_lsn} as a whole: "
            f"{error}",
            hint=MEND,
        ) from None


class Isolation:
    """Applies one batch, or replays some keys, inside the caller's transaction.

    `effect` and `operations` tell what was written; `stepped` is called whenever the read database
    has answered.
    """

    def __init__(
        self,
        connection: sa.Connection,
        sink: Sink,
        quarantine: Quarantine,
        *,
        stepped: Callable[[], None],
    ) -> None:
        self._stepped = stepped
        self._connection = connection
        self._sink = sink
        self._quarantine = quarantine
        self._aside: list[tuple[int, SetAside]] = []
        self.effect = NetEffect()
        self.operations: Counter[tuple[str, type]] = Counter()

    def apply(self, batch: Batch) -> None:
        """Apply transaction after transaction, as the source did.

        Raise ProjectionError or WriteRefused for what is no key's alone, and QuarantineFull.
        """
        self._sink.defer_constraints()
        goes_on = batch.continues
        for transaction, registry in batch.in_order():
            self._apply(transaction, registry, is_whole=transaction.ends and not goes_on)
            goes_on = not transaction.ends
        batch.effect, batch.operations = self.effect, self.operations

    def _apply(self, transaction: Transaction, registry: Registry, *, is_whole: bool) -> None:
        numbered = enumerate(
            (projector, change)
            for change in transaction.changes
            for projector in registry.of(change.relation.name)
        )
        steps = (_step(number, *pair, transaction) for number, pair in numbered)
        for truncates, run in groupby(steps, lambda step: isinstance(step.change, Truncated)):
            if truncates:
                self._truncate(list(run))
            else:
                self._apply_run(self._free(run), check=is_whole)
        if transaction.ends and not is_whole:
            check_deferred(self._sink, transaction.commit_lsn)
        self._store()

    def _store(self) -> None:
        self._aside.sort(key=lambda numbered: numbered[0])
        self._quarantine.store(self._connection, self._sink, [one for _, one in self._aside])
        self._aside.clear()

    # What is in quarantine already.

    def _free(self, steps: Iterable[_Step]) -> list[_Step]:
        """Set aside the changes of keys in quarantine; give the others."""
        return [step for step in steps if not self._taken_by_quarantine(step)]

    def _taken_by_quarantine(self, step: _Step) -> bool:
        chains = self._quarantine.held.chains_of(step.unit, step.keys)
        if not chains:
            return False
        if not (_is_copied(step.change) and self._superseded(step, chains)):
            self._hold(step, chains[0], also=chains[1:])
            self._set_aside(step)
        return True

    def _superseded(self, step: _Step, chains: list[int]) -> bool:
        """Let a row read anew take the place of what is held of its key, if it is taken.

        Not where the row had several keys: the read rows of the others would stay.
        """
        held = self._quarantine.held.of(step.unit)
        if len([key for key, chain in held.items() if chain in chains]) > 1:
            return False
        left = _Left()
        self._try([_projected(step)], left, check=True)
        if left.in_order():
            return False
        self._release(chains)
        return True

    def _release(self, chains: Collection[int]) -> None:
        """Let go of keys, and of their changes."""
        held = self._quarantine.held
        self._aside = [
            (number, one)
            for number, one in self._aside
            if held.of(one.unit)[one.keys[0]] not in chains
        ]
        storage.forget(self._connection, self._quarantine.slot, chains)
        self._quarantine.held = held.without(chains)

    def _hold(self, step: _Step, chain: int, *, also: Collection[int] = ()) -> None:
        """Put a change's keys into a chain, and other chains with them."""
        quarantine = self._quarantine
        before = quarantine.held.of(step.unit)
        keys = {key: chain if other in also else other for key, other in before.items()}
        keys |= dict.fromkeys(step.keys, chain)
        if also:
            storage.join(self._connection, quarantine.slot, also, chain)
        if keys != before:
            quarantine.held = quarantine.held.with_(step.unit, keys)

    def _set_aside(self, step: _Step, error: str | None = None) -> None:
        one = set_aside(step.projector, step.change, step.transaction, error)
        self._aside.append((step.number, one))

    # What empties tables.

    def _truncate(self, steps: list[_Step]) -> None:
        """Truncate together: tables that reference one another can only be so.

        A projector whose read tables are all emptied has nothing left to set right.
        """
        alone = NetEffect()
        of = [(step, step.operations()) for step in steps]
        for operation in (operation for _, operations in of for operation in operations):
            alone.add(operation)
        refused = self._take(alone, check=False)
        if refused is not None:
            raise _write_refused(steps[-1], refused)
        for step, operations in of:
            self._count(step, operations)
            emptied = {one.table for one in operations if isinstance(one, Truncate)}
            if emptied.issuperset(step.projector.into):
                self._release(set(self._quarantine.held.of(step.unit).values()))

    # What is not in quarantine.

    def _apply_run(self, steps: list[_Step], *, check: bool) -> None:
        """Apply what can be, as often as that brings more in; what is left is poison.

        A child may come before its parent: what is refused is tried again after the others.
        `check`: deferred constraints, too.
        """
        while steps:
            left = _Left()
            self._try(list(map(_projected, steps)), left, check=check)
            still = left.in_order()
            if len(still) < len(steps):
                steps = [step for step, _ in still]
                continue
            for step, error in still:
                if error is not None:
                    self._isolate(step, error)
            steps = self._free(step for step, error in still if error is None)

    def _try(self, projected: list[_Projected], left: "_Left", *, check: bool) -> None:
        """Apply in a whole set what does not wait for what is left; halve it while refused."""
        free = [one for one in projected if not left.holds_up(one)]
        if not free:
            return
        effect = NetEffect()
        for operation in (operation for one in free for operation in one.operations):
            effect.add(operation)
        refused = self._take(effect, check=check, in_sets=len(free) > 1)
        if refused is None:
            for one in free:
                self._count(one.step, one.operations)
        elif len(free) == 1:
            left.add(free[0], refused)
        else:
            middle = len(free) // 2
            self._try(free[:middle], left, check=check)
            self._try(free[middle:], left, check=check)

    def _take(self, effect: NetEffect, *, check: bool, in_sets: bool = False) -> RowsRefused | None:
        """Write an effect; give the error, with nothing changed, where it is refused."""
        savepoint = self._connection.begin_nested()
        try:
            with translated():
                for segment in effect.segments:
                    self._sink.apply(segment, in_sets=in_sets)
                    self._stepped()
                if check:
                    self._sink.check_deferred()
        except RowsRefused as error:
            savepoint.rollback()
            self._sink.rolled_back()
            return error.alone()
        savepoint.commit()
        self._sink.keep()
        return None

    def _count(self, step: _Step, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self.effect.add(operation)
            self.operations[step.projector.name, operation.__class__] += 1

    def _isolate(self, step: _Step, error: Failure) -> None:
        """Take a change's key into quarantine; raise where it is no fault of the row."""
        quarantine = self._quarantine
        of_table = isinstance(error, ProjectionError) and error.of_table
        if quarantine.limit is None or of_table:
            raise error if isinstance(error, ProjectionError) else _write_refused(step, error)
        said = _said(error)
        chains = quarantine.held.chains_of(step.unit, step.keys)
        if not chains:
            chains = [quarantine.next()]
            kind = ProjectionError if isinstance(error, ProjectionError) else WriteRefused
            quarantine.news.append(News(step.unit, step.change.relation.key, said, kind))
        self._hold(step, chains[0], also=chains[1:])
        self._set_aside(step, said)
        self._require_room(said)

    def _require_room(self, said: str) -> None:
        quarantine = self._quarantine
        count, limit = quarantine.held.counts().total(), quarantine.limit
        if limit is not None and count > limit:
            news = quarantine.news[-1].unit if quarantine.news else None
            raise QuarantineFull(
                f"changes of more than {limit} keys fail"
                + (f"; the last for projector {news.projector}, of {news.source}: " if news else "")
                + said,
                hint="so many are a fault, and no poison: mend the projector or the read table and "
                "start again, nothing of this batch was applied or set aside. `cdc quarantine "
                "list` shows what was there before; [projection] quarantine_limit is the bound",
            )

    # What is asked for.

    def drop(self, chains: Collection[int]) -> None:
        """Forget keys, and their changes, for good."""
        self._release(chains)

    def replay(self, chains: Collection[int], registry: Registry, *, gone: Gone) -> list[int]:
        """Apply what is held of keys, in order; give those of which something still fails.

        All together, and where that is refused key by key, as often as that brings more in.
        """
        left = sorted(chains)
        if len(left) > 1 and self._replayed(left, registry, gone=gone) is None:
            return []
        while left:
            failed = {chain: self._replayed([chain], registry, gone=gone) for chain in left}
            still = [chain for chain, failure in failed.items() if failure is not None]
            if len(still) == len(left):
                break
            left = still
        for chain in left:
            number, error = failed[chain] or (None, "")
            slot = self._quarantine.slot
            storage.refuse(self._connection, slot, chain, number=number, error=error)
        return left

    def _replayed(
        self, chains: Collection[int], registry: Registry, *, gone: Gone
    ) -> tuple[int | None, str] | None:
        """Apply the changes of chains; give which of them failed, and how."""
        savepoint = self._connection.begin_nested()
        written = NetEffect()
        number = None
        try:
            with translated():
                steps = self._stored_steps(chains, registry, gone=gone)
                while some := list(islice(steps, _AT_ONCE)):
                    together = NetEffect()
                    for step in some:
                        number = step.number
                        for operation in step.operations():
                            together.add(operation)
                    number = None
                    for segment in together.segments:
                        self._sink.apply(segment, in_sets=True)
                        self._stepped()
                    written.segments += together.segments
                self._sink.check_deferred()
        except (RowsRefused, ProjectionError) as error:
            savepoint.rollback()
            self._sink.rolled_back()
            return number, _said(error)
        savepoint.commit()
        self._sink.keep()
        self.effect.segments += written.segments
        self._release(chains)
        return None

    def _stored_steps(
        self, chains: Collection[int], registry: Registry, *, gone: Gone
    ) -> Iterator[_Step]:
        for stored in storage.changes(self._connection, self._quarantine.slot, chains):
            if not registry.wants(stored.unit):
                raise ProjectionError("its projector is not configured, or for another table")
            change = from_json(stored.text, gone=gone)
            transaction = Transaction(
                stored.xid, stored.lsn, None, stored.commit_time, [change], len(stored.text)
            )
            projector = registry.projector(stored.unit.projector)
            yield _step(stored.number, projector, change, transaction)


def _is_copied(change: Change) -> bool:
    return isinstance(change, Inserted) and change.copied


def _read_rows(operations: Iterable[Operation]) -> set[Any]:
    """Give the read rows that operations write."""
    rows = set()
    for operation in operations:
        if isinstance(operation, Truncate | Append):
            continue
        rows.add((operation.shape.table, operation.key))
        if isinstance(operation, Move):
            rows.add((operation.shape.table, operation.old_key))
    return rows


def _said(error: Failure) -> str:
    """Say what failed, without values of the row."""
    return (isinstance(error, ProjectionError) and error.cause) or str(error)


def _write_refused(step: _Step, error: Exception) -> WriteRefused:
    return WriteRefused(
        f"projector {step.projector.name}: the read database refused {describe(step.change)}, in "
        f"the transaction committed at {step.transaction.commit_lsn}: {error}",
        hint=MEND,
    )

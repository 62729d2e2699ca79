"""Apply the projectors to a change."""

import traceback
from collections.abc import Callable, Iterable, Iterator

from cdc.assemble import Transaction
from cdc.change import Change, Relation, Truncated, Updated
from cdc.errors import CatalogOutdated, ProjectionError, UnknownColumn
from cdc.operation import Operation
from cdc.projection.laps import LARGE, Laps
from cdc.projection.mirror import Mirror
from cdc.projection.projector import Projector
from cdc.projection.registry import Registry
from cdc.values import UNCHANGED

KeepsAside = Callable[[Projector, Change, Transaction], bool]


def project(
    transaction: Transaction,
    registry: Registry,
    keeps_aside: KeepsAside | None = None,
    *,
    changes: Iterable[Change] | None = None,
    laps: Laps | None = None,
) -> Iterator[tuple[Projector, Operation]]:
    """Give what the transaction's changes mean for the read tables, in order.

    Of its changes only `changes`, where they are given. What `keeps_aside` takes is not projected.
    `laps` takes the time that each projector has, with what is done meanwhile with its operations.
    Raise ProjectionError naming projector, table, LSN and key where a projector fails.
    """
    relation: Relation | None = None
    projectors: tuple[Projector, ...] = ()
    running: Projector | None = None
    since = laps.clock() if laps is not None else 0.0
    for change in transaction.changes if changes is None else changes:
        if change.relation is not relation:
            relation = change.relation
            projectors = registry.of(relation.name)
        for projector in projectors:
            if projector is not running:
                if laps is not None and running is not None:  # inline: once a change, with several
                    now = laps.clock()
                    laps.seconds[running.name] += (now - since) * laps.weight
                    since = now
                running = projector
            if keeps_aside is not None and keeps_aside(projector, change, transaction):
                continue
            try:
                for operation in projector.operations(change):
                    yield projector, operation
            except (Exception, SystemExit) as error:  # noqa: BLE001  it may raise anything
                raise _raised(error, projector, transaction, change=change) from None
    if laps is not None and running is not None:
        laps.seconds[running.name] += (laps.clock() - since) * laps.weight


def timed(
    transaction: Transaction,
    registry: Registry,
    keeps_aside: KeepsAside | None,
    *,
    laps: Laps,
    number: int,
) -> Iterator[tuple[Projector, Operation]]:
    """Project, and time it: by its number in the batch, or of a large transaction part by part."""
    changes = transaction.changes
    if len(changes) < LARGE:
        laps.turn(number)
        yield from project(transaction, registry, keeps_aside, laps=laps)
        return
    for turn, first in enumerate(range(0, len(changes), LARGE)):
        part = changes[first : first + LARGE]
        timing = laps if laps.turn(turn) else None
        yield from project(transaction, registry, keeps_aside, changes=part, laps=timing)


def project_one(projector: Projector, change: Change, transaction: Transaction) -> list[Operation]:
    """Give what one of a transaction's changes means for one projector; raise ProjectionError."""
    try:
        return list(projector.operations(change))
    except (Exception, SystemExit) as error:  # noqa: BLE001  likewise
        raise _raised(error, projector, transaction, change=change) from None


def _raised(
    error: Exception | SystemExit, projector: Projector, transaction: Transaction, *, change: Change
) -> Exception:
    if isinstance(error, CatalogOutdated):
        where = f"in the transaction committed at {transaction.commit_lsn}"
        return CatalogOutdated(f"{error}, {where}")
    if isinstance(error, MemoryError):
        return error
    return _failed(error, projector, transaction, change=change)


def _failed(
    error: Exception | SystemExit, projector: Projector, transaction: Transaction, *, change: Change
) -> ProjectionError:
    ours = isinstance(error, ProjectionError)
    # Another exception's message may hold values of the row: only its type and place are told.
    cause = str(error) if ours else f"{type(error).__name__} at {_place(error)}{_unsent(change)}"
    failed = ProjectionError(
        f"projector {projector.name} failed on {describe(change)}, in the transaction committed "
        f"at {transaction.commit_lsn}: {cause}",
        hint=(error.hint if isinstance(error, ProjectionError) else None)
        or "mend the projector and start again: nothing after this transaction was applied",
    )
    failed.cause = cause
    is_schema = ours and isinstance(projector, Mirror)  # a mirror looks at no values
    failed.of_table = is_schema or isinstance(error, UnknownColumn)
    return failed


def _unsent(change: Change) -> str:
    """Name the columns that were UNCHANGED: the likeliest reason for a failure where there are."""
    if not isinstance(change, Updated) or not change.partial:
        return ""
    names = [name for name in change.row if change.row.text(name) is UNCHANGED]
    return f"; not sent, and UNCHANGED in the row: {', '.join(names)}"


def describe(change: Change) -> str:
    """Say what happened to which row: kind, table and key."""
    kind = type(change).__name__.lower()
    if isinstance(change, Truncated):
        return f"{kind} {change.relation.name}"
    key = ", ".join(f"{name}={change.key.text(name)!r}" for name in change.key)
    return f"{kind} {change.relation.name} ({key})"


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"

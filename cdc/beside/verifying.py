"""Verifications beside the stream: where rows wait for the point they are compared at.

It is the same as with copies, but that the rows are compared instead of written (docs/copy.md).
"""

from collections import deque
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress

from cdc import lines
from cdc.assemble import placed_at
from cdc.change import Change, Deleted, Inserted, Relation, Updated
from cdc.copy_state import Unit
from cdc.errors import ProjectionError
from cdc.lsn import Lsn
from cdc.operation import Delete, Update, Upsert
from cdc.projection.batch import Batch
from cdc.projection.check import Checksum, Expected, Probe, Range, Walk
from cdc.projection.expectation import expected_of
from cdc.projection.lines import BulkPlan
from cdc.projection.mirror import Mirror
from cdc.projection.project import project
from cdc.projection.quarantine import Held, Key
from cdc.projection.registry import Registry
from cdc.window import UpToDate, Window, bring_up_to_date, row_key


class Verifying:
    """What is to be compared, as the projection thread has it.

    `walks` are those for which everything that is written has to be noted; set by the thread that
    reads rows, before it takes a snapshot.
    """

    def __init__(
        self, registry: Registry, window: Window, *, position: Lsn, takes_lines: bool
    ) -> None:
        """Take where the stream begins. `takes_lines` tells that encoded rows can be written."""
        self.window = window
        self.walks: tuple[Walk, ...] = ()
        self._registry = registry
        self.takes_lines = takes_lines
        self._waiting: deque[Probe] = deque()
        self._position = position

    def arrived(self, probe: Probe) -> None:
        """Take rows that are to be compared once the stream has passed their watermark."""
        self._waiting.append(probe)

    def ready(self, batch: Batch) -> bool:
        """Tell whether rows can be compared after what is in a batch."""
        self._position = max(self._position, batch.end_lsn or Lsn(0))
        reached = bool(self._waiting) and self._position >= self._waiting[0].watermark
        return reached and batch.complete

    def placed(self, batch: Batch) -> Iterator[Batch]:
        """Place the next check, if it can be: give the batch with it."""
        if not self.ready(batch):
            return
        probe = self._waiting.popleft()
        if self._is_known(probe, batch.held):
            batch.checks.append(probe.check)
            batch.reach(self._position)
            yield batch
        else:
            probe.check.ledger.release(fruitless=True)

    def _is_known(self, probe: Probe, held: Held) -> bool:
        """Say what the read tables should hold as of now; tell False where that is unknown."""
        if probe.opened is None:
            return True
        changes = list(probe.opened.changes())
        self.window.close(probe.opened)
        if probe.opened.dropped or (changes and probe.total is not None):
            return False
        return self._expect(probe, changes, held)

    def _expect(self, probe: Probe, changes: list[Change], held: Held) -> bool:
        check, relation = probe.check, probe.relation
        assert relation is not None  # noqa: S101  there are rows
        if probe.ranged:
            (table,) = self._registry.projector(check.unit.projector).into
            check.within = Range(table, probe.start, None if probe.ends else check.last)
        plan, keys = self.plan(check.unit, relation), set(held.of(check.unit))
        if plan is not None and probe.total is not None:
            check.checksum = Checksum(plan, check.count, probe.total)
        elif plan is not None and not changes and _is_whole(plan, relation) and not keys:
            text = probe.text
            check.expected = (
                [Expected(Upsert, plan.shape, (), exists=True, text=text)] if text else ()
            )
        else:
            rows = {row_key(relation, row): row for row in lines.decode(probe.text)}
            now = bring_up_to_date(rows, changes, relation)
            if now is None:
                return False
            if keys:
                now = _without(now, relation, keys)
            try:
                expected = self._projected(check.unit, relation, now)
            except ProjectionError as error:
                if error.of_table or not held.isolates:
                    raise
                failing = self._failing(check.unit, relation, now)
                check.note = f"rows on which {check.unit.projector} fails were not compared"
                keys |= failing
                expected = self._projected(check.unit, relation, _without(now, relation, failing))
            kept = [e for e in expected if probe.deletes or e.kind is not Delete]
            check.expected = [*kept, *self._not_compared(check.unit, relation, keys)]
        return True

    def _failing(self, unit: Unit, relation: Relation, now: UpToDate) -> set[Key]:
        """Give the keys of rows that the projector raises on, as it did when they were streamed."""
        whole = [UpToDate({}, [values]) for values in (*now.untouched.values(), *now.changed)]
        partial = [UpToDate({}, [], [values]) for values in now.partial]
        return {
            row_key(relation, (one.changed or one.partial)[0])
            for one in (*whole, *partial)
            if self._fails(unit, relation, one)
        }

    def _fails(self, unit: Unit, relation: Relation, row: UpToDate) -> bool:
        try:
            self._projected(unit, relation, row)
        except ProjectionError:
            return True
        return False

    def _not_compared(
        self, unit: Unit, relation: Relation, keys: Iterable[Key]
    ) -> Iterator[Expected]:
        """Give the read rows of keys in quarantine: whatever they hold, they are not extra."""
        projector = self._registry.projector(unit.projector)
        for key in keys:
            with suppress(Exception):  # the projector may raise on it, as it did before
                for operation in projector.operations(Deleted(relation, key)):
                    if isinstance(operation, Delete):
                        rows = [operation.values]
                        yield Expected(Update, operation.shape, rows, exists=True)

    def plan(self, unit: Unit, relation: Relation) -> BulkPlan | None:
        """Give how a mirror's read rows are the source's as they are; None where they are not.

        None too where the read database cannot take them as they are.
        """
        projector = self._registry.projector(unit.projector)
        if not self.takes_lines or not isinstance(projector, Mirror) or not projector.in_bulk:
            return None
        return projector.bulk_plan(relation)

    def _projected(self, unit: Unit, relation: Relation, now: UpToDate) -> list[Expected]:
        registry = self._registry.only(unit)
        whole: list[Change] = [
            Inserted(relation, values, copied=True)
            for values in (*now.untouched.values(), *now.changed)
        ]
        partly: list[Change] = [Updated(relation, values, partial=True) for values in now.partial]
        return [
            *expected_of(op for _, op in project(placed_at(self._position, whole), registry)),
            *expected_of(
                (op for _, op in project(placed_at(self._position, partly), registry)), partial=True
            ),
        ]


def _without(now: UpToDate, relation: Relation, keys: Container[Key]) -> UpToDate:
    """Leave out the rows of keys in quarantine."""
    return UpToDate(
        {key: values for key, values in now.untouched.items() if key not in keys},
        [values for values in now.changed if row_key(relation, values) not in keys],
        [values for values in now.partial if row_key(relation, values) not in keys],
    )


def _is_whole(plan: BulkPlan, relation: Relation) -> bool:
    return plan.positions == tuple(range(len(relation.names)))

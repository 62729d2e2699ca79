"""The thread that reads what is to be compared with the read tables."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from cdc.beside.feed import Feed
from cdc.beside.pages import Pages
from cdc.beside.verifying import Verifying
from cdc.change import Relation
from cdc.copy_state import Copy, Unit
from cdc.errors import CdcError
from cdc.projection.check import Check, Probe, Walk
from cdc.projection.mirror import Mirror
from cdc.projection.registry import Registry
from cdc.schema import Schema
from cdc.sink.asked import Asked
from cdc.source.chunks import ChunkSize
from cdc.source.compared import ComparedReader
from cdc.source.connection import Connection
from cdc.source.relations import Relations
from cdc.verify_state import WHOLE, Ledger, Verification

_LOOK_SECONDS: Final = 1.0


@dataclass(kw_only=True, eq=False)
class Verifier:
    """Reads what is to be compared, page after page, until nothing is left; then waits to be asked.

    `asked` looks up what somebody asks for; `copies` gives how far the copies are: what is
    being copied is compared afterwards. `done` is told of each that is finished.
    """

    registry: Registry
    schema: Schema
    relations: Relations
    open_source: Callable[[], Connection]
    asked: Asked[Verification]
    copies: Callable[[], dict[Unit, Copy]]
    done: Callable[[Verification], None]
    ledger: Ledger
    verifying: Verifying
    chunk_bytes: int
    rows_per_second: int

    _feed: Feed[Probe] = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _reader: ComparedReader | None = field(default=None, init=False)
    _look_at: float = field(default=0.0, init=False)

    def run(self, offer: Callable[[Probe], None]) -> None:
        """Have compared what is due, until stopped; `offer` hands on what was read."""
        self._feed = Feed(
            self.ledger, self.verifying.window, offer, self._stop, self.rows_per_second
        )
        try:
            while not self._stop.is_set():
                self._look()
                units = self._next()
                if not units:
                    self._stop.wait(_LOOK_SECONDS)
                else:
                    self._verify(units)
        except CdcError:
            if not self._stop.is_set():  # else it was cancelled
                raise
        finally:
            self.asked.close()

    def stop(self) -> None:
        """Stop soon, and cancel what the write database is asked for; never raise."""
        self._stop.set()
        reader = self._reader
        if reader is not None:
            reader.cancel()

    def _look(self) -> None:
        """See, once a second, what somebody asks for."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        mine = self.ledger.all
        for unit, stored in self.asked.look().items():
            if unit not in mine or stored.asked > mine[unit].asked:
                self.ledger.take(stored)

    def _next(self) -> list[Unit]:
        """Choose what to compare together: a unit, and what writes the same read tables."""
        due = {unit for unit, one in self.ledger.all.items() if one.due}
        copies = self.copies()
        for group in self._groups([unit for unit in self.registry.units() if unit in due]):
            if not any(copies[unit].due for unit in group if unit in copies):
                return group
        return []

    def _groups(self, units: Sequence[Unit]) -> list[list[Unit]]:
        groups: list[list[Unit]] = []
        for unit in units:
            near = [group for group in groups if self._meet(unit, group)]
            groups = [group for group in groups if group not in near]
            groups.append([*(other for group in near for other in group), unit])
        return groups

    def _meet(self, unit: Unit, group: Sequence[Unit]) -> bool:
        mine = self._tables(unit)
        return any(mine & self._tables(other) for other in group)

    def _tables(self, unit: Unit) -> frozenset[sa.Table]:
        return frozenset(self.registry.projector(unit.projector).into)

    # One group.

    def _verify(self, units: Sequence[Unit]) -> None:
        """Compare the rows of some units, and find those that none of them leads to."""
        if len(units) == 1 and self._is_ranged(units[0]):
            self._verify_one(units[0], finish=True)
        else:
            self._verify_together(units)
        for unit in units:
            now = self.ledger.current(unit)
            if not now.due:
                self.done(now)

    def _verify_together(self, units: Sequence[Unit]) -> None:
        """Compare from the beginning: keys that were noted before are gone."""
        judged = self._judged(units)
        walk = Walk(judged) if judged else None
        self.verifying.walks = (walk,) if walk else ()
        try:
            is_whole = self._walk(units, walk)
            if is_whole and len(units) > 1 and self._put_back(units):
                is_whole = self._walk(units, walk)
            if is_whole:
                self._judge(units, walk, judged)
        finally:
            self.verifying.walks = ()

    def _walk(self, units: Sequence[Unit], walk: Walk | None) -> bool:
        for unit in units:
            self.ledger.take(self.ledger.current(unit).begun_anew())
        return all(self._verify_one(unit, walk=walk, finish=False) for unit in units)

    def _put_back(self, units: Sequence[Unit]) -> bool:
        """Tell whether missing rows were put back: others may have to set columns of them."""
        now = [self.ledger.current(unit) for unit in units]
        return any(one.repair and one.missing for one in now)

    def _judged(self, units: Sequence[Unit]) -> dict[sa.Table, Unit]:
        """Choose the read tables whose writers are all walked whole, and who answers for each."""
        walked = {u for u in units if self.ledger.current(u).sample >= WHOLE}
        return {
            table: unit
            for unit in reversed(units)
            for table in self._tables(unit)
            if walked.issuperset(self._writers(table))
        }

    def _writers(self, table: sa.Table) -> list[Unit]:
        return [unit for unit in self.registry.units() if table in self._tables(unit)]

    def _note(self, units: Sequence[Unit], judged: dict[sa.Table, Unit]) -> str | None:
        """Say in which tables extra rows were not looked for, and why."""
        tables = {table for unit in units for table in self._tables(unit)} - judged.keys()
        if not tables:
            return None
        names = ", ".join(sorted(table.fullname for table in tables))
        others = {unit for table in tables for unit in self._writers(table)} - set(units)
        if others:
            named = ", ".join(sorted({unit.projector for unit in others}))
            why = f"{named} writes there too, and was not compared"
        else:
            why = "a sample does not tell them"
        return f"extra rows in {names} were not looked for: {why}"

    def _is_ranged(self, unit: Unit) -> bool:
        """Tell whether a range of keys is the same range in both databases."""
        projector, relation = self.registry.projector(unit.projector), self._relation(unit)
        if not self.verifying.takes_lines or not isinstance(projector, Mirror):
            return False
        if projector.bulk_plan(relation).key_positions != relation.key_positions:
            return False  # the read table's key is of the same columns in another order
        return ComparedReader(self.open_source, self.schema[unit.source], relation).ordered

    def _relation(self, unit: Unit) -> Relation:
        return self.relations.known(unit.source)

    # One unit.

    def _verify_one(self, unit: Unit, *, walk: Walk | None = None, finish: bool) -> bool:
        """Compare the rows of a unit; tell False where it has to be begun anew."""
        relation = self._relation(unit)
        with closing(
            ComparedReader(self.open_source, self.schema[unit.source], relation)
        ) as reader:
            self._reader = reader
            plan = self.verifying.plan(unit, relation)
            sums = plan is not None and self._is_ranged(unit)
            pages = Pages(
                feed=self._feed,
                ledger=self.ledger,
                look=self._look,
                reader=reader,
                verification=self.ledger.current(unit),
                columns=[relation.names[p] for p in plan.positions] if plan and sums else (),
                ranged=self._is_ranged(unit),
                walk=walk,
                finish=finish,
                deletes=walk is None and not self.registry.shared(unit),
                size=ChunkSize(self.chunk_bytes),
            )
            is_whole = pages.read()
        self._reader = None
        return is_whole

    def _judge(
        self, units: Sequence[Unit], walk: Walk | None, judged: dict[sa.Table, Unit]
    ) -> None:
        """Have found what no row leads to, and finish."""
        first = self.ledger.current(units[0])
        check = Check(
            ledger=self.ledger,
            unit=first.unit,
            asked=first.asked,
            after=first.reached,
            walk=walk,
            judged=list(judged.items()),
            finishes=units,
            note=self._note(units, judged),
        )
        self._feed.offer(Probe(check=check))
        self._feed.wait(outstanding=0)

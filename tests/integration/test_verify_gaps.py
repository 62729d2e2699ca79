"""Whatever happens to a row in whichever gap of a check's life, nothing is called wrong.

The threads of the pipeline are stepped through by hand: each gap comes about for certain.
"""

from collections.abc import Callable, Iterator

import pytest

from cdc.assemble import Transaction
from cdc.copy_state import Copy, Key
from cdc.projection.batch import Batch
from cdc.projection.check import Check, Probe, Walk
from cdc.source.compared import ComparedReader
from cdc.source.connection import connect
from cdc.source.slot import mark_now
from cdc.verify_state import Verification
from tests.conftest import Configuration, Database
from tests.integration.test_copy_gaps import (  # noqa: F401  fixtures
    FILL,
    MUTATIONS,
    Steps,
    both,
    case,
    gaps,
    key,
    plugin,
    statements,
    store,
)
from tests.read_databases import ReadDatabase

Configure = Callable[..., Configuration]


class Comparing(Steps):
    """Steps that compare: pages of two rows."""

    def prepare(self) -> None:
        self.copying.ask(Copy(self.unit, state="done", asked=2))
        self.verifying, self.verifier = self.pipeline.verifying, self.pipeline.verifier
        self.ledger = self.verifier.ledger
        relation = self.chunks.relation
        self.compared = ComparedReader(
            lambda: connect(self.write.dsn), self.verifier.schema[self.unit.source], relation
        )
        self.ranged = self.verifier._is_ranged(self.unit)

    def pump(self) -> None:
        lsn = mark_now(self.write.connection)
        batch = Batch()
        while batch.end_lsn is None or batch.end_lsn < lsn or not batch.complete:
            frames, _ = self.pipeline.stream.read(seconds=1)
            for item in self.pipeline.reader.read(frames):
                if isinstance(item, Transaction) and not item.changes and item.end_lsn:
                    batch.reach(item.end_lsn)
                else:
                    self.pipeline._add(item, batch)
        for full in self.pipeline.verifying.placed(batch):
            self.apply(full)
            batch = Batch()
        if batch.can_commit:
            self.apply(batch)

    def apply(self, batch: Batch) -> None:
        batch.walks = self.pipeline.verifying.walks
        super().apply(batch)
        for check in batch.checks:
            check.committed()

    def verify(self, step: Callable[[str], None], *, sums: bool) -> Verification:
        """Walk the table, with steps in the second page's life."""
        self.asked += 1
        self.ledger.take(Verification(self.unit, asked=self.asked))
        tables = self.verifier._tables(self.unit)
        walk = None if self.ranged else Walk(tables)
        self.verifying.walks = (walk,) if walk else ()
        ends, pages = False, 0
        while not ends:
            pages += 1
            assert pages < 20
            before = self.ledger.fruitless
            ends = self.page(step if pages == 2 else lambda _: None, walk, sums=sums)
            if self.ledger.fruitless > before:
                ends = sums = False
        if walk is not None:
            judged = [(table, self.unit) for table in tables]
            self.offer(self.check(walk, None, judged=judged, finishes=[self.unit]))
            self.pump()
        self.verifying.walks = ()
        return self.ledger.current(self.unit)

    def page(self, step: Callable[[str], None], walk: Walk | None, *, sums: bool) -> bool:
        after = self.ledger.current(self.unit).reached
        step("before the snapshot")
        snapshot = self.compared.begin()
        step("after the snapshot")
        while (opened := self.verifying.window.open(self.unit.source, snapshot)) is None:
            self.compared.rollback()
            snapshot = self.compared.begin()
        step("after it was opened")
        total, text = None, b""
        if sums:
            summed = self.compared.sum(self.chunks.relation.names, after=after, rows=2)
            total, last, ends = summed.total, summed.last, summed.ends
            count = summed.count
        else:
            page = self.compared.read(after=after, rows=2)
            text, last, ends, count = page.text, page.last, page.ends, page.count
        step("after the rows")
        watermark = self.compared.mark()
        step("after the watermark")
        check = self.check(walk, last, count=count)
        check.finishes = [self.unit] if ends and walk is None else []
        self.offer(
            check,
            watermark=watermark,
            relation=self.chunks.relation,
            opened=opened,
            text=text,
            total=total,
            start=after,
            ends=ends,
            ranged=self.ranged,
        )
        step("after its arrival")
        self.pump()
        step("after it was placed")
        return ends

    def check(self, walk: Walk | None, last: Key | None, **more: object) -> Check:
        after = self.ledger.current(self.unit).reached
        return Check(
            ledger=self.ledger,
            unit=self.unit,
            asked=self.asked,
            after=after,
            last=last or after,
            walk=walk,
            **more,
        )

    def offer(self, check: Check, **more: object) -> None:
        self.ledger.expect()
        self.verifying.arrived(Probe(check=check, **more))

    def close(self) -> None:
        self.compared.close()
        super().close()


@pytest.fixture
def steps(
    write: Database,
    configuration: Configure,
    store: ReadDatabase,  # noqa: F811
    key: str,  # noqa: F811
    plugin: str,  # noqa: F811
) -> Iterator[Comparing]:
    write.run(
        f"create table t (id {key} primary key, v text, big text)",
        "alter table t alter big set storage external",
    )
    chosen = configuration(plugin, mirrors=[{"source": "public.t"}]).with_(read={"url": store.url})
    made = Comparing(chosen.settings(), write, store)
    made.prepare()
    yield made
    made.close()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_whatever_happens_in_a_gap_nothing_is_called_wrong(
    steps: Comparing,
    store: ReadDatabase,  # noqa: F811
    mutation: str,
    key: str,  # noqa: F811
) -> None:
    wrong = []
    for sums in {False, steps.ranged}:
        for gap in gaps(mutation):
            for streamed in (False, True):
                steps.write.run("truncate t", FILL)
                steps.pump()

                def step(name: str, gap: str = gap, streamed: bool = streamed) -> None:
                    if name == gap:
                        for statement in statements(mutation, key):
                            steps.write.connection.execute(statement.encode())
                        if streamed:
                            steps.pump()

                found = steps.verify(step, sums=sums)
                steps.pump()
                source, read = both(steps, store)
                assert source == read
                if found.mismatched or found.due or found.compared < 1:
                    wrong.append((sums, gap, streamed, found))
    assert not wrong

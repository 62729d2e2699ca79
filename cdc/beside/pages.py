"""Read the source rows of a unit, page after page, for the checks of a verification."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cdc.beside.feed import Feed
from cdc.copy_state import Key
from cdc.exchange import Stopped
from cdc.projection.check import Check, Probe, Walk
from cdc.source.chunks import ChunkSize
from cdc.source.compared import ComparedReader
from cdc.verify_state import WHOLE, Ledger, Verification

_AHEAD: Final = 2  # checks that are read while others wait for their place
_SUMMED_ROWS: Final = 20_000
_BY_ROWS: Final = 8  # pages read whole after one whose sum did not do
_SAMPLED_PAGES: Final = 200  # of a table: a sample of few would tell little
_FEWEST_ROWS: Final = 100


@dataclass(kw_only=True, eq=False)
class Pages:
    """The pages of one unit. `look` sees what somebody asks for meanwhile.

    By sums of hashes of `columns`, if there are any, and by rows where those do not do. With
    `finish` the unit is done at the table's end.
    """

    feed: Feed[Probe]
    ledger: Ledger
    look: Callable[[], None]
    reader: ComparedReader
    verification: Verification
    columns: Sequence[str]
    ranged: bool
    walk: Walk | None
    finish: bool
    deletes: bool
    size: ChunkSize

    _estimate: int | None = field(default=None, init=False)
    _last_before: Key | None = field(default=None, init=False)
    _by_rows: int = field(default=0, init=False)

    def read(self) -> bool:
        """Have all rows compared; tell False where that has to be begun anew."""
        ledger, unit = self.ledger, self.verification.unit
        self._estimate = self.reader.estimate()
        self._last_before = self.reader.last_key()
        after, ends, fruitless = self.verification.reached, False, ledger.fruitless
        while True:
            self.feed.wait(outstanding=0 if ends else _AHEAD)
            self.look()
            if ledger.current(unit).asked != self.verification.asked:
                return False
            if ledger.fruitless != fruitless:
                self.feed.wait(outstanding=0)
                fruitless, self._by_rows = ledger.fruitless, _BY_ROWS
                after, ends = ledger.current(unit).reached, False
            elif ends:
                return True
            if self.walk is not None and self.walk.lost:
                return False
            after, ends = self._page(after)

    def _page(self, after: Key | None) -> tuple[Key | None, bool]:
        """Read a page, and leave out those before it that are not in the sample."""
        start, skipped, ends = after, 0, False
        while not ends and not self._is_chosen():
            if self.feed.stop.is_set():
                raise Stopped
            left_out = self.reader.skip(after=start, rows=self._rows(_SUMMED_ROWS))
            skipped += left_out.count
            start, ends = left_out.last or start, left_out.ends
        if ends:
            self.feed.offer(Probe(check=self._check(after, start, 0, skipped, ends=True)))
            return start, True
        return self._compared(after, start, skipped)

    def _is_chosen(self) -> bool:
        sample = self.verification.sample
        return sample >= WHOLE or random.random() * WHOLE < sample  # noqa: S311  no secret

    def _rows(self, usual: int) -> int:
        if self.verification.sample >= WHOLE:
            return usual
        return min(usual, max(_FEWEST_ROWS, (self._estimate or 0) // _SAMPLED_PAGES))

    def _compared(
        self, after: Key | None, start: Key | None, skipped: int
    ) -> tuple[Key | None, bool]:
        began = time.monotonic()
        opened = self.feed.open(self.reader, self.verification.unit.source)
        total: int | None = None
        text = b""
        if self.columns and not self._by_rows:
            rows = self._rows(_SUMMED_ROWS)
            summed = self.reader.sum(self.columns, after=start, rows=rows)
            count, last, ends = summed.count, summed.last, summed.ends
            total = summed.total
        else:
            page = self.reader.read(after=start, rows=self._rows(self.size.rows))
            text, count, last, ends = page.text, page.count, page.last, page.ends
            self._by_rows = max(0, self._by_rows - 1)
            self.size.learn(page, seconds=time.monotonic() - began)
        last = last or start
        self.feed.offer(
            Probe(
                check=self._check(after, last, count, skipped, ends=ends),
                watermark=self.reader.mark(),
                relation=self.reader.relation,
                opened=opened,
                text=text,
                total=total,
                start=start,
                ends=ends,
                ranged=self.ranged,
                deletes=self.deletes,
            )
        )
        self._slow_down(last, count, time.monotonic() - began)
        return last, ends

    def _slow_down(self, after: Key | None, rows: int, seconds: float) -> None:
        """Keep to the pace, but for rows that came since: they might come faster than that."""
        bound = self._last_before
        if not self.feed.rows_per_second or bound is None:
            return
        if self.reader.any_left(after=after, bound=bound):
            self.feed.slow_down(rows, seconds)

    def _check(
        self, after: Key | None, last: Key | None, count: int, skipped: int, *, ends: bool
    ) -> Check:
        unit = self.verification.unit
        return Check(
            ledger=self.ledger,
            unit=unit,
            asked=self.verification.asked,
            after=after,
            last=last,
            count=count,
            skipped=skipped,
            estimate=self._estimate,
            walk=self.walk,
            finishes=(unit,) if self.finish and ends else (),
            anew=after is None and not self.verification.repair,
        )

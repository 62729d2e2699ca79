"""How cost grows with the work: one axis after the other, all else as it is by default.

Rates here leave out what the daemon takes to start, which the backlogs of the targets include:
they are small, so that a curve takes a minute or two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks import backlogs, report
from benchmarks.arena import SOURCE_DB, TEMPLATE_DB, Arena
from benchmarks.contestants import Contestant
from benchmarks.figures import Result
from benchmarks.ours import Ours
from benchmarks.read_models import several
from benchmarks.run import Run
from benchmarks.spread import Spread
from benchmarks.workloads import (
    INSERT_ITEMS,
    ROWS_PER_TRANSACTION,
    Changes,
    Million,
    Workload,
    in_transactions,
    make_items,
    statement,
)

_ROWS: Final = 200_000
_WIDE_BYTES: Final = 30_000_000
_HEXADECIMAL: Final = 32  # what md5 gives
_WIDE: Final = "create table wide (id bigint primary key, payload text not null)"
_PAYLOAD: Final = """
left(
    (select string_agg(md5({seed} || i || '.' || j), '') from generate_series(1, {parts}) j),
    {width}
)
"""


@dataclass(frozen=True)
class Sized(Workload):
    """Inserts, so many in each transaction."""

    inserts: int
    rows: int
    name: str = "growth"
    tables: tuple[str, ...] = ("items",)

    @property
    def title(self) -> str:
        return f"{self.inserts:,} inserts, {self.rows:,} a transaction"

    @property
    def changes(self) -> Changes:
        return {"I": self.inserts, "U": 0, "D": 0}

    def prepare(self, arena: Arena) -> None:
        make_items(arena, self.tables)

    def generate(self, arena: Arena) -> None:
        with arena.connect_source() as connection:
            in_transactions(connection, statement(INSERT_ITEMS), 1, self.inserts, rows=self.rows)


@dataclass(frozen=True)
class Wide(Workload):
    """Inserts and updates of rows with one text that does not compress."""

    inserts: int
    width: int
    name: str = "growth"
    tables: tuple[str, ...] = ("wide",)

    @property
    def title(self) -> str:
        return f"{self.inserts:,} inserts and updates, {self.width:,} bytes a row"

    @property
    def changes(self) -> Changes:
        return {"I": self.inserts, "U": self.inserts, "D": 0}

    def prepare(self, arena: Arena) -> None:
        arena.source.psql(_WIDE, SOURCE_DB)
        arena.read.psql(_WIDE, TEMPLATE_DB)

    def generate(self, arena: Arena) -> None:
        new = f"insert into wide select i, {self._payload('a')} from generate_series"
        changed = f"update wide set payload = {self._payload('b').replace(' i ', ' id ')} where id"
        with arena.connect_source() as connection:
            in_transactions(connection, new + "({first}, {last}) i", 1, self.inserts)
            in_transactions(connection, changed + " between {first} and {last}", 1, self.inserts)

    def _payload(self, seed: str) -> str:
        parts = -(-self.width // _HEXADECIMAL)
        return _PAYLOAD.format(seed=f"'{seed}'", parts=parts, width=self.width)


@dataclass(frozen=True)
class Several(Million):
    """The million changes' table, with many projectors, each into a table of its own."""

    count: int = 1
    name: str = "growth"
    modules: tuple[str, ...] = (several.__name__,)

    @property
    def environment(self) -> Mapping[str, str]:
        return {several.VARIABLE: str(self.count)}

    @property
    def title(self) -> str:
        return f"{sum(self.changes.values()):,} changes, {self.count} projectors"

    @property
    def results(self) -> tuple[str, ...]:
        return tuple(several.read_name(number) for number in range(self.count))

    def prepare(self, arena: Arena) -> None:
        """Make tables for the projectors, and views of what each must come to."""
        super().prepare(arena)
        columns = ", ".join(several.COLUMNS)
        for name in self.results:
            arena.source.psql(f"create view {name} as select {columns} from items", SOURCE_DB)
            arena.read.psql(
                f"create table {name} as select {columns} from items; "
                f"alter table {name} add primary key (id)",
                TEMPLATE_DB,
            )


@dataclass(frozen=True)
class Axis:
    """What grows, over which points; `reading` gives the daemon's settings of [read]."""

    name: str
    title: str
    points: Sequence[int]
    workload: Callable[[int, float], Workload]
    reading: Callable[[int], str] = lambda _: ""
    replicates: bool = True  # native and the ceilings can be measured beside it


def _inserts(changes: float) -> int:
    """Give how many inserts a backlog of inserts, updates and deletes has: a half."""
    return max(10, round(changes / 2 / ROWS_PER_TRANSACTION)) * ROWS_PER_TRANSACTION


def _sized(rows: int, scale: float) -> Workload:
    wanted = max(_ROWS * scale, rows)
    return Sized(round(wanted / rows) * rows, rows)


def _wide(width: int, scale: float) -> Workload:
    rows = min(_ROWS // 2, _WIDE_BYTES // width) * scale
    return Wide(max(1, round(rows / ROWS_PER_TRANSACTION)) * ROWS_PER_TRANSACTION, width)


AXES: Final = (
    Axis(
        "batch",
        "changes in a batch, at most",
        (100, 1000, 20_000, 100_000),
        lambda _, scale: Million(_inserts(_ROWS * scale)),
        lambda point: f"batch_changes = {point}\n",
        replicates=False,
    ),
    Axis("width", "bytes in a row", (100, 300, 1000, 3000, 10_000), _wide),
    Axis(
        "transaction",
        "rows in a transaction",
        (1, 10, 100, 10_000, 100_000, 1_000_000),
        _sized,
    ),
    Axis(
        "tables",
        "mirrored tables",
        (1, 10, 50, 200),
        lambda point, scale: Spread(_inserts(_ROWS * scale), point),
    ),
    Axis(
        "projectors",
        "projectors of one table",
        (1, 5, 10, 20),
        lambda point, scale: Several(_inserts(_ROWS / 10 * scale), count=point),
        replicates=False,
    ),
)


def compare(run: Run) -> list[Result]:
    """Measure every point of every axis, once: a curve has its neighbours to be checked by."""
    found = [
        result for axis in AXES for point in axis.points for result in _measure(run, axis, point)
    ]
    report.print_growth(run.console, found)
    return found


def _measure(run: Run, axis: Axis, point: int) -> list[Result]:
    def line_up(run: Run, place: Arena, workload: Workload, label: str) -> list[Contestant]:
        found = backlogs.everybody(run, place, workload, label)
        for contestant in found:
            if isinstance(contestant, Ours):
                contestant.reading = axis.reading(point)
        return found

    asked = replace(
        run,
        rounds=1,
        native=run.native and axis.replicates,
        ceiling=run.ceiling and axis.name == "width",  # the others' bytes a change are the same
        profile=False,
    )
    run.say(f"growth: {axis.title}: {point:,}")
    _, results = backlogs.measure_all(asked, axis.workload(point, run.scale), line_up)
    return [replace(result, workload="growth", axis=axis.name, point=point) for result in results]

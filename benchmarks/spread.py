"""The same changes to one table, and spread over many."""

from dataclasses import dataclass

from benchmarks import backlogs, report
from benchmarks.arena import Arena
from benchmarks.figures import Result
from benchmarks.run import Run
from benchmarks.workloads import (
    DELETE_ITEMS,
    INSERT_ITEMS,
    UPDATE_ITEMS,
    Changes,
    Million,
    Workload,
    in_transactions,
    make_items,
    statement,
)

TABLES = 50


@dataclass(frozen=True)
class Spread(Workload):
    """Inserts, updates and deletes; the rows of each transaction go round the tables."""

    inserts: int
    count: int

    @property
    def name(self) -> str:
        return f"spread-{self.count}"

    @property
    def title(self) -> str:
        return f"{self.total:,} changes, spread over {self.count} tables"

    @property
    def total(self) -> int:
        return sum(self.changes.values())

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(f"items_{number:03}" for number in range(self.count))

    @property
    def changes(self) -> Changes:
        return Million(self.inserts).changes

    def prepare(self, arena: Arena) -> None:
        make_items(arena, self.tables)

    def generate(self, arena: Arena) -> None:
        counts = self.changes
        with arena.connect_source() as connection:
            for template, first, last in (
                (INSERT_ITEMS, 1, counts["I"]),
                (UPDATE_ITEMS, 1, counts["U"]),
                (DELETE_ITEMS, counts["U"] + 1, counts["I"]),
            ):
                in_transactions(connection, self._everywhere(template), first, last)

    def _everywhere(self, template: str) -> str:
        """Give a statement for each table: a row belongs to the table of its id's remainder."""
        return "; ".join(
            statement(
                template,
                table,
                # Where the first id of the transaction that belongs to this table is.
                first=f"{{first}} + mod(mod({number} - {{first}}, {self.count}) + {self.count}, "
                f"{self.count})",
                step=self.count,
            )
            for number, table in enumerate(self.tables)
        )


def compare(run: Run) -> list[Result]:
    """Measure one table, then many."""
    inserts = Million.scaled(run.scale / 2).inserts
    results = [
        result
        for count in (1, TABLES)
        for result in backlogs.compare(run, Spread(inserts, count), backlogs.replicas)
    ]
    report.print_spread(run.console, results)
    return results

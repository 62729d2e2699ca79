"""An application that also changes its tables, empties them, and writes what nobody foresaw."""

from collections import Counter
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from tests.chaos.poisoned import POISON
from tests.chaos.workload import LARGE, MIRRORS, MODULE, Workload

_SCHEMA = """
create table measure (id bigint, day int, value bigint, primary key (id, day))
    partition by range (day);
create table parcel (id bigint primary key, label text not null);
"""
_MOST_COLUMNS = 40
_MOST_PARTITIONS = 60
_MOST_POISONED = 50


class Evolving(Workload):
    """The workload, and now and then DDL, a truncate, a new partition, poison."""

    MIRRORS: ClassVar[list[dict[str, Any]]] = [*MIRRORS, {"source": "public.measure"}]
    MODULES: ClassVar[list[str]] = [MODULE, "tests.chaos.poisoned"]

    def __init__(self, dsn: str, *, seed: int) -> None:
        super().__init__(dsn, seed=seed)
        self._dsn = dsn
        self.counted: Counter[str] = Counter()
        self.poisoned: set[int] = set()
        self._days = self._columns = self._parcels = 0

    def create(self) -> None:
        super().create()
        self._connection.execute(sql.SQL(_SCHEMA))
        self._add_partition()

    def disconnect(self) -> None:
        """End what is open, without an error."""
        self.settle()
        self.close()

    def connect(self) -> None:
        """Go on after the server was away."""
        self._connection = psycopg.connect(self._dsn, autocommit=True)
        self._slow = psycopg.connect(self._dsn)

    def step(self) -> None:
        super().step()
        self.counted["transactions"] += 1
        rare = self._chance.random()
        if rare < 0.002 and self._columns < _MOST_COLUMNS:
            self._note("columns added", self._add_column)
        elif 0.002 <= rare < 0.003:
            self._note("tables truncated", self._truncate)
        elif 0.003 <= rare < 0.006 and self._days < _MOST_PARTITIONS:
            self._note("partitions added", self._add_partition)
        elif 0.006 <= rare < 0.01:
            self._note("poisoned rows", self._poison)
        elif rare < 0.3:
            self._measure()
        elif rare < 0.4:
            self._label()

    def _note(self, what: str, done: Any) -> None:
        done()
        self.counted[what] += 1

    def _add_column(self) -> None:
        self.settle()  # it waits for who writes the table
        self._columns += 1
        self._run(f"alter table account add column extra_{self._columns} bigint default 7")

    def _truncate(self) -> None:
        with self._connection.transaction():
            self._run("truncate large")
            self._run(
                f"insert into large select g, 0, 'anew ' || g from generate_series(1, {LARGE}) g"
            )

    def _add_partition(self) -> None:
        day = self._days
        self._days += 1
        self._run(
            f"create table measure_{day} partition of measure for values from ({day}) to ({day + 1})"
        )

    def _measure(self) -> None:
        id_, day = self._chance.randrange(500), self._chance.randrange(self._days)
        self._run(
            "insert into measure values (%s, %s, 1) "
            "on conflict (id, day) do update set value = measure.value + 1",
            id_,
            day,
        )

    def _label(self) -> None:
        """Write a parcel anew, or one from before: that may be in quarantine already."""
        if self._chance.random() < 0.5 or not self._parcels:
            self._parcels += 1
            self._run("insert into parcel values (%s, 'sound')", self._parcels)
        else:
            id_ = self._chance.randint(1, self._parcels)
            self._run("update parcel set label = label || '!' where id = %s", id_)

    def _poison(self) -> None:
        """Write what fails; of many such rows empty the table, which empties its quarantine."""
        if len(self.poisoned) >= _MOST_POISONED:
            self._run("truncate parcel")
            self.poisoned.clear()
        self._parcels += 1
        self._run("insert into parcel values (%s, %s)", self._parcels, POISON)
        self.poisoned.add(self._parcels)

    def queries(self) -> dict[str, str]:
        """Give for each read table the query of what it holds."""
        mirrors = {name: self._all_of(name) for name in ("account", "large", "journal", "measure")}
        return mirrors | {
            "summary": "select id, twice, loud from summary",
            "parcel_read": "select id, label from parcel_read",
        }

    def expected(self, table: str) -> Counter[tuple[Any, ...]]:
        """Give the rows that a read table must hold, with how often."""
        queries = self.queries() | {
            "summary": "select id, 2 * balance, upper(note) from account",
            "parcel_read": "select id, label from parcel",
        }
        return Counter(self._connection.execute(sql.SQL(queries[table])).fetchall())

    def _all_of(self, table: str) -> str:
        names = self._connection.execute(
            "select column_name from information_schema.columns "
            "where table_schema = 'public' and table_name = %s order by 1",
            [table],
        )
        return f"select {', '.join(name for (name,) in names)} from {table}"

"""Backlogs: what is in the source beforehand, and what happens while everybody is stopped."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from benchmarks.arena import END_TABLE, SOURCE_DB, TEMPLATE_DB, Arena

ROWS_PER_TRANSACTION: Final = 100
_PGBENCH_TABLES: Final = (
    "pgbench_accounts",
    "pgbench_branches",
    "pgbench_history",
    "pgbench_tellers",
)

Changes = Mapping[str, int]
"""How many inserts (I), updates (U) and deletes (D) a backlog holds."""


class Workload(ABC):
    """A backlog. `tables` does not name the end table, which is always there.

    With `modules` the daemon reads them for projectors instead of mirroring the tables.
    """

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def title(self) -> str: ...

    @property
    @abstractmethod
    def tables(self) -> tuple[str, ...]: ...

    @property
    @abstractmethod
    def changes(self) -> Changes: ...

    @property
    def keyless(self) -> frozenset[str]:
        """The tables without a key, whose inserts alone are mirrored."""
        return frozenset()

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of projectors."""
        return ()

    @property
    def environment(self) -> Mapping[str, str]:
        """What the daemon's environment has beyond this one's."""
        return {}

    @property
    def results(self) -> tuple[str, ...]:
        """The read tables that are compared with the source's tables, or views, of their names."""
        return self.tables

    @abstractmethod
    def prepare(self, arena: Arena) -> None:
        """Make the tables and initial rows, the same in the source and the template."""

    @abstractmethod
    def generate(self, arena: Arena) -> None:
        """Make the backlog."""


@dataclass(frozen=True)
class Tpcb(Workload):
    """pgbench's TPC-B: three updates and one insert a transaction."""

    transactions: int
    scale: int
    name: str = "tpcb"
    tables: tuple[str, ...] = _PGBENCH_TABLES
    keyless: frozenset[str] = frozenset({"pgbench_history"})

    _CLIENTS = 4

    @classmethod
    def scaled(cls, factor: float) -> "Tpcb":
        per_client = max(1, round(200_000 * factor / cls._CLIENTS))
        return cls(per_client * cls._CLIENTS, max(1, round(10 * factor)))

    @property
    def title(self) -> str:
        return f"pgbench TPC-B, {self.transactions:,} transactions, scale {self.scale}"

    @property
    def changes(self) -> Changes:
        return {"I": self.transactions, "U": 3 * self.transactions, "D": 0}

    def prepare(self, arena: Arena) -> None:
        scale = f"--scale={self.scale}"
        arena.pgbench("-i", "-q", "-I", "dtgvp", scale)
        arena.pgbench("-i", "-q", "-I", "dt", scale, server=arena.read, dbname=TEMPLATE_DB)
        arena.fill_template(self.tables)
        arena.pgbench("-i", "-q", "-I", "p", scale, server=arena.read, dbname=TEMPLATE_DB)

    def generate(self, arena: Arena) -> None:
        each = self.transactions // self._CLIENTS
        arena.pgbench("-n", "-c", str(self._CLIENTS), "-j", "2", "-t", str(each), "-M", "prepared")


ITEMS: Final = """
create table {table} (
    id bigint primary key,
    customer int not null,
    name text not null,
    note text,
    amount numeric(12, 2) not null,
    active boolean not null,
    updated_at timestamptz not null
)
"""
INSERT_ITEMS: Final = """
insert into {table}
select i, i % 1000, 'name ' || i, case when i % 3 > 0 then 'a note about item ' || i end,
       (i % 100000) / 100.0, i % 2 = 0, timestamptz '2026-01-01' + i * interval '1 second'
from generate_series({first}, {last}, {step}) i
"""
UPDATE_ITEMS: Final = """
update {table} set name = 'changed ' || id, amount = amount + 1, active = not active,
       updated_at = updated_at + interval '1 day'
where id between {first} and {last}
"""
DELETE_ITEMS: Final = "delete from {table} where id between {first} and {last}"


@dataclass(frozen=True)
class Million(Workload):
    """Inserts, updates and deletes of a table of seven columns, each row once per kind."""

    inserts: int
    name: str = "million"
    tables: tuple[str, ...] = ("items",)

    @classmethod
    def scaled(cls, factor: float) -> "Million":
        return cls(max(10, round(5000 * factor)) * ROWS_PER_TRANSACTION)

    @property
    def changes(self) -> Changes:
        deletes = self.inserts // 5 // ROWS_PER_TRANSACTION * ROWS_PER_TRANSACTION
        return {"I": self.inserts, "U": self.inserts - deletes, "D": deletes}

    @property
    def title(self) -> str:
        counts = self.changes
        return (
            f"{counts['I']:,} inserts + {counts['U']:,} updates + {counts['D']:,} deletes, "
            f"7 columns, {ROWS_PER_TRANSACTION} rows a transaction"
        )

    def prepare(self, arena: Arena) -> None:
        make_items(arena, self.tables)

    def generate(self, arena: Arena) -> None:
        counts = self.changes
        with arena.connect_source() as connection:
            in_transactions(connection, statement(INSERT_ITEMS), 1, counts["I"])
            in_transactions(connection, statement(UPDATE_ITEMS), 1, counts["U"])
            in_transactions(connection, statement(DELETE_ITEMS), counts["U"] + 1, counts["I"])


def make_items(arena: Arena, tables: Sequence[str]) -> None:
    """Make tables of seven columns, in the source and the template."""
    for table in tables:
        arena.source.psql(ITEMS.format(table=table), SOURCE_DB)
        arena.read.psql(ITEMS.format(table=table), TEMPLATE_DB)


def statement(
    template: str,
    table: str = "items",
    *,
    first: object = "{first}",
    last: object = "{last}",
    step: int = 1,
) -> str:
    """Fill a statement in; without bounds it is one for `in_transactions`."""
    return template.format(table=table, first=first, last=last, step=step)


def in_transactions(
    connection: psycopg.Connection[Any],
    body: str,
    first: int,
    last: int,
    *,
    rows: int = ROWS_PER_TRANSACTION,
) -> None:
    """Execute statements over a range of ids, so many of them in each transaction."""
    filled = body.format(first="k", last=f"k + {rows - 1}")
    loop = f"for k in {first}..{last} by {rows} loop {filled}; commit; end loop"
    connection.execute(f"do $$ begin {loop}; end $$".encode())


@dataclass(frozen=True)
class Big(Workload):
    """One transaction that inserts very many rows."""

    rows: int
    name: str = "big"
    tables: tuple[str, ...] = ("items",)

    @classmethod
    def scaled(cls, factor: float) -> "Big":
        return cls(max(1000, round(2_000_000 * factor)))

    @property
    def title(self) -> str:
        return f"one transaction of {self.rows:,} inserts, 7 columns"

    @property
    def changes(self) -> Changes:
        return {"I": self.rows, "U": 0, "D": 0}

    def prepare(self, arena: Arena) -> None:
        make_items(arena, self.tables)

    def generate(self, arena: Arena) -> None:
        with arena.connect_source() as connection:
            connection.execute(statement(INSERT_ITEMS, first=1, last=self.rows).encode())


@dataclass(frozen=True)
class Backlog:
    """A generated backlog: where its last transaction commits, and what it made of the source."""

    workload: Workload
    end_lsn: int
    wal_bytes: int
    expected: Mapping[str, tuple[int, str]] = field(repr=False)

    @property
    def total(self) -> int:
        return sum(self.workload.changes.values())


def generate(arena: Arena, workload: Workload) -> Backlog:
    """Make the backlog, and the row that ends it."""
    begin = _wal_position(arena)
    workload.generate(arena)
    with psycopg.connect(arena.source.dsn(SOURCE_DB)) as connection:
        connection.execute(f"insert into {END_TABLE} values (1)")
        row = connection.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    end = int(row[0])
    expected = arena.fingerprints([*workload.results, END_TABLE])
    return Backlog(workload, end, end - begin, expected)


def _wal_position(arena: Arena) -> int:
    return int(arena.source.psql("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0])

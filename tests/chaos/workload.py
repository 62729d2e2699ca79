"""What the application writes, and what must be in the read database therefore."""

import random
from collections import Counter
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from cdc.lsn import Lsn
from cdc.names import TableName

ACCOUNTS = 3000
LARGE = 6000  # rows: more than one piece
STAMP, STAMP_SLOWLY = 0, -1  # accounts whose balance is the number of the last transaction
_SLOW_ACCOUNTS = 50  # those of the transactions that stay open: nobody waits for a lock
_LONG = "repeat(md5(random()::text), 100)"  # kept out of line, and not sent when unchanged

SCHEMA = f"""
create table account (id bigint primary key, balance bigint not null, note text not null);
alter table account alter note set storage external;
create table large (id bigint primary key, version bigint not null, filling text not null);
create table journal (number bigint not null, account bigint not null);
insert into account select g, g, case when g % 10 = 0 then {_LONG} else 'note ' || g end
    from generate_series(1, {ACCOUNTS}) g;
insert into account values ({STAMP}, 0, 'stamp'), ({STAMP_SLOWLY}, 0, 'stamp');
insert into large select g, 0, 'filling ' || g from generate_series(1, {LARGE}) g;
insert into journal select 0, g from generate_series(1, 100) g;
"""
MIRRORS = [
    {"source": "public.account"},
    {"source": "public.large"},
    {"source": "public.journal", "insert_only": True},
]
COPIED = TableName("public", "large")  # again and again
MODULE = "tests.chaos.read_models"

# What each read table holds, worked out from the source alone.
ORACLE = {
    "account": ("select id, balance, note from account", "select id, balance, note from account"),
    "large": ("select id, version, filling from large", "select id, version, filling from large"),
    "journal": ("select number, account from journal",) * 2,
    "summary": (
        "select id, 2 * balance, upper(note) from account",
        "select id, twice, loud from summary",
    ),
}


class Committed(NamedTuple):
    """A transaction, and a position after its end and before the next commit's."""

    number: int
    position: Lsn
    slowly: bool


class Workload:
    """Transactions of an application, by chance. Each notes itself in the journal, once."""

    def __init__(self, dsn: str, *, seed: int) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._slow = psycopg.connect(dsn)
        self._slow_number = 0  # of the transaction that is open
        self._chance = random.Random(seed)
        self.transactions = 0
        self.commits: list[Committed] = []
        self._next_account = ACCOUNTS

    def create(self) -> None:
        """Make the tables, with rows from before."""
        self._connection.execute(SCHEMA)

    def step(self) -> None:
        """Commit one transaction; another one may stay open meanwhile, or end."""
        if self._chance.random() < 0.2:
            self._step_slowly()
        self.transactions += 1
        choices = [self._move_money] * 60 + [self._open] * 10 + [self._close] * 8
        choices += [self._renumber] * 5 + [self._annotate] * 10 + [self._roll_back] * 5
        choices += [self._rewrite_all] * 2 + [self._rewrite_some] * 20
        number = self.transactions
        with self._connection.transaction() as transaction:
            self._chance.choice(choices)()
            self._run("insert into journal values (%s, %s)", number, self._chance.randrange(9))
            self._run(f"update account set balance = %s where id = {STAMP}", number)
            rolls_back = self._chance.random() < 0.05
            if rolls_back:
                raise psycopg.Rollback(transaction)
        if not rolls_back:
            self._committed(number)

    def _committed(self, number: int, *, slowly: bool = False) -> None:
        query = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
        row = self._connection.execute(query).fetchone()
        assert row is not None
        self.commits.append(Committed(number, Lsn(row[0]), slowly))

    def _step_slowly(self) -> None:
        """Begin, go on with or end a transaction that others overtake."""
        if self._slow_number and self._chance.random() < 0.3:
            if self._chance.random() < 0.8:
                self.settle()
            else:
                self._slow.rollback()
                self._slow_number = 0
            return
        if not self._slow_number:
            self.transactions += 1
            number = self._slow_number = self.transactions
            self._slow.execute("insert into journal values (%s, -1)", [number])
            stamped = sql.SQL("update account set balance = %s where id = {}")
            self._slow.execute(stamped.format(STAMP_SLOWLY), [number])
        for_them = self._chance.randint(1, _SLOW_ACCOUNTS)
        self._slow.execute("update account set balance = balance + 1 where id = %s", [for_them])

    def _run(self, statement: str, *parameters: object) -> None:
        self._connection.execute(sql.SQL(statement), parameters or None)

    def _some(self) -> int:
        return self._chance.randint(_SLOW_ACCOUNTS + 1, self._next_account)

    def _move_money(self) -> None:
        for amount in (-7, 7):
            statement = "update account set balance = balance + %s where id = %s"
            self._run(statement, amount, self._some())

    def _open(self) -> None:
        self._next_account += 1
        note = _LONG if self._next_account % 3 else "'short'"
        self._run(f"insert into account values (%s, 0, {note})", self._next_account)

    def _close(self) -> None:
        self._run("delete from account where id = %s", self._some())

    def _renumber(self) -> None:
        self._next_account += 1
        new = self._next_account
        self._run("update account set id = %s where id = %s", new, self._some())

    def _annotate(self) -> None:
        self._run(f"update account set note = {_LONG} where id = %s", self._some())

    def _roll_back(self) -> None:
        with self._connection.transaction() as inner:
            self._move_money()
            raise psycopg.Rollback(inner)

    def _rewrite_all(self) -> None:
        self._run("update large set version = version + 1")

    def _rewrite_some(self) -> None:
        for _ in range(3):
            row = self._chance.randint(1, LARGE)
            self._run("update large set version = version + 1 where id = %s", row)

    def expected(self, table: str) -> Counter[tuple[Any, ...]]:
        """Give the rows that a read table must hold, with how often."""
        return Counter(self._connection.execute(sql.SQL(ORACLE[table][0])).fetchall())

    def settle(self) -> None:
        """Commit what is open."""
        self._slow.commit()
        if self._slow_number:
            self._committed(self._slow_number, slowly=True)
        self._slow_number = 0

    def close(self) -> None:
        self._slow.close()
        self._connection.close()

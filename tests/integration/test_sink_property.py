"""Whatever transactions come, in whatever batches, each dialect ends where a dictionary does."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc import Delete, Operation, Truncate, Update, Upsert
from cdc.operation import Move, shape_of
from tests.integration.test_sink_contract import Sink
from tests.read_databases import MariaRead, PostgresRead, ReadDatabase, SQLiteRead

KEYS = ["a", "A", "a ", "é", "e", "\\", "k1", "k2", "k3", "k4", "k5", "k6"]


def table_of(dialect: str) -> sa.Table:
    waits: dict[str, Any] = (
        {"deferrable": True, "initially": "DEFERRED"} if dialect == "postgres" else {}
    )
    return sa.Table(
        "p",
        sa.MetaData(),
        sa.Column("k", sa.String(20), primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(40)),
        sa.Column("v", sa.Text),
        sa.UniqueConstraint("name", **waits),
    )


Key = tuple[str, int]


@dataclass
class Source:
    """Rows as the write database has them, and the transactions that made them so."""

    table: sa.Table
    rows: dict[Key, tuple[str, str | None]] = field(default_factory=dict)
    names: int = 0

    def transaction(self, data: st.DataObject) -> list[Operation]:
        kind = data.draw(st.sampled_from(["write", "write", "swap", "delete", "move", "truncate"]))
        if kind == "truncate" and data.draw(st.integers(0, 3)):
            kind = "write"
        if kind != "write" and not self.rows:
            kind = "write"
        return list(getattr(self, f"_{kind}")(data))

    def _write(self, data: st.DataObject) -> list[Operation]:
        """Insert and update rows, some with values that were not sent."""
        made: list[Operation] = []
        for key in data.draw(st.lists(keys(), min_size=1, max_size=20)):
            value = data.draw(st.sampled_from([None, "", "x", "é\\%s", "Z" * 50]))
            if key in self.rows and data.draw(st.booleans()):
                self.rows[key] = (self.rows[key][0], value)
                made.append(Update(self.table, k=key[0], n=key[1], v=value))
            else:
                self.names += 1
                self.rows[key] = (f"name {self.names}", value)
                made.append(self._upsert(key))
        return made

    def _swap(self, data: st.DataObject) -> list[Operation]:
        """Let rows exchange the values of the unique column, all at once."""
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.rows)), unique=True, min_size=1))
        names = [self.rows[key][0] for key in chosen]
        for key, name in zip(chosen, data.draw(st.permutations(names)), strict=True):
            self.rows[key] = (name, self.rows[key][1])
        return [
            self._upsert(key)
            if data.draw(st.booleans())
            else Update(self.table, k=key[0], n=key[1], name=self.rows[key][0])
            for key in chosen
        ]

    def _delete(self, data: st.DataObject) -> list[Operation]:
        gone = data.draw(st.lists(st.sampled_from(sorted(self.rows)), unique=True, min_size=1))
        for key in gone:
            del self.rows[key]
        return [Delete(self.table, k=k, n=n) for k, n in gone]

    def _move(self, data: st.DataObject) -> list[Operation]:
        old = data.draw(st.sampled_from(sorted(self.rows)))
        new = data.draw(keys().filter(lambda key: key not in self.rows))
        self.rows[new] = self.rows.pop(old)
        return [Move.between(shape_of(self.table, ("k", "n"), text=False), old, new)]

    def _truncate(self, _data: st.DataObject) -> list[Operation]:
        self.rows.clear()
        return [Truncate(self.table)]

    def _upsert(self, key: Key) -> Operation:
        name, value = self.rows[key]
        return Upsert(self.table, k=key[0], n=key[1], name=name, v=value)


def keys() -> st.SearchStrategy[Key]:
    return st.tuples(st.sampled_from(KEYS), st.integers(0, 2))


@pytest.fixture
def made(store: ReadDatabase) -> Sink:
    names = {PostgresRead: "postgres", MariaRead: "mariadb", SQLiteRead: "sqlite"}
    return Sink(store, table_of(names[type(store)]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_transactions_in_any_batches_give_the_rows_of_the_source(
    made: Sink, data: st.DataObject
) -> None:
    (table,) = made.script.into
    source = Source(table)
    made.apply(Truncate(table))
    for _ in range(data.draw(st.integers(1, 4))):
        transactions = [source.transaction(data) for _ in range(data.draw(st.integers(1, 5)))]
        made.write(made.batch(*(made.transaction(*operations) for operations in transactions)))
        assert made.stored() == made.lsn
        expected = {(*key, *values) for key, values in source.rows.items()}
        assert set(made.values(table)) == expected

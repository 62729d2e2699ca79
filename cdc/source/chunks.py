"""Read chunks of a source table by key."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from psycopg import sql

from cdc import lines
from cdc.change import Relation
from cdc.copy_state import Key
from cdc.lsn import Lsn
from cdc.schema import SourceTable
from cdc.snapshot import Snapshot
from cdc.source.connection import Connection, translated

_BEGIN: Final = (
    "begin isolation level repeatable read",
    "set local row_security = off",
    "set local search_path = pg_catalog",
    "set local enable_seqscan = off",
    "set local enable_bitmapscan = off",
    "set local enable_sort = off",
)
_ORDERED: Final = {"smallint", "integer", "bigint", "uuid", "date", "oid", "numeric", "bytea",
    "timestamp without time zone", "timestamp with time zone"}


class Page(NamedTuple):
    text: bytes
    count: int
    last: Key | None
    ends: bool


class ChunkSize:
    def __init__(self, target: int) -> None:
        self._target = target
        self.rows = 1000

    def learn(self, page: Page, *, seconds: float) -> None:
        if page.count:
            width = len(page.text) / page.count
            self.rows = int(min(50_000, max(100, self._target / width)))


class ChunkReader:
    def __init__(self, open_: Callable[[], Connection], table: SourceTable, relation: Relation) -> None:
        self._open = open_
        self._table = table
        self.relation = relation
        self._connection: Connection | None = None
        types = {c.name: c.type_sql for c in table.columns}
        self._key_types = [types[name] for name in relation.key]
        self.ordered = bool(relation.key) and all(t in _ORDERED for t in self._key_types)

    def _opened(self) -> Connection:
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def begin(self) -> Snapshot:
        with translated():
            for statement in _BEGIN:
                self._opened().execute(statement)
            row = self._opened().execute("select pg_current_snapshot()::text").fetchone()
        return Snapshot.parse(row[0])

    def _select(self) -> sql.Composed:
        return sql.SQL("select {} from {} {}").format(
            sql.SQL(", ").join(map(sql.Identifier, self.relation.names)),
            sql.SQL("" if self._table.partitioned else "only"),
            sql.Identifier(*self._table.name))

    def _key(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.relation.key))

    def _values(self, key: Key) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Literal(v), sql.SQL(t)) for v, t in zip(key, self._key_types, strict=True))

    def read(self, *, after: Key | None, rows: int) -> Page:
        where = sql.SQL("") if after is None else sql.SQL("where ({}) > ({})").format(self._key(), self._values(after))
        statement = sql.SQL("{} {} order by {} limit {}").format(self._select(), where, self._key(), sql.Literal(rows))
        text, count = self._copy(statement)
        last = self.relation.key_of(lines.decode(text)[-1]) if count else None
        return Page(text, count, last, count < rows)

    def read_keys(self, keys: Sequence[Key]) -> Page:
        values = sql.SQL(", ").join(sql.SQL("({})").format(self._values(k)) for k in keys)
        text, count = self._copy(sql.SQL("{} where ({}) in ({})").format(self._select(), self._key(), values))
        return Page(text, count, None, False)

    def read_all(self, size: int) -> Iterator[tuple[bytes, int]]:
        parts, count, total = [], 0, 0
        with translated(), self._opened().cursor() as cursor, cursor.copy(
            sql.SQL("copy ({}) to stdout {}").format(self._select(), sql.SQL(lines.OPTIONS))) as copy:
            for part in copy:
                parts.append(bytes(part)); count += 1; total += len(part)
                if total > size:
                    yield b"".join(parts), count
                    parts, count, total = [], 0, 0
        if parts:
            yield b"".join(parts), count

    def _copy(self, statement: sql.Composed) -> tuple[bytes, int]:
        with translated(), self._opened().cursor() as cursor, cursor.copy(
            sql.SQL("copy ({}) to stdout {}").format(statement, sql.SQL(lines.OPTIONS))) as copy:
            parts = [bytes(part) for part in copy]
        return b"".join(parts), len(parts)

    def mark(self) -> Lsn:
        with translated():
            self._opened().execute("set local synchronous_commit = local")
            row = self._opened().execute("select pg_logical_emit_message(true, 'cdc', 'chunk') - '0/0'::pg_lsn").fetchone()
            self._opened().execute("commit")
        return Lsn(row[0])

    def rollback(self) -> None:
        with translated():
            self._opened().execute("rollback")

    def estimate(self) -> int | None:
        return None

    def cancel(self) -> None:
        if self._connection is not None:
            self._connection.cancel_safe(timeout=2)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

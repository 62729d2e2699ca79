"""Read chunks of a source table, each in a snapshot of its own."""

import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn

from cdc import lines
from cdc.change import Relation
from cdc.copy_state import Key
from cdc.errors import CatalogOutdated, CdcError, SourceRefused
from cdc.lsn import Lsn
from cdc.schema import SourceTable
from cdc.snapshot import Snapshot
from cdc.source.connection import Connection, source_error, translated
from cdc.source.key_order import KeyOrder

# Rows must not be hidden, and are printed as the walsender prints them. Whatever the statistics
# say, rows are found by the key's index and come in its order: every plan that reads the whole
# table, or sorts, would do so again for each chunk.
_SESSION: Final = """
set row_security = off;
set search_path = pg_catalog;
set synchronous_commit = local;
set enable_seqscan = off;
set enable_bitmapscan = off;
set enable_sort = off;
set enable_incremental_sort = off;
set enable_hashjoin = off;
set enable_mergejoin = off;
set max_parallel_workers_per_gather = 0;
set jit = off
"""
# The lock comes before the snapshot: one from before a table was written anew sees it empty
# (Postgres documentation, MVCC "Caveats").
_BEGIN: Final = """
begin isolation level repeatable read;
lock table {table} in access share mode
"""
# With the lock held, the columns stay as they are.
_SEEN: Final = """
select pg_current_snapshot()::text,
       array_agg(a.attname::text), array_agg(a.atttypid::bigint), array_agg(a.atttypmod)
from pg_attribute a where a.attrelid = %s and a.attnum > 0 and not a.attisdropped
"""
_PARTITIONS: Final = """
with recursive tree(oid, attached_by) as (
    select %s::oid, ''
    union all
    select i.inhrelid, i.xmin::text from tree t join pg_inherits i on i.inhparent = t.oid
)
select md5(string_agg(oid || ' ' || attached_by, ',' order by oid)) from tree
"""
_WHOLE: Final = "set local enable_seqscan = on"
_MARK: Final = "select pg_logical_emit_message(true, 'cdc', 'chunk') - '0/0'::pg_lsn"
_HIDDEN: Final = "select row_security_active(%s::oid)"
_EMPTY: Final = """
select pg_relation_size(root) + coalesce(sum(pg_relation_size(relid)), 0) = 0
from (select %s::oid) r(root) left join pg_partition_tree(root) on true
group by root
"""
_GONE: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidTextRepresentation,
)
# smallint, integer, bigint, oid; boolean, bytea, uuid, numeric; date, time, timestamp, timestamptz
_EVERYWHERE: Final = frozenset(
    (21, 23, 20, 26, 16, 17, 2950, 1700, 1082, 1083, 1114, 1184)
)  # fmt: skip

_FEWEST_ROWS: Final = 100  # where reading is slow, and rows are not wide
_FIRST_ROWS: Final = 1_000
_MOST_ROWS: Final = 50_000
_SLOW_SECONDS: Final = 1.0
_WIDER: Final = 4


@dataclass(frozen=True, slots=True)
class Page:
    """Rows as `cdc.lines` encodes them, how many, and the key of the last.

    `ends` tells that no rows came after them.
    """

    text: bytes
    count: int
    last: Key | None
    ends: bool


class Piece(NamedTuple):
    """Rows, how many, and the line of the last."""

    text: bytes
    rows: int
    line: bytes | memoryview


class ChunkSize:
    """How many rows to read next: about so many bytes, and not for long."""

    def __init__(self, target_bytes: int = 2**20) -> None:
        self._target = target_bytes
        self.rows = _FIRST_ROWS
        self.most_bytes = _WIDER * target_bytes  # how wide rows are is only known when they came

    def learn(self, page: Page, *, seconds: float) -> None:
        """Take into account how wide a page's rows were, and how long it took to read."""
        if not page.count:
            return
        fitting = self._target * page.count // max(1, len(page.text))
        if seconds > _SLOW_SECONDS:
            fitting = min(fitting, max(_FEWEST_ROWS, self.rows // 2))
        fewest = max(1, min(_FEWEST_ROWS, _WIDER * fitting))
        self.rows = max(fewest, min(_MOST_ROWS, fitting))


class ChunkReader:
    """Read a table on a connection of its own, which is opened when first needed.

    One thread uses it; any may `cancel`. Methods raise a SourceError, or CatalogOutdated where the
    table is no longer as the catalog described it. After an error it must be closed.
    """

    def __init__(
        self, open_: Callable[[], Connection], table: SourceTable, relation: Relation
    ) -> None:
        self.relation = relation
        self._open = open_
        self._table = table
        self._connection: Connection | None = None
        self._order: KeyOrder | None = None

    @property
    def ordered(self) -> bool:
        """Tell whether every database puts the keys into the same order."""
        columns = (self.relation.columns[n] for n in self.relation.key_positions)
        return bool(self.relation.key) and all(c.decoded_as in _EVERYWHERE for c in columns)

    def begin(self) -> Snapshot:
        """Begin a transaction; give the snapshot that everything in it is read from."""
        with self._described():
            connection = self._opened()
            connection.execute(sql.SQL(_BEGIN).format(table=self._from))
            row = connection.execute(_SEEN, [self._table.oid]).fetchone()
        assert row is not None  # noqa: S101  an aggregate gives one row
        snapshot, *columns = row
        self._compare(*(values or [] for values in columns))
        return Snapshot.parse(snapshot)

    def _compare(self, names: list[str], types: list[int], typmods: list[int]) -> None:
        """Refuse a table whose columns are no longer those of the catalog."""
        now = dict(zip(names, zip(types, typmods, strict=True), strict=True))
        for column in self._table.columns:
            if now.get(column.name) != (column.type_oid, column.typmod):
                raise CatalogOutdated(
                    f"column {column.name} of table {self._table.name} changed since the catalog "
                    "was read"
                )

    def partitions(self) -> str | None:
        """Name the set of partitions that the snapshot sees; None of an ordinary table."""
        if not self._table.partitioned:
            return None
        with self._described():
            row = self._opened().execute(_PARTITIONS, [self._table.oid]).fetchone()
        return row[0] if row else None

    def last_key(self) -> Key | None:
        """Give the key of the last row that the snapshot sees; None where it sees none."""
        with self._described():
            statement = sql.SQL("{} order by {} limit 1").format(
                self._select, self._key_order().backwards
            )
            _, count, line = self._copied(statement, sys.maxsize)
        return self._key_of(line) if count else None

    def read(
        self,
        *,
        after: Key | None,
        rows: int,
        most_bytes: int = sys.maxsize,
        bound: Key | None = None,
    ) -> Page:
        """Read the next rows after a key, or the first ones, in the key's order; none past `bound`.

        Fewer where they are so wide that they take `most_bytes`: the transaction ends then.
        """
        with self._described():
            order = self._key_order()
            conditions = [order.after(after)] if after else []
            conditions += [order.up_to(bound)] if bound else []
            where = sql.SQL("where {}").format(sql.SQL(" and ").join(conditions))
            statement = sql.SQL("{} {} order by {} limit {}").format(
                self._select, where if conditions else sql.SQL(""), order.by, sql.Literal(rows)
            )
            text, count, line = self._copied(statement, most_bytes)
        last = self._key_of(line) if count else None
        return Page(text, count, last, ends=count < rows and len(text) < most_bytes)

    def read_keys(self, keys: Sequence[Key]) -> Page:
        """Read the rows that have these keys, in no order; `last` and `ends` tell nothing."""
        if not keys:
            return Page(b"", 0, None, ends=False)
        with self._described():
            among = self._key_order().among(keys)
            statement = sql.SQL("{} join {}").format(self._select, among)
            text, count, _ = self._copied(statement, sys.maxsize)
        return Page(text, count, None, ends=False)

    def read_all(self, size: int) -> Iterator[tuple[bytes, int]]:
        """Read the whole table, in no order: pieces of about so many bytes, and their rows.

        Nothing else may be asked of the reader until they are exhausted, but to be closed.
        """
        with self._described():
            self._opened().execute(_WHOLE)
            for text, count, _ in self._pieces(self._select, size):
                yield text, count

    def mark(self) -> Lsn:
        """Write the watermark into the WAL, commit, and give its position.

        It does not wait for a standby: the stream brings what the snapshot saw before it. Any
        later position will do, too, where the transaction has ended already.
        """
        with translated():
            connection = self._opened()
            row = connection.execute(_MARK).fetchone()
            connection.execute("commit")
        return Lsn(row[0] if row else 0)

    def rollback(self) -> None:
        """End the transaction without a watermark."""
        with translated():
            self._opened().execute("rollback")

    def estimate(self) -> int:
        """Guess how many rows the table has, as the planner does: by its size, at no cost."""
        with self._described():
            connection = self._opened()
            row = connection.execute(_EMPTY, [self._table.oid]).fetchone()
            if row and row[0]:
                return 0
            explain = sql.SQL("explain (format json) {}").format(self._select)
            row = connection.execute(explain).fetchone()
        return int(row[0][0]["Plan"]["Plan Rows"]) if row else 0

    def cancel(self) -> None:
        """End what the write database is doing for the reader, from any thread; never raise."""
        connection = self._connection
        if connection is not None:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=2)

    def close(self) -> None:
        """Disconnect, which rolls back; never raise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def _opened(self) -> Connection:
        if self._connection is None:
            self._connection = self._open()
            self._connection.execute(_SESSION)
        return self._connection

    def _key_order(self) -> KeyOrder:
        if self._order is None:
            self._order = KeyOrder.read(self._opened(), self._table)
        return self._order

    @property
    def _from(self) -> sql.Composed:
        """Name the table: its partitions are read with it, what inherits from it is not."""
        return sql.SQL("{}{}").format(
            sql.SQL("" if self._table.partitioned else "only "), sql.Identifier(*self._table.name)
        )

    @property
    def _select(self) -> sql.Composed:
        names = [sql.Identifier("t", name) for name in self.relation.names]
        return sql.SQL("select {} from {} t").format(sql.SQL(", ").join(names), self._from)

    def _key_of(self, line: bytes | memoryview) -> Key:
        (values,) = lines.decode(bytes(line))
        return tuple(str(value) for value in self.relation.key_of(values))

    def _copied(self, query: sql.Composed, most_bytes: int) -> Piece:
        """Give the rows of a query; where they take too many bytes, disconnect from the rest."""
        piece = next(self._pieces(query, most_bytes), Piece(b"", 0, b""))
        if len(piece.text) >= most_bytes:
            self.close()
        return piece

    def _pieces(self, query: sql.Composed, size: int) -> Iterator[Piece]:
        """Give the rows of a query in pieces of about so many bytes.

        The server sends each row as one message (Postgres documentation, Message Formats,
        CopyData). psycopg's own iteration goes through its generators for each one; and rows that
        are kept, to be joined, keep the garbage collector busy: three times the time of this.
        """
        connection, text, count = self._opened(), bytearray(), 0
        line: bytes | memoryview = b""
        copy = sql.SQL("copy ({}) to stdout {}").format(query, sql.SQL(lines.OPTIONS))
        for line in _messages(connection.pgconn, copy.as_bytes(connection)):
            text += line
            count += 1
            if len(text) >= size:
                yield Piece(bytes(text), count, line)
                text, count = bytearray(), 0
        if count:
            yield Piece(bytes(text), count, line)

    @contextmanager
    def _described(self) -> Iterator[None]:
        """Say what errors mean for a table that the catalog described."""
        try:
            yield
        except _GONE as error:
            raise CatalogOutdated(
                f"table {self._table.name} changed since the catalog was read ({error.sqlstate})"
            ) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise self._refused(error) from None
        except psycopg.Error as error:
            raise source_error(error) from None

    def _refused(self, error: psycopg.Error) -> CdcError:
        """Say what the role lacks to read the table whole."""
        role, name = sql.Identifier(self._opened().info.user).as_string(), self._table.name
        schema = sql.Identifier(name.schema).as_string()
        message = f"write database: the role {role} may not read table {name}"
        if self._hides_rows():
            return SourceRefused(
                f"{message} whole: row-level security hides rows from it ({error.sqlstate})",
                hint=f"alter role {role} bypassrls",
            )
        return SourceRefused(
            f"{message} ({error.sqlstate})",
            hint=f"grant usage on schema {schema} to {role}; grant select on {name.sql} to {role}",
        )

    def _hides_rows(self) -> bool:
        with translated():
            self._opened().execute("rollback")
            row = self._opened().execute(_HIDDEN, [self._table.oid]).fetchone()
        return bool(row and row[0])


def _messages(pgconn: PGconn, copy: bytes) -> Iterator[memoryview]:
    """Give what a COPY TO STDOUT sends, message by message; raise a psycopg.Error."""
    began = pgconn.exec_(copy)
    if began.status != ExecStatus.COPY_OUT:
        raise psycopg.errors.error_from_result(began)
    get = pgconn.get_copy_data
    while True:
        length, message = get(1)
        if length > 0:
            yield message
        elif length < 0:
            break
        else:
            select.select([pgconn.socket], [], [])
            pgconn.consume_input()
    while (ended := pgconn.get_result()) is not None:
        if ended.status != ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(ended)

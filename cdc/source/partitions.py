"""Whose partition a table is, which wal2json does not tell: looked up as changes arrive.

Facts relied on, and checked in tests/integration/test_partitions.py: wal2json sends the begin and
the commit of a transaction that only changes the schema, also where tables are filtered; a row of
pg_inherits is written by the transaction that attaches; detaching writes pg_class's rows of the
table and of its key's index; renaming a table writes its row of pg_type.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from psycopg import sql
from psycopg.rows import namedtuple_row

from cdc.errors import SchemaChanged, SourceUnavailable
from cdc.names import TableName
from cdc.snapshot import Snapshot, precedes
from cdc.source.connection import Connection, translated

_PATIENCE_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.01
_MOST_XIDS: Final = 10_000
_SNAPSHOT: Final = "begin isolation level repeatable read, read only"
_LEAVES: Final = """
with recursive tree(root, oid) as (
    select r.oid, r.oid from unnest(%s::oid[]) as r(oid)
    union all
    select t.root, i.inhrelid from tree t join pg_inherits i on i.inhparent = t.oid
)
select t.root, c.oid, n.nspname, c.relname, a.xmin::text::bigint as created,
       y.xmin::text::bigint as named
from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attname = 'ctid' join pg_type y on y.oid = c.reltype
where c.relkind <> 'p'
"""
_FORMER_LEAVES: Final = """
select c.oid, c.xmin::text::bigint as written, k.xmin::text::bigint as key_written
from pg_class c left join pg_index i on i.indrelid = c.oid and i.indisprimary
left join pg_class k on k.oid = i.indexrelid
where c.oid = any(%s)
"""
_OTHERS: Final = """
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where (n.nspname, c.relname) in (select * from unnest(%s::text[], %s::text[]))
"""


_ATTACHED: Final = """
with recursive tree(root, oid, late) as (
    select r.oid, r.oid, '{}'::text[] from unnest(%s::oid[]) as r(oid)
    union all
    select t.root, i.inhrelid,
           case when i.xmin = a.xmin then t.late else t.late || i.xmin::text end
    from tree t join pg_inherits i on i.inhparent = t.oid
    join pg_attribute a on a.attrelid = i.inhrelid and a.attname = 'ctid'
)
select t.root, c.oid, n.nspname, c.relname, t.late, c.relfilenode::bigint,
       pg_relation_size(c.oid) = 0, c.relpersistence = 'p'
from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r'
"""
_HELD: Final = """
select exists (select from only {} t where age(t.xmin) >= (
    select min(age(late::xid)) from unnest(%s::text[]) late))
"""


class Attached(NamedTuple):
    """A partition; `late` are the transactions that attached what had been a table of its own.

    `file` is another one after a truncate, or after its rows were written anew. The changes of one
    that is not `logged` are not streamed.
    """

    root: TableName
    oid: int
    name: TableName
    late: list[str]
    file: int
    empty: bool
    logged: bool


def attached(connection: Connection, roots: dict[int, TableName]) -> list[Attached]:
    """Give the partitions that hold the roots' rows now; raise a SourceError."""
    with translated():
        rows = connection.execute(_ATTACHED, [list(roots)]).fetchall()
    return [
        Attached(roots[root], oid, TableName(schema, table), *rest)
        for root, oid, schema, table, *rest in rows
    ]


def held_rows(connection: Connection, partition: Attached) -> bool:
    """Tell whether a partition has rows that it may have had before it was attached.

    Raise a SourceError, also where the role may not look.
    """
    if not partition.late:
        return False
    query = sql.SQL(_HELD).format(sql.Identifier(*partition.name))
    with translated():
        row = connection.execute(query, [partition.late]).fetchone()
    return bool(row and row[0])


class Leaf(NamedTuple):
    """A table that holds rows of a root; `renamed` is the transaction that last renamed it."""

    root: TableName
    name: TableName
    renamed: int | None


class Partitions:
    """Answer whose rows those of a table are, for each transaction as of then.

    What is known is as of a snapshot; a transaction that it does not see may have come after a
    change of partitions, and is looked up anew. One look covers all that has been committed.
    """

    def __init__(self, connect: Callable[[], Connection], roots: dict[int, TableName]) -> None:
        """Take the partitioned tables by oid, and what opens an ordinary connection."""
        self._connect = connect
        self._connection: Connection | None = None
        self._roots = roots
        self._snapshot = Snapshot(0)
        self._xid = 0
        self._since: set[int] = set()
        self._leaves: dict[int, Leaf] = {}
        self._names: dict[TableName, int] = {}
        self._ends: dict[int, int] = {}
        self._others: set[TableName] = set()
        self._looked = False

    def begin(self, xid: int) -> None:
        """Note whose changes follow."""
        self._xid = xid
        if self._ends and (detached := self._ends.pop(xid, None)) is not None:
            self._forget(detached)
        if self._looked and not self._snapshot.sees(xid):
            self._since.add(xid)
            if len(self._since) >= _MOST_XIDS:
                self._look(None)

    def root_of(self, reported: TableName) -> TableName | None:
        """Give the partitioned table whose rows those of a table are; None where it is none's.

        Raise SchemaChanged where that cannot be known any more, or a SourceError.
        """
        stale = not self._looked or not self._snapshot.sees(self._xid)
        if stale or not (reported in self._names or reported in self._others):
            self._look(reported)
        oid = self._names.get(reported)
        return None if oid is None else self._leaves[oid].root

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()

    def _look(self, reported: TableName | None) -> None:
        """Read what is so now, late enough to see the current transaction."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        asked = {reported} if reported else set()
        while not self._read({*asked, *self._others, *self._former_names()}):
            if time.monotonic() > deadline:
                raise SourceUnavailable(
                    f"write database: transaction {self._xid} is streamed, and not yet visible"
                )
            time.sleep(_PAUSE_SECONDS)
        self._since.clear()
        self._looked = True
        if reported and reported not in self._names and reported not in self._others:
            self._require_not_renamed(reported)
            self._others.add(reported)

    def _read(self, names: Iterable[TableName]) -> bool:
        """Take all in, as of one snapshot; tell False where it is too early."""
        if self._connection is None:
            self._connection = self._connect()
        connection, listed = self._connection, list(names)
        cursor: Any
        with translated(), connection.cursor(row_factory=namedtuple_row) as cursor:
            cursor.execute(_SNAPSHOT)
            try:
                snapshot = Snapshot.parse(_one(cursor, "select pg_current_snapshot()::text"))
                if not snapshot.sees(self._xid):
                    return False
                rows = cursor.execute(_LEAVES, [list(self._roots)]).fetchall()
                gone = list(self._leaves.keys() - {row.oid for row in rows})
                former = cursor.execute(_FORMER_LEAVES, [gone]).fetchall() if gone else []
                parts = [n.schema for n in listed], [n.table for n in listed]
                exist = {TableName(*row) for row in cursor.execute(_OTHERS, parts).fetchall()}
            finally:
                cursor.execute("rollback")
        self._snapshot = snapshot
        self._end(former)
        self._take_in(rows)
        self._require_own_names(exist)
        self._others = exist - self._names.keys()
        return True

    def _former_names(self) -> set[TableName]:
        return {name for name, oid in self._names.items() if self._leaves[oid].name != name}

    def _require_own_names(self, exist: set[TableName]) -> None:
        """Refuse a table that was given the name a partition had: their changes look the same."""
        now = {leaf.name for leaf in self._leaves.values()}
        for name in sorted(self._former_names() & exist - now):
            raise SchemaChanged(
                f"{name} was a partition of {self._leaves[self._names[name]].root}, and another "
                f"table has its name now: whose changes are which cannot be told (transaction "
                f"{self._xid})",
                hint="rename the other table until the daemon has passed this transaction",
            )

    def _end(self, former: list[Any]) -> None:
        """Let partitions that were detached end where they were; a dropped one needs no end."""
        for row in former:
            leaf = self._leaves[row.oid]
            if row.oid in self._ends.values():
                continue
            if row.written != row.key_written:
                raise SchemaChanged(
                    f"{leaf.name} was detached from {leaf.root} and altered since: from when on "
                    f"its changes are its own cannot be told (transaction {self._xid})",
                    hint="start again: then none of its changes are taken for "
                    f"{leaf.root}'s; compare the rows that it had",
                )
            if row.written in self._since:
                self._forget(row.oid)
            else:
                self._ends[row.written] = row.oid

    def _take_in(self, rows: list[Any]) -> None:
        for row in rows:
            name = TableName(row.nspname, row.relname)
            renamed = None if row.named == row.created else int(row.named)
            self._leaves[row.oid] = Leaf(self._roots[row.root], name, renamed)
            self._names[name] = row.oid

    def _forget(self, oid: int) -> None:
        self._leaves.pop(oid, None)
        self._names = {name: known for name, known in self._names.items() if known != oid}

    def _require_not_renamed(self, reported: TableName) -> None:
        """Refuse a table that is gone, where a partition may be what it is called now."""
        for leaf in self._leaves.values():
            if leaf.renamed is not None and not precedes(leaf.renamed, self._xid):
                raise SchemaChanged(
                    f"{reported} has changes in transaction {self._xid}, and is gone: it may be "
                    f"{leaf.name}, a partition of {leaf.root}, which was renamed since",
                    hint=f"if it was: create table {reported.sql} partition of {leaf.root.sql} for "
                    f"values that no row has; if not: create table {reported.sql} (); start "
                    "again, and drop it when the daemon has passed this transaction",
                )


def _one(cursor: Any, query: str) -> Any:
    return cursor.execute(query).fetchone()[0]

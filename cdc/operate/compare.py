"""Compare the read database, row by row, with the projection of the write database.

What the read tables should hold is worked out anew: every source row goes through the projectors
as if it had just been inserted, and what they return is written by the sink into temporary tables
shaped like the read tables. Both sides are then values of the same types in the same database,
which compares them. No row leaves it: only counts and keys do.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import sql

from cdc.change import Inserted, Relation
from cdc.errors import ProjectionError
from cdc.operation import (
    Delete,
    Operation,
    Shape,
    Truncate,
    Update,
    Upsert,
    key_columns,
    shape_of,
)
from cdc.projection.batch import NetEffect
from cdc.projection.project import describe
from cdc.projection.projector import Projector
from cdc.projection.registry import Registry
from cdc.schema import Schema, SourceTable
from cdc.sink.comparison import differ, same_key
from cdc.sink.dialects import sink_of
from cdc.sink.engine import translated as read_translated
from cdc.sink.storage import like
from cdc.sink.tables import create_one
from cdc.source.connection import Connection, translated
from cdc.source.relations import Relations
from cdc.values import Text
from cdc.verify_state import VERDICTS, Verdict

Key = tuple[str | None, ...]

_CHUNK: Final = 5_000
_SNAPSHOT: Final = "repeatable read"
# The stream knows no row-level security: a comparison that obeyed it would call rows extra. It
# prints names of objects with their schema.
_AS_STREAMED: Final = "set local row_security = off; set local search_path = pg_catalog"
# The sink's session steers away from reading whole tables, which is all that is done here.
_WHOLE_TABLES: Final = """
select set_config(name, 'on', true)
from unnest(array['enable_hashjoin', 'enable_mergejoin', 'enable_seqscan']) as name
"""


@dataclass(frozen=True, slots=True)
class TableComparison:
    """How the rows of one read table compare with what the projectors make of the source.

    `rows` counts the keys on either side. `keys` holds the first few keys of each verdict, as
    text, in the order of `key_columns`. `skipped` says why a table was not compared.
    """

    table: str
    key_columns: tuple[str, ...]
    rows: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    keys: dict[Verdict, tuple[Key, ...]] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def equal(self) -> bool:
        """Tell whether no difference was found."""
        return not (self.missing or self.extra or self.different)


def compare(
    registry: Registry, schema: Schema, *, source: Connection, read: sa.Connection, keys: int = 10
) -> list[TableComparison]:
    """Compare every read table of the registry; name up to `keys` keys for each verdict.

    Each database is read as of one moment: the result means something where the daemon has caught
    up and nothing was written in between, and where projectors do not depend on the order of
    changes. Columns that no projector names are not compared, nor are tables without a key.

    `source` is in autocommit mode; `read` is outside a transaction and serves nothing else.
    Nothing is changed. Raise a CdcError.
    """
    with _rolled_back(read), _snapshot(source):
        expected = _Expected(read, registry.read_tables)
        expected.write(_operations(registry, schema, source), updates=False)
        if expected.updates_postponed:
            expected.write(_operations(registry, schema, source), updates=True)
        return [expected.compared(table, keys) for table in registry.read_tables]


@contextmanager
def _rolled_back(read: sa.Connection) -> Iterator[None]:
    with read_translated(), read.begin() as transaction:
        if read.dialect.name != "sqlite":  # where every transaction reads as of one moment
            read.execute(sa.text(f"set transaction isolation level {_SNAPSHOT}"))
        if read.dialect.name == "postgresql":
            read.execute(sa.text(_WHOLE_TABLES))
        yield
        transaction.rollback()


@contextmanager
def _snapshot(source: Connection) -> Iterator[None]:
    with translated():
        source.execute(f"begin isolation level {_SNAPSHOT}, read only")
        source.execute(_AS_STREAMED)
    try:
        yield
    finally:
        with suppress(psycopg.Error):
            source.rollback()


def _operations(registry: Registry, schema: Schema, source: Connection) -> Iterator[Operation]:
    """Project every row of every source table."""
    relations = Relations(schema)
    for name in registry.sources:
        relation = relations.known(name)
        for values in _rows(source, schema[name], relation):
            change = Inserted(relation, values)
            for projector in registry.of(name):
                yield from _projected(projector, change)


def _rows(source: Connection, table: SourceTable, relation: Relation) -> Iterator[tuple[Text, ...]]:
    """Read a table's rows as the text the stream brings.

    COPY prints with the types' output functions, as the plugins do. A cast to text does not: it
    spells booleans out, strips char(n) and adds a netmask to inet.
    """
    statement = sql.SQL("copy (select {} from {} {}) to stdout").format(
        sql.SQL(", ").join(map(sql.Identifier, relation.names)),
        sql.SQL("" if table.partitioned else "only"),
        sql.Identifier(*table.name),
    )
    with translated(), source.cursor() as cursor, cursor.copy(statement) as copy:
        yield from copy.rows()


def _projected(projector: Projector, change: Inserted) -> list[Operation]:
    try:
        return list(projector.operations(change))
    except (Exception, SystemExit) as error:  # noqa: BLE001  a projector may raise anything
        # Another exception's message may hold values of the row: only its type is told.
        ours = isinstance(error, ProjectionError)
        cause = str(error) if ours else type(error).__name__
        raise ProjectionError(
            f"projector {projector.name} failed on {describe(change)}: {cause}",
            hint="mend the projector, and compare again",
        ) from None


class _Expected:
    """What the read tables should hold, in temporary tables that go with the transaction."""

    def __init__(self, read: sa.Connection, tables: list[sa.Table]) -> None:
        self.updates_postponed = False
        self._read = read
        self._sink = sink_of(read)
        self._written: dict[sa.Table, set[Shape]] = defaultdict(set)
        self._tables: dict[sa.Table, sa.Table] = {}
        keyed = [table for table in tables if key_columns(table)]
        for number, table in enumerate(keyed):
            self._tables[table] = _created_like(table, f"cdc_expected_{number}", read)

    def write(self, operations: Iterator[Operation], *, updates: bool) -> None:
        """Write what the operations make, or what their updates make of rows already there.

        An Update touches a row that another source table's rows may still bring: it comes after.
        """
        chosen = (op for op in operations if self._is_due(op, updates=updates))
        while chunk := list(islice(chosen, _CHUNK)):
            effect = NetEffect()
            for operation in chunk:
                effect.add(self._redirected(operation))
            for segment in effect.segments:
                self._sink.apply(segment)

    def _is_due(self, operation: Operation, *, updates: bool) -> bool:
        if isinstance(operation, Update):
            self.updates_postponed = True
        due = isinstance(operation, Update) if updates else not isinstance(operation, Update)
        return due and _table(operation) in self._tables

    def _redirected(self, operation: Operation) -> Operation:
        """Give the same operation on the temporary table."""
        mine = self._tables[_table(operation)]
        match operation:
            case Upsert() | Update() | Delete():
                self._written[operation.shape.table].add(operation.shape)
                shape = shape_of(mine, operation.shape.columns, text=operation.shape.text)
                return type(operation).of(shape, operation.values)
            case _:
                return Truncate(mine)

    def compared(self, table: sa.Table, keys: int) -> TableComparison:
        """Compare a read table with what was written in its stead."""
        if table not in self._tables:
            return TableComparison(table.fullname, (), skipped="insert-only: it has no key")
        ours, extra = self._ours(table), self._extra(table)
        verdict = ours.c.verdict
        counted = sa.select(verdict, sa.func.count()).group_by(verdict)
        counts = {said: rows for said, rows in self._read.execute(counted)}  # noqa: C416  typed
        more = sa.select(sa.func.count()).select_from(extra)
        counts["extra"] = self._read.execute(more).scalar_one()
        found = [name for name in VERDICTS if counts.get(name)]
        chosen = {name: sa.select(ours).where(verdict == name).subquery() for name in found}
        chosen["extra"] = extra
        return TableComparison(
            table.fullname,
            key_columns(table),
            rows=sum(counts.values()),
            missing=counts.get("missing", 0),
            extra=counts.get("extra", 0),
            different=counts.get("different", 0),
            keys={name: self._first_keys(chosen[name], limit=keys) for name in found},
        )

    def _ours(self, table: sa.Table) -> sa.Subquery:
        """Select a verdict (NULL: equal) and the key of each row that there should be."""
        mine, theirs = self._sides(table)
        columns = {name for shape in self._written[table] for name in shape.columns}
        differs = [differ(self._read, mine.c[name], theirs.c[name]) for name in sorted(columns)]
        verdict = sa.case(
            (theirs.c[key_columns(table)[0]].is_(None), "missing"),
            (sa.or_(sa.false(), *differs), "different"),
        )
        joined = mine.join(theirs, same_key(mine, theirs, table), isouter=True)
        keys = _labelled_key(mine, table)
        return sa.select(verdict.label("verdict"), *keys).select_from(joined).subquery()

    def _extra(self, table: sa.Table) -> sa.Subquery:
        """Select the keys of rows that there should not be.

        Apart from the others, for MySQL has no full join, and takes a temporary table once.
        """
        mine, theirs = self._sides(table)
        joined = theirs.join(mine, same_key(mine, theirs, table), isouter=True)
        is_extra = mine.c[key_columns(table)[0]].is_(None)
        keys = _labelled_key(theirs, table)
        return sa.select(*keys).select_from(joined).where(is_extra).subquery()

    def _sides(self, table: sa.Table) -> tuple[sa.FromClause, sa.FromClause]:
        mine = self._tables[table].alias("expected")
        return mine, _named_like(mine, table).alias("actual")

    def _first_keys(self, rows: sa.Subquery, *, limit: int) -> tuple[Key, ...]:
        key = [column for column in rows.c if column.name != "verdict"]
        in_text = self._read.dialect.name == "postgresql"  # the others' own text would do less
        shown = [sa.cast(column, sa.Text) if in_text else column for column in key]
        statement = sa.select(*shown).order_by(*key).limit(limit)
        return tuple(
            tuple(None if value is None else str(value) for value in row)
            for row in self._read.execute(statement)
        )


def _labelled_key(side: sa.FromClause, table: sa.Table) -> list[sa.ColumnElement[Any]]:
    return [side.c[n].label(f"key_{position}") for position, n in enumerate(key_columns(table))]


def _table(operation: Operation) -> sa.Table:
    return operation.table if isinstance(operation, Truncate) else operation.shape.table


def _created_like(table: sa.Table, name: str, read: sa.Connection) -> sa.Table:
    """Create a temporary table with the columns and key of a read table, and nothing more."""
    columns = [like(c, primary_key=c.primary_key) for c in table.columns if c.computed is None]
    created = sa.Table(name, sa.MetaData(), *columns, prefixes=["temporary"])
    if read.dialect.name == "mysql":  # where they outlive a rollback
        read.exec_driver_sql(f"drop temporary table if exists {name}")
    create_one(read, created)
    return created


def _named_like(columns: sa.FromClause, table: sa.Table) -> sa.TableClause:
    """Name a table's columns as the other's are: by their name, not by an attribute's."""
    return sa.table(
        table.name, *(sa.column(c.name, c.type) for c in columns.columns), schema=table.schema
    )

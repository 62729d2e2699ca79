"""Compare what read tables hold with what they should, inside the writer's transaction.

What should be there is written into temporary tables shaped like the read tables. Both sides are
then values of the same types in the same database, which compares them: only keys leave it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from msgspec.structs import replace

from cdc import lines, row_hash
from cdc.copy_state import Unit
from cdc.operation import Append, Delete, Operation, Shape, Upsert, key_columns, shape_of
from cdc.projection.batch import Effects, NetEffect
from cdc.projection.check import Check, Checksum, Expected, Range, Walk
from cdc.projection.lines import BulkPlan, Lines
from cdc.projection.mirror import PostgresType
from cdc.sink import verifications
from cdc.sink.engine import translated
from cdc.sink.postgres import quoted
from cdc.sink.refused import RowsRefused
from cdc.sink.sink import Sink
from cdc.sink.storage import like
from cdc.sink.tables import create_one
from cdc.verify_state import Mismatch, Verdict, Verification

_POSITION: Final = "cdc_position"
# Whole tables are read where keys are looked for that nothing leads to.
_WHOLE_TABLES: Final = """
select set_config(name, 'on', true)
from unnest(array['enable_hashjoin', 'enable_mergejoin', 'enable_seqscan']) as name
"""


class _Scratch(NamedTuple):
    """Temporary tables for a read table: rows that are expected, and keys of rows that exist."""

    rows: sa.Table
    keys: sa.Table


@cache
def _scratch(table: sa.Table) -> _Scratch:
    label = hashlib.sha256(table.fullname.encode()).hexdigest()[:12]
    columns = [like(c, primary_key=c.primary_key) for c in table.columns if c.computed is None]
    columns.append(sa.Column(_POSITION, PostgresType("integer")))
    keys = [like(column, primary_key=True) for column in table.primary_key.columns]
    metadata = sa.MetaData()
    return _Scratch(
        sa.Table(f"cdc_rows_{label}", metadata, *columns, prefixes=["temporary"]),
        sa.Table(f"cdc_keys_{label}", metadata, *keys, prefixes=["temporary"]),
    )


@dataclass(slots=True)
class _Wrong:
    """Rows that were found wrong: how many, the keys of the first, and what puts them right.

    Extra rows are not among the operations: they are found again to be deleted.
    """

    counts: Counter[Verdict] = field(default_factory=Counter)
    keys: list[Mismatch] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def take(self, other: "_Wrong") -> None:
        """Add what others found."""
        self.counts += other.counts
        self.keys += other.keys
        self.operations += other.operations


class Comparison:
    """Compares on the writer's connection. What it makes goes with the connection.

    After an error the connection must be closed.
    """

    def __init__(self, connection: sa.Connection, sink: Sink, slot: str) -> None:
        self._connection = connection
        self._sink = sink
        self._slot = slot
        self._made: set[sa.Table] = set()
        self._walks: set[Walk] = set()

    # Walks.

    def note(self, walk: Walk, effect: NetEffect) -> None:
        """Note the keys of read rows that came into being or were moved, for a walk."""
        for segment in effect.segments:
            for table in segment.keys() & walk.tables:
                if self._is_open(walk):
                    self._note(table, segment[table])

    def _is_open(self, walk: Walk) -> bool:
        """Begin a walk; tell False where its keys are gone."""
        if walk not in self._walks:
            if walk.begun:
                walk.lost = True
                return False
            walk.begun = True
            self._walks = {walk}
            for table in walk.tables:
                self._emptied(_scratch(table).keys)
        return True

    def _note(self, table: sa.Table, effects: Effects) -> None:
        key = key_columns(table)
        named: dict[Any, Shape] = {move.key: move.shape for move in effects.moves.values()}
        for write_key, write in effects.writes.items():
            if isinstance(write, Upsert):
                named[write_key] = write.shape
        if effects.lines is not None:
            named |= dict.fromkeys(effects.lines.by_key(), effects.lines.plan.shape)
        rows: dict[Shape, list[tuple[Any, ...]]] = defaultdict(list)
        for value, shape in named.items():
            rows[shape.subset(key)].append((value,) if len(key) == 1 else value)
        for shape, values in rows.items():
            self._load(Expected(Upsert, shape, values, exists=True))
            self._keep_keys(table)

    def _keep_keys(self, table: sa.Table) -> None:
        """Add the keys of the rows expected to those that exist."""
        scratch = _scratch(table)
        self._made_of(scratch.keys)
        rows, keys = self._name(scratch.rows), self._name(scratch.keys)
        listed = ", ".join(map(self._quote, key_columns(table)))
        if self._connection.dialect.name == "mysql":
            self._run(f"insert ignore into {keys} ({listed}) select {listed} from {rows}")
        else:
            self._run(
                f"insert into {keys} ({listed}) select {listed} from {rows} where true "
                "on conflict do nothing"
            )

    # Checks.

    def examine(self, check: Check) -> list[Verification]:
        """Compare, mend where that is asked for, and store how far it is.

        Give the verifications it moved on; none, where it came to nothing and what it is of has to
        be read again.
        """
        before = check.ledger.current(check.unit)
        if (check.asked, check.after) != (before.asked, before.reached) or not before.due:
            return []
        if check.walk is not None and not self._is_open(check.walk):
            return []
        if check.checksum is not None and not self._agrees(check.checksum, check.within):
            return []
        if check.anew:
            verifications.forget_keys(*self._at(check.unit))
        wrong = self._wrong(check)
        is_mended = before.repair and bool(wrong) and self._is_mended(check, wrong)
        results = []
        for unit in dict.fromkeys([check.unit, *wrong, *check.finishes]):
            found = wrong.get(unit, _Wrong())
            self._keep(unit, found.keys)
            mended = found.counts.total() if is_mended else 0
            result = _moved_on(check.ledger.current(unit), check, found.counts, mended=mended)
            verifications.store(self._connection, self._slot, result)
            results.append(result)
        return results

    def _keep(self, unit: Unit, keys: Sequence[Mismatch]) -> None:
        """Keep as many keys as there is room for."""
        if keys:
            room = max(0, verifications.MOST_KEYS - verifications.kept(*self._at(unit)))
            verifications.add_keys(*self._at(unit), keys[:room])

    def _at(self, unit: Unit) -> tuple[sa.Connection, str, Unit]:
        return self._connection, self._slot, unit

    def _wrong(self, check: Check) -> dict[Unit, _Wrong]:
        """Find the rows that are wrong, by the unit that answers for them."""
        wrong: dict[Unit, _Wrong] = defaultdict(_Wrong)
        within = check.within if check.checksum is None else None
        if within is not None:
            self._emptied(_scratch(within.table).keys)
        for expected in check.expected:
            wrong[check.unit].take(self._compared(expected))
            if expected.exists and (check.walk or within):
                self._keep_keys(expected.shape.table)
        if within is not None:
            wrong[check.unit].take(self._extra(within.table, self._between(within)))
        for table, unit in check.judged:
            wrong[unit].take(self._extra_anywhere(table))
        return {unit: found for unit, found in wrong.items() if found.counts}

    def _compared(self, expected: Expected) -> _Wrong:
        self._load(expected)
        table, shape = expected.shape.table, expected.shape
        mine, theirs = _sides(table)
        key = key_columns(table)
        there = theirs.c[key[0]].is_not(None)
        if expected.kind is Delete:
            verdict = sa.case((there, "extra"))
        else:
            differs = [
                differ(self._connection, mine.c[n], theirs.c[n])
                for n in shape.columns
                if n not in key
            ]
            is_missing = ~there if expected.kind is Upsert else sa.false()
            changed = sa.and_(there, sa.or_(sa.false(), *differs))
            verdict = sa.case((is_missing, "missing"), (changed, "different"))
        joined = mine.join(theirs, same_key(mine, theirs, table), isouter=True)
        selected = sa.select(
            verdict.label("verdict"), mine.c[_POSITION].label("position"), *self._key(mine, table)
        ).select_from(joined)
        found = selected.subquery()
        rows = self._connection.execute(sa.select(found).where(found.c.verdict.is_not(None))).all()
        if rows and expected.text:
            return self._compared(_decoded(expected))
        return _Wrong(
            Counter(row.verdict for row in rows),
            [Mismatch(table.fullname, row.verdict, _texts(row[2:])) for row in rows],
            [expected.kind.of(shape, expected.rows[int(row.position)]) for row in rows],
        )

    def _extra(self, table: sa.Table, between: Sequence[sa.ColumnElement[bool]]) -> _Wrong:
        """Find the rows, of some, that are not among those that exist."""
        theirs, conditions = _theirs(table), (*between, self._unexpected(table))
        counted = sa.select(sa.func.count()).select_from(theirs).where(*conditions)
        count = self._connection.execute(counted).scalar_one()
        if not count:
            return _Wrong()
        key = self._key(theirs, table)
        order = [theirs.c[name] for name in key_columns(table)]
        first = sa.select(*key).where(*conditions).order_by(*order)
        rows = self._connection.execute(first.limit(verifications.MOST_KEYS))
        keys = [Mismatch(table.fullname, "extra", _texts(row)) for row in rows]
        return _Wrong(Counter({"extra": count}), keys)

    def _extra_anywhere(self, table: sa.Table) -> _Wrong:
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(sa.text(_WHOLE_TABLES))
        self._made_of(_scratch(table).keys)
        return self._extra(table, ())

    def _unexpected(self, table: sa.Table) -> sa.ColumnElement[bool]:
        keys = _scratch(table).keys.alias("known")
        theirs = _theirs(table)
        same = sa.select(sa.literal(1)).select_from(keys).where(same_key(keys, theirs, table))
        return ~sa.exists(same.correlate(theirs))

    def _between(self, within: Range) -> list[sa.ColumnElement[bool]]:
        theirs, names = _theirs(within.table), key_columns(within.table)
        key = sa.tuple_(*(theirs.c[name] for name in names))

        def end(values: Sequence[str]) -> sa.Tuple:
            pairs = zip(names, values, strict=True)
            return sa.tuple_(*(sa.literal(v, theirs.c[name].type) for name, v in pairs))

        conditions: list[sa.ColumnElement[bool]] = []
        if within.after is not None:
            conditions.append(key > end(within.after))
        if within.last is not None:
            conditions.append(key <= end(within.last))
        return conditions

    def _agrees(self, checksum: Checksum, within: Range | None) -> bool:
        """Tell whether the rows in a range are as many and, by their hashes, the same."""
        assert within is not None  # noqa: S101  a checksum is of a range
        self._run(row_hash.SETTINGS)
        columns = [quoted(name) for name in checksum.plan.shape.columns]
        total: sa.ColumnClause[int] = sa.literal_column(row_hash.hashed(columns))
        statement = sa.select(sa.func.count(), total).select_from(_theirs(within.table))
        found = self._connection.execute(statement.where(*self._between(within))).one()
        return tuple(found) == (checksum.count, checksum.total)

    # Mending.

    def _is_mended(self, check: Check, wrong: dict[Unit, _Wrong]) -> bool:
        """Put the rows right; tell False, with nothing changed, where they are refused."""
        savepoint = self._connection.begin_nested()
        try:
            with translated():
                self._mend(check, wrong.values())
                self._sink.check_deferred()
        except RowsRefused:
            savepoint.rollback()
            self._sink.rolled_back()
            return False
        savepoint.commit()
        self._sink.keep()
        return True

    def _mend(self, check: Check, wrong: Iterable[_Wrong]) -> None:
        if check.within is not None:
            self._delete(check.within.table, self._between(check.within))
        for table, _ in check.judged:
            self._delete(table, ())
        effect = NetEffect()
        for found in wrong:
            for operation in found.operations:
                effect.add(operation)
        for segment in effect.segments:
            self._sink.apply(segment)

    def _delete(self, table: sa.Table, between: Sequence[sa.ColumnElement[bool]]) -> None:
        statement = sa.delete(_theirs(table)).where(*between, self._unexpected(table))
        self._connection.execute(statement)

    # Temporary tables.

    def _load(self, expected: Expected) -> None:
        """Write the rows that are expected where they are compared."""
        rows = _scratch(expected.shape.table).rows
        self._emptied(rows)
        text = expected.shape.text
        if expected.text:
            effects = Effects(lines=_lines(rows, expected))
        else:
            shape = shape_of(rows, (*expected.shape.columns, _POSITION), text=text)
            effects = Effects(
                appends=[
                    Append.of(shape, (*values, str(n) if text else n))
                    for n, values in enumerate(expected.rows)
                ]
            )
        self._sink.apply({rows: effects})

    def _emptied(self, table: sa.Table) -> None:
        if self._made_of(table):
            return
        verb = "truncate" if self._connection.dialect.name == "postgresql" else "delete from"
        self._run(f"{verb} {self._name(table)}")

    def _made_of(self, table: sa.Table) -> bool:
        """Make a table unless it is there; tell whether it was made."""
        if table in self._made:
            return False
        if self._connection.dialect.name == "mysql":  # where they outlive a rollback
            self._run(f"drop temporary table if exists {self._name(table)}")
        create_one(self._connection, table)
        self._made.add(table)
        return True

    def _key(self, side: sa.FromClause, table: sa.Table) -> list[sa.ColumnElement[Any]]:
        in_text = self._connection.dialect.name == "postgresql"
        columns = [side.c[name] for name in key_columns(table)]
        return [
            (sa.cast(column, sa.Text) if in_text else column).label(f"key_{position}")
            for position, column in enumerate(columns)
        ]

    def _run(self, statement: str) -> None:
        self._connection.exec_driver_sql(statement)

    def _name(self, table: sa.Table) -> str:
        return self._quote(table.name)

    def _quote(self, name: str) -> str:
        return str(self._connection.dialect.identifier_preparer.quote_identifier(name))


def _moved_on(
    before: Verification, check: Check, found: Counter[Verdict], *, mended: int
) -> Verification:
    now = datetime.now(UTC)
    mine = before.unit == check.unit
    return replace(
        before,
        phase="done" if before.unit in check.finishes else "comparing",
        reached=check.last or before.reached if mine else before.reached,
        compared=before.compared + (check.count if mine else 0),
        skipped=before.skipped + (check.skipped if mine else 0),
        expected=before.expected if check.estimate is None else check.estimate,
        missing=before.missing + found["missing"],
        extra=before.extra + found["extra"],
        different=before.different + found["different"],
        mended=before.mended + mended,
        note=check.note or before.note,
        started_at=before.started_at or now,
        updated_at=now,
    )


def _decoded(expected: Expected) -> Expected:
    return expected._replace(rows=lines.decode(expected.text), text=b"")


def _lines(rows: sa.Table, expected: Expected) -> Lines:
    shape = shape_of(rows, expected.shape.columns, text=True)
    plan = BulkPlan(shape, (), shape_of(rows, key_columns(rows), text=True), ())
    return Lines(plan, appended=[expected.text])


def _sides(table: sa.Table) -> tuple[sa.FromClause, sa.FromClause]:
    return _scratch(table).rows.alias("expected"), _theirs(table).alias("actual")


@cache
def _theirs(table: sa.Table) -> sa.TableClause:
    """Name a read table's columns by their names, not by an attribute's."""
    columns = (sa.column(c.name, c.type) for c in table.columns if c.computed is None)
    return sa.table(table.name, *columns, schema=table.schema)


def differ(
    connection: sa.Connection, mine: sa.ColumnElement[Any], theirs: sa.ColumnElement[Any]
) -> sa.ColumnElement[bool]:
    """Tell whether two values differ: as text in Postgres, where json compares no other way."""
    if connection.dialect.name == "postgresql":
        return sa.cast(mine, sa.Text).is_distinct_from(sa.cast(theirs, sa.Text))
    return mine.is_distinct_from(theirs)


def same_key(mine: sa.FromClause, theirs: sa.FromClause, table: sa.Table) -> sa.ColumnElement[bool]:
    """Tell whether two rows have the key of a read table in common."""
    return sa.and_(*(mine.c[name] == theirs.c[name] for name in key_columns(table)))


def _texts(values: Iterable[Any]) -> tuple[str | None, ...]:
    return tuple(None if value is None else _text(value) for value in values)


def _text(value: Any) -> str:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)

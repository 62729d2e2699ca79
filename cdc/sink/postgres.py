"""Write net effects to Postgres, one set-based statement per table, kind and set of columns.

Few rows go as parameters of prepared statements, in one round trip; many by COPY into a staging
table and from there in one statement.
"""

import select
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from os import dup
from socket import SO_SNDBUF, SOL_SOCKET, socket
from typing import Any, Final

import sqlalchemy as sa

from cdc import lines
from cdc.operation import Append, Move, Shape, Update, Upsert, key_columns
from cdc.projection.batch import Effects, Segment
from cdc.projection.lines import Lines, Replaced
from cdc.projection.registry import sorted_tables
from cdc.sink.postgres_session import driver_connection
from cdc.sink.postgres_values import made_faster
from cdc.sink.refused import RowsRefused
from cdc.sink.refused import values_refused as _values_refused
from cdc.sink.sink import Holding

_FEW: Final = 16
# Room in the kernel for a batch: the thread that writes is not woken for every piece of it.
_SEND_BUFFER_BYTES: Final = 4 * 1024**2
_LOCK: Final = "select pg_try_advisory_lock(hashtext('cdc'), hashtext(%s))"
_HOLDING: Final = """
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 2
  and l.database = (select oid from pg_database where datname = current_database())
  and l.classid = hashtext('cdc')::bigint & 4294967295
  and l.objid = hashtext(%s)::bigint & 4294967295
"""
_LOCK_HOLDER: Final = f"select l.pid, host(a.client_addr) {_HOLDING}"
# A process that is paused in the midst of a COPY leaves its session active: waiting for it, too.
_END_SILENT: Final = f"""
select l.pid, host(a.client_addr), pg_terminate_backend(l.pid) {_HOLDING}
  and a.wait_event_type = 'Client' and pg_has_role(a.usesysid, 'usage')
  and a.state_change < clock_timestamp() - make_interval(secs => %s)
"""
_MAY_WAIT: Final = "select exists (select from pg_constraint where condeferrable)"
_REFERENCED: Final = "select exists (select from pg_constraint where confrelid = %s::regclass)"
_POSITIONS: Final = """
select pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_current_wal_flush_lsn() - '0/0'::pg_lsn
"""

Row = tuple[Any, ...]
Write = Upsert | Update


def _session(pid: int, address: str | None) -> str:
    return f"process {pid} of the read database, from {address or 'its own host'}"


class PostgresSink:
    """What of writing is Postgres's own. Works inside the transaction its caller began."""

    takes_lines = True

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._driver = driver_connection(connection)
        self._staging: dict[sa.Table, str] = {}
        self._stages_made = 0
        self._new: set[sa.Table] = set()
        self._few = _FEW
        self._filled: set[sa.Table] = set()
        self._collided: set[sa.Table] = set()
        self._may_wait: bool | None = None
        self._direct: set[sa.Table] = set()
        self._binds: dict[Shape, Callable[[Row], Row] | None] = {}
        self._writers: dict[type, Callable[[Shape, list[Row]], None]] = {
            Upsert: self._upsert,
            Update: self._update,
            Append: self._append,
        }

    def configure(self) -> None:
        """Let commits return before they are on disk, where no standby is waited for.

        Nothing is acknowledged to the source before `flushed_position` has passed it.
        """
        with socket(fileno=dup(self._driver.fileno())) as duplicate:
            duplicate.setsockopt(SOL_SOCKET, SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._driver.execute(
            "select set_config('synchronous_commit', 'off', false) "
            "where current_setting('synchronous_standby_names') = ''"
        )
        self._driver.commit()

    def lock(self, slot: str) -> bool:
        """Take the slot's lock for as long as this connection lives; tell whether it was free."""
        row = self._driver.execute(_LOCK, [slot]).fetchone()
        self._driver.commit()
        return bool(row and row[0])

    def lock_holder(self, slot: str) -> str:
        """Say who holds the slot's lock, as far as the role may see it."""
        found = self.holding(slot)
        return found.who if found else "it has just let go"

    def holding(self, slot: str) -> Holding | None:
        """Look who holds the slot's lock, taking nothing; None where it is free."""
        row = self._driver.execute(_LOCK_HOLDER, [slot]).fetchone()
        self._driver.commit()
        return Holding(_session(*row), f"select pg_terminate_backend({row[0]})") if row else None

    def end_silent_holder(self, slot: str, *, seconds: float) -> str | None:
        """End the session that holds the slot's lock, where it waits that long for its client."""
        row = self._driver.execute(_END_SILENT, [slot, seconds]).fetchone()
        self._driver.commit()
        return _session(*row[:2]) if row else None

    def positions(self) -> tuple[int, int]:
        """Give how far the read database has written its own WAL, and how far it is durable."""
        with self._driver.pipeline():
            cursor = self._driver.execute(_POSITIONS)
            self._driver.commit()
        row = cursor.fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def flush(self) -> None:
        """Bring all commits so far to disk, by one that waits for it."""
        self._driver.execute("set local synchronous_commit = on")
        self._driver.execute("select pg_logical_emit_message(true, 'cdc', 'flush')")
        self._driver.commit()

    def together(self) -> AbstractContextManager[object]:
        """Send the statements within in one round trip; their errors are raised at its end."""
        return self._driver.pipeline()

    def defer_constraints(self) -> None:
        """Let constraints that may be deferred wait for `check_deferred`."""
        self._driver.execute("set constraints all deferred", prepare=False)

    def check_deferred(self) -> None:
        """Check the constraints that wait for the commit now, while the rows can be told."""
        if self._may_wait is None:
            row = self._driver.execute(_MAY_WAIT).fetchone()
            self._may_wait = row is None or bool(row[0])
        if not self._may_wait:
            return
        for when in ("immediate", "deferred"):
            self._driver.execute(f"set constraints all {when}")

    def fits(self, values: Row) -> bool:  # noqa: ARG002  a row that could be sent can be stored
        """Tell yes."""
        return True

    def copied_directly(self) -> bool:
        """Tell whether rows went straight into a table since the last commit or rollback.

        That fails where the table holds one of them all the same. After this was asked, such tables
        are written by way of a staging table, for as long as the connection lives.
        """
        direct, self._direct = self._direct, set()
        self._collided |= direct
        return bool(direct)

    def committed(self) -> None:
        """Note that the transaction is over: the server has emptied the staging tables."""
        self._direct.clear()
        self._filled.clear()
        self._new.clear()

    def rolled_back(self) -> None:
        """Note a rollback to the savepoint: tables made since are gone, others as they were."""
        for table in self._new:
            del self._staging[table]
        self._new.clear()
        self._filled = set(self._staging)

    def keep(self) -> None:
        """Note that the savepoint was released: the tables made since stay."""
        self._new.clear()

    def apply(self, segment: Segment, *, in_sets: bool = False) -> None:
        """Write one segment of net effects: children's deletes first, parents' writes first.

        `in_sets`: each set of rows by one statement, however few they are.
        """
        self._few = 0 if in_sets else _FEW
        tables = sorted_tables(segment) if len(segment) > 1 else list(segment)
        self._truncate([table for table in tables if segment[table].truncated])
        for table in tables:
            self._move(table, segment[table])
        for table in reversed(tables):
            self._delete(table, segment[table])
        for table in tables:
            self._replace(table, segment[table].replaced)
            self._write(segment[table])
            self._write_lines(table, segment[table].lines)

    def _truncate(self, tables: list[sa.Table]) -> None:
        if tables:
            self._run("truncate " + ", ".join(map(self._name, tables)))

    def _move(self, table: sa.Table, effects: Effects) -> None:
        """Change keys; a stale row that stands where a row moves to makes way for it."""
        if not effects.moves:
            return
        key = key_columns(table)
        name, count = self._name(table), len(key)
        old = self._where("t", key)
        pairs = [self._key_pair(move, count) for move in effects.moves.values()]
        with self._driver.cursor() as cursor:
            cursor.executemany(
                f"delete from {name} t where {old} and not ({old}) "
                f"and exists (select from {name} t where {old})",
                [(*pair, *pair[count:]) for pair in pairs],
            )
            assignments = ", ".join(f"{self._quote(c)} = %s" for c in key)
            cursor.executemany(f"update {name} t set {assignments} where {old}", pairs)

    def _key_pair(self, move: Move, count: int) -> Row:
        """Give the new key and the old one, both in the order of the read table's key."""
        shape = move.shape.subset(key_columns(move.shape.table))
        new, old = (_as_row(key, count) for key in (move.key, move.old_key))
        return (*self._bound(shape, new), *self._bound(shape, old))

    def _delete(self, table: sa.Table, effects: Effects) -> None:
        deletes = list(effects.deletes.values())
        if not deletes:
            return
        key = key_columns(table)
        by_shape: dict[Shape, list[Row]] = defaultdict(list)
        for delete in deletes:
            by_shape[delete.shape].append(delete.values)
        for shape, rows in by_shape.items():
            name = self._name(table)
            if len(rows) <= self._few:
                self._execute_each(
                    f"delete from {name} t where {self._where('t', shape.columns)}", shape, rows
                )
            else:
                stage = self._stage(shape, rows)
                self._run(f"delete from {name} t using {stage} s where {self._joined(key)}")

    def _replace(self, table: sa.Table, replaced: Replaced | None) -> None:
        """Put rows in the place of those with keys between two; refuse where others hang on them.

        A key that references the table may delete or change rows with those that are deleted.
        """
        if replaced is None:
            return
        name = self._name(table)
        key = ", ".join(map(self._quote, key_columns(table)))

        def compared(sign: str, end: tuple[str, ...]) -> str:
            return f"({key}) {sign} ({', '.join(map(literal, end))})"

        ends = ((">", replaced.after), ("<=", replaced.last))
        between = [compared(sign, end) for sign, end in ends if end is not None]
        with self._driver.pipeline():
            referenced = self._driver.execute(_REFERENCED, [_plain(name)])
            self._run(f"delete from {name} where {' and '.join(between) or 'true'}")
            if replaced.beyond is not None:
                self._run(f"delete from {name} where {compared('>', replaced.beyond)}")
        row = referenced.fetchone()
        if row and row[0]:  # what was deleted comes back: the batch is rolled back
            raise RowsRefused(f"a foreign key references {table.name}")
        self._copy_text(name, replaced.plan.shape, [replaced.text] if replaced.text else [])

    def _write(self, effects: Effects) -> None:
        by_shape: dict[tuple[type, Shape], list[Row]] = defaultdict(list)
        write: Write | Append
        for write in effects.writes.values():
            by_shape[type(write), write.shape].append(write.values)
        for write in effects.appends:
            by_shape[Append, write.shape].append(write.values)
        for (kind, shape), rows in by_shape.items():
            self._writers[kind](shape, rows)

    def _write_lines(self, table: sa.Table, encoded: Lines | None) -> None:
        """Write rows that are encoded already; fresh ones without a look at what is there."""
        if encoded is None:
            return
        shape = encoded.plan.shape
        if table in self._collided:
            rows = encoded.by_key()
            self._upsert_text(shape, lines.joined(rows.values()) if rows else b"", len(rows))
        else:
            self._upsert_text(shape, encoded.known_text, len(encoded.known))
            self._direct |= {table} if encoded.fresh_texts else set()
            self._copy_text(self._name(table), shape, encoded.fresh_texts)
        self._copy_text(self._name(table), shape, encoded.appended)

    def _upsert_text(self, shape: Shape, text: bytes, count: int) -> None:
        if text:
            stage = self._empty_stage(shape.table)
            self._copy_text(stage, shape, [text])
            self._merge(stage, shape, count)

    def _merge(self, stage: str, shape: Shape, count: int) -> None:
        """Upsert the staged rows: update those that are there, then insert the others.

        Nearly always they are all there.
        """
        target, columns, changed = self._name(shape.table), self._columns(shape), _not_key(shape)
        joined = self._joined(key_columns(shape.table))
        updated = 0
        if changed:
            assignments = ", ".join(f"{self._quote(c)} = s.{self._quote(c)}" for c in changed)
            updated = self._run(
                f"update {target} t set {assignments} from {stage} s where {joined}"
            )
        if updated < count:
            self._run(
                f"insert into {target} ({columns}) select {columns} from {stage} s "
                f"where not exists (select from {target} t where {joined})"
            )

    def _upsert(self, shape: Shape, rows: list[Row]) -> None:
        target, columns = self._name(shape.table), self._columns(shape)
        if len(rows) <= self._few:
            placeholders = ", ".join(["%s"] * len(shape.columns))
            self._execute_each(
                f"insert into {target} ({columns}) values ({placeholders}) {self._conflict(shape)}",
                shape,
                rows,
            )
        else:
            stage = self._stage(shape, rows)
            self._run(
                f"insert into {target} ({columns}) select {columns} from {stage} "
                + self._conflict(shape)
            )

    def _conflict(self, shape: Shape) -> str:
        key = ", ".join(map(self._quote, key_columns(shape.table)))
        assignments = ", ".join(
            f"{self._quote(c)} = excluded.{self._quote(c)}" for c in _not_key(shape)
        )
        action = f"update set {assignments}" if assignments else "nothing"
        return f"on conflict ({key}) do {action}"

    def _update(self, shape: Shape, rows: list[Row]) -> None:
        changed = _not_key(shape)
        if not changed:
            return
        target = self._name(shape.table)
        key = key_columns(shape.table)
        if len(rows) <= self._few:
            order = [shape.columns.index(c) for c in (*changed, *key)]
            assignments = ", ".join(f"{self._quote(c)} = %s" for c in changed)
            self._execute_each(
                f"update {target} t set {assignments} where {self._where('t', key)}",
                shape,
                rows,
                order=order,
            )
        else:
            stage = self._stage(shape, rows)
            assignments = ", ".join(f"{self._quote(c)} = s.{self._quote(c)}" for c in changed)
            self._run(
                f"update {target} t set {assignments} from {stage} s where {self._joined(key)}"
            )

    def _append(self, shape: Shape, rows: list[Row]) -> None:
        self._copy(self._name(shape.table), shape, rows)

    def _execute_each(
        self, statement: str, shape: Shape, rows: list[Row], *, order: Sequence[int] | None = None
    ) -> None:
        bound = [self._bound(shape, row) for row in rows]
        if order is not None:
            bound = [tuple(row[position] for position in order) for row in bound]
        with self._driver.cursor() as cursor, _values_refused():
            if len(bound) == 1:
                cursor.execute(statement, bound[0])
            else:
                cursor.executemany(statement, bound)

    def _stage(self, shape: Shape, rows: list[Row]) -> str:
        """Fill the table's staging table with rows; give its name."""
        stage = self._empty_stage(shape.table)
        self._copy(stage, shape, rows)
        return stage

    def _empty_stage(self, table: sa.Table) -> str:
        stage = self._staging.get(table)
        if stage is None:
            stage = self._staging[table] = self._create_stage(table)
        elif table in self._filled:
            self._run(f"truncate {stage}")
        self._filled.add(table)
        return stage

    def _create_stage(self, table: sa.Table) -> str:
        """Make a table with the target's column types, without its constraints, for the session."""
        self._stages_made += 1
        stage = f"pg_temp.cdc_stage_{self._stages_made}"
        self._new.add(table)
        columns = ", ".join(self._quote(column.name) for column in table.columns)
        self._run(
            f"create temporary table {stage} on commit delete rows as "
            f"select {columns} from {self._name(table)} with no data"
        )
        return stage

    def _copy(self, name: str, shape: Shape, rows: list[Row]) -> None:
        if shape.text:
            self._copy_text(name, shape, [lines.encode_all(rows)])
            return
        statement = _plain(f"copy {name} ({self._columns(shape)}) from stdin")
        with (
            made_faster(self._driver.cursor()) as cursor,
            _values_refused(),
            cursor.copy(statement) as copy,
        ):
            for row in rows:
                copy.write_row(self._bound(shape, row))

    def _copy_text(self, name: str, shape: Shape, texts: Sequence[bytes]) -> None:
        """Send encoded rows, if there are any."""
        if not texts:
            return
        statement = _plain(f"copy {name} ({self._columns(shape)}) from stdin {lines.OPTIONS}")
        with self._driver.cursor() as cursor, cursor.copy(statement):
            for text in texts:
                self._send(text)

    def _send(self, text: bytes) -> None:
        """Send COPY data whole: psycopg's own way lets other threads in for every 128 KB of it."""
        pgconn = self._driver.pgconn
        pgconn.put_copy_data(text)
        while pgconn.flush():
            readable, _, _ = select.select([pgconn.socket], [pgconn.socket], [])
            if readable:
                pgconn.consume_input()

    def _run(self, statement: str) -> int:
        """Run a statement without parameters; give how many rows it touched."""
        return self._driver.execute(_plain(statement)).rowcount

    def _bound(self, shape: Shape, row: Row) -> Row:
        """Convert Python values as the columns' SQLAlchemy types say; text is left as it is."""
        if shape not in self._binds:
            self._binds[shape] = None if shape.text else self._binder(shape)
        bind = self._binds[shape]
        return row if bind is None else bind(row)

    def _binder(self, shape: Shape) -> Callable[[Row], Row] | None:
        dialect = self._connection.dialect
        columns = {column.name: column for column in shape.table.columns}
        types = [columns[name].type.dialect_impl(dialect) for name in shape.columns]
        processors = [type_.bind_processor(dialect) for type_ in types]
        converted = [(at, process) for at, process in enumerate(processors) if process is not None]
        if not converted:
            return None

        def bind(row: Row) -> Row:
            values = list(row)
            try:
                for at, process in converted:
                    values[at] = process(values[at])
            except Exception as error:  # noqa: BLE001  a type's processor may raise anything
                raise RowsRefused(f"{type(error).__name__} while binding its values") from None
            return tuple(values)

        return bind

    def _where(self, alias: str, columns: Iterable[str]) -> str:
        return " and ".join(f"{alias}.{self._quote(c)} = %s" for c in columns)

    def _joined(self, columns: Iterable[str]) -> str:
        return " and ".join(f"t.{self._quote(c)} = s.{self._quote(c)}" for c in columns)

    def _columns(self, shape: Shape) -> str:
        return ", ".join(map(self._quote, shape.columns))

    def _quote(self, name: str) -> str:
        """Quote an identifier for a statement with parameters, where % is doubled."""
        return quoted(name).replace("%", "%%")

    def _name(self, table: sa.Table) -> str:
        parts = [table.schema, table.name] if table.schema else [table.name]
        return ".".join(map(self._quote, parts))


def quoted(name: str) -> str:
    """Quote an identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def literal(text: str) -> str:
    """Quote a string, whatever standard_conforming_strings is."""
    doubled = text.replace("'", "''").replace("\\", "\\\\")
    return f" E'{doubled}'" if "\\" in text else f"'{doubled}'"


def _plain(statement: str) -> str:
    """Make a statement one without parameters, where % stands for itself."""
    return statement.replace("%%", "%")


def _not_key(shape: Shape) -> list[str]:
    key = key_columns(shape.table)
    return [name for name in shape.columns if name not in key]


def _as_row(key: Any, count: int) -> Row:
    return (key,) if count == 1 else key

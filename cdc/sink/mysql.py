"""Write net effects to MySQL and MariaDB.

`on duplicate key update` and `replace` are not used: they write to another row where any second
unique index is hit. Few rows are looked for and then updated or inserted; many go into a staging
table, those that exist are updated from it and taken out of it, and the rest is inserted.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from cdc.errors import ReadError
from cdc.operation import Shape, key_columns
from cdc.projection.mirror import PostgresType
from cdc.sink.binding import Binding, Row
from cdc.sink.mysql_ddl import key_bytes, key_characters
from cdc.sink.mysql_session import NOT_UNIQUE, error_number
from cdc.sink.portable import PortableSink, Writes, not_key, tied
from cdc.sink.refused import RowsRefused
from cdc.sink.sink import Holding
from cdc.sink.storage import Storage, length_of, storage_of

_FEW: Final = 8
_DURABLE: Final = "select @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog"
_SILENT_HOLDER: Final = """
select id from information_schema.processlist
where id = is_used_lock(%s) and command = 'Sleep' and time >= %s
"""
_NO_SUCH_THREAD: Final = 1094
_ASIDE: Final = "cdc_aside"
_REFERENCED: Final = """
select referenced_column_name from information_schema.key_column_usage
where referenced_table_schema = coalesce(%s, database()) and referenced_table_name = %s
"""
_MOST_PER_CHARACTER: Final = 4  # bytes, as UTF-8 or escaped
_STATEMENT_BYTES: Final = 16_384  # of a statement beside its values


class MySQLSink(PortableSink):
    """What of writing is MySQL's own. Works inside the transaction its caller began.

    Temporary tables are not rolled back, and are emptied by hand: `truncate` would commit.
    """

    def __init__(self, connection: sa.Connection) -> None:
        super().__init__(connection, Binding(connection.dialect, _length), sign="%s")
        self._stages: dict[Shape, str] = {}
        self._packet = 16 * 1024**2

    def configure(self) -> None:
        """Refuse a server that would lose commits; ask how large a packet it takes."""
        with self._connection.begin():
            problem = undurable(self._connection)
            self._packet = int(self._run("select @@max_allowed_packet").scalar_one())
        if problem:
            raise ReadError(
                f"the read database may lose what it has committed: {problem}",
                hint="set global innodb_flush_log_at_trx_commit = 1; set global sync_binlog = 1; "
                "and in the server's configuration",
            )

    def lock(self, slot: str) -> bool:
        """Take the slot's lock for as long as this connection lives; tell whether it was free."""
        with self._connection.begin():
            return bool(self._run("select get_lock(%s, 0)", [(self._lock_name(slot),)]).scalar())

    def lock_holder(self, slot: str) -> str:
        """Say who holds the slot's lock."""
        found = self.holding(slot)
        return found.who if found else "it has just let go"

    def holding(self, slot: str) -> Holding | None:
        """Look who holds the slot's lock, taking nothing; None where it is free."""
        with self._connection.begin():
            number = self._run("select is_used_lock(%s)", [(self._lock_name(slot),)]).scalar()
        if number is None:
            return None
        return Holding(f"connection {number} of the read database", f"kill {number}")

    def end_silent_holder(self, slot: str, *, seconds: float) -> str | None:
        """End the session that holds the slot's lock, where it waits that long for its client."""
        with self._connection.begin():
            waits = self._run(_SILENT_HOLDER, [(self._lock_name(slot), seconds)]).scalar()
        if waits is None:
            return None
        try:
            self._run(f"kill connection {int(waits)}")
        except sa.exc.DBAPIError as error:
            if error_number(error.orig) != _NO_SUCH_THREAD:
                raise
        return f"connection {waits} of the read database"

    def _lock_name(self, slot: str) -> str:
        """Locks are the server's, not a database's, and their names at most 64 characters."""
        database = self._connection.engine.url.database
        return "cdc:" + hashlib.sha256(f"{database}\0{slot}".encode()).hexdigest()[:40]

    def _is_not_unique(self, error: BaseException | None) -> bool:
        return error_number(error) in NOT_UNIQUE

    def _delete_rows(self, shape: Shape, rows: list[Row]) -> None:
        name = self._name(shape.table)
        if len(rows) <= _FEW:
            self._run(f"delete from {name} where {self._equal(shape.columns)}", rows)
        else:
            stage = self._stage(shape, rows)
            self._run(f"delete t from {self._joined(stage, name, shape.table)}")

    def _upsert(self, shape: Shape, rows: list[Row]) -> None:
        if len(rows) <= _FEW:
            for row in rows:
                self._upsert_one(shape, row)
            return
        name = self._name(shape.table)
        stage = self._stage(shape, rows)
        joined = self._joined(stage, name, shape.table)
        if not_key(shape):
            self._run(f"update {joined} set {self._assigned(shape)}")
        self._run(f"delete s from {joined}")
        columns = self._columns(shape)
        self._run(f"insert into {name} ({columns}) select {columns} from {stage}")

    def _upsert_one(self, shape: Shape, row: Row) -> None:
        name = self._name(shape.table)
        if not_key(shape):
            exists = self._update_each(name, shape, [row]) > 0
        else:
            is_key = self._equal(key_columns(shape.table))
            found = self._run(f"select 1 from {name} where {is_key}", self._keys(shape, [row]))
            exists = bool(found.fetchall())
        if not exists:
            self._insert(name, shape, [row])

    def _update(self, shape: Shape, rows: list[Row]) -> None:
        name = self._name(shape.table)
        if len(rows) <= _FEW:
            self._update_each(name, shape, rows)
        else:
            stage = self._stage(shape, rows)
            self._run(
                f"update {self._joined(stage, name, shape.table)} set {self._assigned(shape)}"
            )

    def _run(self, statement: str, rows: Sequence[Row] = ()) -> "sa.CursorResult[Any]":
        for row in rows:
            # Told here, for the server hangs up on it: that would look like one that went away.
            if not self.fits(row):
                raise RowsRefused(
                    f"a row is larger than the server's max_allowed_packet ({self._packet} bytes)"
                )
        return super()._run(statement, rows)

    def fits(self, values: Row) -> bool:
        """Tell whether a row fits into one packet as the driver writes it."""
        size = sum([len(value) for value in values if value.__class__ in {str, bytes}])
        return size * _MOST_PER_CHARACTER <= self._packet or self._fits_written(values)

    def _fits_written(self, row: Row) -> bool:
        driver: Any = self._connection.connection.driver_connection
        written = [driver.escape(value) for value in row if isinstance(value, str | bytes)]
        size = sum(len(text.encode(errors="surrogateescape")) for text in written)
        return size + _STATEMENT_BYTES < self._packet

    def _stage(self, shape: Shape, rows: list[Row]) -> str:
        """Fill the shape's staging table with rows; give its name."""
        stage = self._stages.get(shape)
        if stage is None:
            stage = self._stages[shape] = f"cdc_stage_{len(self._stages)}"
            self._run(f"drop temporary table if exists {stage}")
            self._run(
                f"create temporary table {stage} engine=InnoDB as "
                f"select {self._columns(shape)} from {self._name(shape.table)} limit 0"
            )
        self._run(f"delete from {stage}")
        self._insert(stage, shape, rows)
        return stage

    def _set_aside(self, table: sa.Table, writes: Writes) -> None:
        """Take the rows out into a scratch table, give them their values there, put them back."""
        self._require_loose(table)
        name = self._name(table)
        columns = self._stored_columns(table)
        listed = ", ".join(map(self._quote, columns))
        key = ", ".join(map(self._quote, key_columns(table)))
        self._run(f"drop temporary table if exists {_ASIDE}")
        self._run(
            f"create temporary table {_ASIDE} (primary key ({key})) engine=InnoDB as "
            f"select {listed} from {name} limit 0"
        )
        taken = ", ".join(f"t.{self._quote(c)}" for c in columns)
        for (_, shape), rows in writes.items():
            stage = self._stage(shape, rows)
            joined = self._joined(stage, name, table)
            self._run(f"insert into {_ASIDE} ({listed}) select {taken} from {joined}")
            self._take_out(joined)
            if not_key(shape):
                self._run(
                    f"update {self._joined(stage, _ASIDE, table)} set {self._assigned(shape)}"
                )
        self._run(f"insert into {name} ({listed}) select {listed} from {_ASIDE}")
        self._run(f"drop temporary table {_ASIDE}")

    def _require_loose(self, table: sa.Table) -> None:
        """Refuse where rows refer to other columns than the key, which stays as it is."""
        found = self._run(_REFERENCED, [(table.schema, table.name)]).scalars()
        if set(found) - set(key_columns(table)):
            raise tied(table)

    def _take_out(self, joined: str) -> None:
        """Delete rows that will be put back: nothing that refers to them must go with them."""
        self._run("set foreign_key_checks = 0")
        try:
            self._run(f"delete t from {joined}")
        finally:
            self._run("set foreign_key_checks = 1")

    def _stored_columns(self, table: sa.Table) -> list[str]:
        """Name the columns that are not generated, those the read model does not know too."""
        described = self._run(f"show columns from {self._name(table)}")
        return [row.Field for row in described if "GENERATED" not in row.Extra.upper()]

    def _joined(self, stage: str, name: str, table: sa.Table) -> str:
        """Join from the batch to its rows by key, in this order whatever statistics say."""
        on = " and ".join(f"t.{self._quote(c)} = s.{self._quote(c)}" for c in key_columns(table))
        return f"{stage} s straight_join {name} t on {on}"

    def _assigned(self, shape: Shape) -> str:
        return ", ".join(f"t.{self._quote(c)} = s.{self._quote(c)}" for c in not_key(shape))


def undurable(connection: sa.Connection) -> str | None:
    """Say which setting of the server lets it lose commits; None where they are durable."""
    flush, has_log, sync = connection.exec_driver_sql(_DURABLE).one()
    if flush != 1:
        return f"innodb_flush_log_at_trx_commit is {flush}, not 1"
    return f"sync_binlog is {sync}, not 1" if has_log and sync != 1 else None


def _length(column: "sa.Column[object]") -> int | None:
    """Give how much a column holds: the server cuts trailing spaces that are too many."""
    type_ = column.type
    if isinstance(type_, PostgresType):
        if storage_of(type_) is Storage.BYTES:
            return key_bytes(column)
        limit = length_of(type_) if key_bytes(column) else None
        return key_characters(column, limit) if storage_of(type_) is Storage.TEXT else None
    return key_characters(column, type_.length) if isinstance(type_, sa.String) else None

"""Write net effects to SQLite: row by row, for there is no server to go to and come back from."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from cdc.operation import Shape, key_columns
from cdc.projection.batch import Segment
from cdc.sink.binding import Binding, Row
from cdc.sink.portable import PortableSink, Writes, not_key, tied
from cdc.sink.refused import RowsRefused
from cdc.sink.sink import Holding
from cdc.sink.sqlite_session import (
    NOT_UNIQUE,
    database_file,
    driver_connection,
    error_code,
    is_locked,
    is_paused,
)

_ASIDE: Final = "temp.cdc_aside"
_REFERENCES: Final = """
select f.on_delete, f."to" from sqlite_master m, pragma_foreign_key_list(m.name) f
where m.type = 'table' and lower(f."table") = lower(?)
"""
_HARMLESS: Final = ("NO ACTION", "RESTRICT")


class SQLiteSink(PortableSink):
    """What of writing is SQLite's own. Works inside the transaction its caller began."""

    def __init__(self, connection: sa.Connection) -> None:
        super().__init__(connection, Binding(connection.dialect, _length), sign="?")
        self._written: set[sa.Table] = set()

    def configure(self) -> None:
        """Do nothing: the engine's connections are as they must be."""

    def lock(self, slot: str) -> bool:
        """Take the slot's lock for as long as this connection lives; tell whether it was free."""
        return driver_connection(self._connection).lock(self._lock_file(slot))

    def lock_holder(self, slot: str) -> str:
        """Say which process holds the slot's lock."""
        text = self._lock_file(slot).read_text().strip()
        return f"process {text} of this machine" if text else "it has just begun"

    def holding(self, slot: str) -> Holding | None:
        """Look who holds the slot's lock, taking nothing; None where it is free."""
        file = self._lock_file(slot)
        if not file.exists() or not is_locked(file):
            return None
        return Holding(self.lock_holder(slot), f"kill {file.read_text().strip()}")

    def end_silent_holder(self, slot: str, *, seconds: float) -> str | None:
        """Take the lock file from a process that is paused: it keeps one that nobody looks at.

        Nobody ends a process here, nor a transaction that it holds open.
        """
        del seconds
        holder = self.lock_holder(slot)
        text = self._lock_file(slot).read_text().strip()
        if not is_paused(text):
            return None
        self._lock_file(slot).unlink(missing_ok=True)
        return holder

    def _lock_file(self, slot: str) -> Path:
        file = database_file(self._connection)
        return file.with_name(f"{file.name}.{slot}.lock")

    def apply(self, segment: Segment, *, in_sets: bool = False) -> None:
        """Write one segment of net effects; note its tables."""
        self._written.update(segment)
        super().apply(segment, in_sets=in_sets)

    def check_deferred(self) -> None:
        """Check the foreign keys of the tables written that wait for the commit."""
        for table in self._written:
            if any(fk.deferrable for fk in table.foreign_key_constraints):
                self._check_foreign_keys(table)

    def committed(self) -> None:
        """Note that the transaction is over."""
        self._written.clear()

    def _delete_rows(self, shape: Shape, rows: list[Row]) -> None:
        self._run(f"delete from {self._name(shape.table)} where {self._equal(shape.columns)}", rows)

    def _upsert(self, shape: Shape, rows: list[Row]) -> None:
        placeholders = ", ".join(["?"] * len(shape.columns))
        key = ", ".join(map(self._quote, key_columns(shape.table)))
        assignments = ", ".join(
            f"{self._quote(c)} = excluded.{self._quote(c)}" for c in not_key(shape)
        )
        action = f"update set {assignments}" if assignments else "nothing"
        self._run(
            f"insert into {self._name(shape.table)} ({self._columns(shape)}) "
            f"values ({placeholders}) on conflict ({key}) do {action}",
            rows,
        )

    def _update(self, shape: Shape, rows: list[Row]) -> None:
        self._update_each(self._name(shape.table), shape, rows)

    def _is_not_unique(self, error: BaseException | None) -> bool:
        return error_code(error) in NOT_UNIQUE

    def _set_aside(self, table: sa.Table, writes: Writes) -> None:
        """Take the rows out into a scratch table, give them their values there, put them back."""
        name, is_key = self._name(table), self._equal(key_columns(table))
        self._require_loose(table)
        columns = ", ".join(map(self._quote, self._stored_columns(table)))
        key = ", ".join(map(self._quote, key_columns(table)))
        self._run("pragma defer_foreign_keys = on")  # rows that refer to these must wait for them
        self._run(f"create table {_ASIDE} as select {columns} from {name} where false")
        self._run(f"create unique index temp.cdc_aside_key on cdc_aside ({key})")
        for (_, shape), rows in writes.items():
            keys = self._keys(shape, rows)
            self._run(f"insert into {_ASIDE} select {columns} from {name} where {is_key}", keys)
            self._run(f"delete from {name} where {is_key}", keys)
            if not_key(shape):
                self._update_each(_ASIDE, shape, rows)
        self._run(f"insert into {name} ({columns}) select {columns} from {_ASIDE}")
        self._run(f"drop table {_ASIDE}")
        self._run("pragma defer_foreign_keys = off")
        if table.foreign_key_constraints:
            self._check_foreign_keys(table)

    def _require_loose(self, table: sa.Table) -> None:
        """Refuse where rows that refer to these would go with them, or be left behind."""
        key = {None, *key_columns(table)}
        for row in self._run(_REFERENCES, [(table.name,)]):
            if row.on_delete not in _HARMLESS or row.to not in key:
                raise tied(table)

    def _check_foreign_keys(self, table: sa.Table) -> None:
        if self._run(f"pragma foreign_key_check({self._quote(table.name)})").fetchmany(1):
            raise RowsRefused(f"FOREIGN KEY constraint failed, table {table.name}")

    def _stored_columns(self, table: sa.Table) -> list[str]:
        """Name the columns that are not generated, those the read model does not know too."""
        described = self._run(
            "select name from pragma_table_xinfo(?) where hidden = 0", [(table.name,)]
        )
        return [str(name) for name in described.scalars()]


def _length(column: "sa.Column[object]") -> int | None:
    """SQLite minds no length: what is longer than declared is refused here."""
    return column.type.length if isinstance(column.type, sa.String) else None

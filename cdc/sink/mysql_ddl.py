"""How MySQL and MariaDB store columns without rounding, cutting or folding a value."""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.mysql.base import MySQLDDLCompiler, MySQLTypeCompiler

from cdc.errors import ReadTableMismatch
from cdc.projection.mirror import PostgresType
from cdc.sink.storage import Storage, columns_beside, length_of, storage_of

INDEX_BYTES: Final = 3072  # of InnoDB's DYNAMIC row format
_CHARACTER_BYTES: Final = 4
_UUID: Final = "CHAR(36) CHARACTER SET ascii COLLATE ascii_bin"
_NATIVE: Final = {
    Storage.SMALLINT: "SMALLINT",
    Storage.INTEGER: "INTEGER",
    Storage.BIGINT: "BIGINT",
    Storage.BOOLEAN: "BOOL",
    Storage.UUID: _UUID,
    Storage.TIME: "TIME(6)",
}


def collation(dialect: sa.Dialect) -> str:
    """Name the collation that tells 'a' from 'A', 'á' and 'a ' alike."""
    return "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"


def key_bytes(column: "sa.Column[object] | None") -> int | None:
    """Give how many bytes a value may have to fit its indexes; None where it is in none."""
    beside = columns_beside(column) if column is not None else 0
    return INDEX_BYTES // beside if beside else None


def key_characters(column: "sa.Column[object]", limit: int | None) -> int | None:
    """Give how many characters a value may have; None where its column is unlimited."""
    share = key_bytes(column)
    if share is None:
        return limit
    characters = share // _CHARACTER_BYTES
    return characters if limit is None else min(characters, limit)


class ExactTypes(MySQLTypeCompiler):
    """SQLAlchemy's types as columns that hold every value the type promises.

    Without it VARCHAR lacks a length, TEXT and BLOB end at 64 KB, DATETIME and TIME lose the
    microseconds, FLOAT has single precision, and NUMERIC is DECIMAL(10,0).
    """

    def visit_user_defined(self, type_: Any, **kw: Any) -> str:
        if not isinstance(type_, PostgresType):
            return str(super().visit_user_defined(type_, **kw))
        stored = storage_of(type_)
        if stored is Storage.BYTES:
            return self._bytes(None, **kw)
        return _NATIVE.get(stored) or self._text(length_of(type_), bounded=False, **kw)

    def visit_VARCHAR(self, type_: Any, **kw: Any) -> str:
        return self._text(type_.length, bounded=type_.length is not None, **kw)

    visit_NVARCHAR = visit_VARCHAR

    def visit_TEXT(self, type_: Any, **kw: Any) -> str:
        return self._text(type_.length, bounded=False, **kw)

    def visit_BLOB(self, type_: Any, **kw: Any) -> str:
        return self._bytes(type_.length, **kw)

    visit_large_binary = visit_BLOB

    def visit_DATETIME(self, type_: Any, **kw: Any) -> str:
        return "DATETIME(6)"

    visit_TIMESTAMP = visit_DATETIME

    def visit_TIME(self, type_: Any, **kw: Any) -> str:
        return "TIME(6)"

    def visit_FLOAT(self, type_: Any, **kw: Any) -> str:
        return "DOUBLE"

    visit_REAL = visit_FLOAT

    def visit_NUMERIC(self, type_: Any, **kw: Any) -> str:
        _require_precision(type_, kw.get("type_expression"))
        return str(super().visit_NUMERIC(type_, **kw))

    def visit_DECIMAL(self, type_: Any, **kw: Any) -> str:
        _require_precision(type_, kw.get("type_expression"))
        return str(super().visit_DECIMAL(type_, **kw))

    def _text(self, limit: int | None, *, bounded: bool, **kw: Any) -> str:
        column = kw.get("type_expression")
        collated = f"CHARACTER SET utf8mb4 COLLATE {collation(self.dialect)}"
        if column is not None and key_bytes(column) is not None:
            return f"VARCHAR({key_characters(column, limit)}) {collated}"
        return f"VARCHAR({limit}) {collated}" if bounded else f"LONGTEXT {collated}"

    def _bytes(self, limit: int | None, **kw: Any) -> str:
        share = key_bytes(kw.get("type_expression"))
        if share is None:
            return "LONGBLOB"
        return f"VARBINARY({share if limit is None else min(share, limit)})"


def _require_precision(type_: Any, column: object) -> None:
    if type_.precision is None:
        raise ReadTableMismatch(
            f"the Numeric column {column} has no precision: MySQL would round it to whole numbers",
            hint="sa.Numeric(20, 5), at most 65 digits, 30 of them after the point; or sa.String",
        )


class ExactTables(MySQLDDLCompiler):
    """Tables that are made whole by one statement: MySQL commits each of them by itself."""

    def get_column_specification(self, column: Any, **kw: Any) -> str:
        """Leave out AUTO_INCREMENT: keys are the source's."""
        return str(super().get_column_specification(column, **kw)).removesuffix(" AUTO_INCREMENT")

    def create_table_constraints(self, table: Any, *args: Any, **kw: Any) -> str:
        """Put the indexes into the table's own statement."""
        create: Any = super().create_table_constraints
        parts = [str(create(table, *args, **kw))]
        parts += [self._index(index) for index in sorted(table.indexes, key=lambda i: str(i.name))]
        return ", \n\t".join(part for part in parts if part)

    def define_constraint_deferrability(self, constraint: Any) -> str:
        """Refuse a constraint that would wait: there is none."""
        if constraint.deferrable or constraint.initially:
            raise ReadTableMismatch(
                f"a constraint of {constraint.table} is deferrable: MySQL knows none",
                hint="leave `deferrable` out: see docs/read-databases.md for what comes out right",
            )
        return ""

    def _index(self, index: sa.Index) -> str:
        expressions: list[Any] = list(index.expressions)
        columns = ", ".join(
            self.sql_compiler.process(expression, include_table=False, literal_binds=True)
            for expression in expressions
        )
        unique = "UNIQUE " if index.unique else ""
        return f"{unique}INDEX {self.preparer.format_index(index)} ({columns})"

    def post_create_table(self, table: Any) -> str:
        ours = f" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={collation(self.dialect)}"
        return ours + str(super().post_create_table(table))

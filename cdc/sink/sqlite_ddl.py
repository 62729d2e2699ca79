"""How SQLite stores columns without rounding a value."""

from typing import Any, Final

from sqlalchemy.dialects.sqlite.base import SQLiteDDLCompiler, SQLiteTypeCompiler

from cdc.errors import ReadTableMismatch
from cdc.projection.mirror import PostgresType
from cdc.sink.storage import Storage, storage_of

_NATIVE: Final = {
    Storage.SMALLINT: "INTEGER",
    Storage.INTEGER: "INTEGER",
    Storage.BIGINT: "INTEGER",
    Storage.BOOLEAN: "BOOLEAN",
    Storage.BYTES: "BLOB",
}


class ExactTypes(SQLiteTypeCompiler):
    """SQLAlchemy's types, but for NUMERIC: SQLite has none, and would keep a binary fraction."""

    def visit_user_defined(self, type_: Any, **kw: Any) -> str:
        if isinstance(type_, PostgresType):
            return _NATIVE.get(storage_of(type_), "TEXT")
        return str(super().visit_user_defined(type_, **kw))

    def visit_NUMERIC(self, type_: Any, **kw: Any) -> str:
        column = kw.get("type_expression")
        raise ReadTableMismatch(
            f"SQLite would round the Numeric column {column}: it has binary fractions alone",
            hint='sa.Numeric(...).with_variant(sa.String(), "sqlite"), and give it str(value); '
            "or sa.Float",
        )

    visit_DECIMAL = visit_NUMERIC

    def visit_JSON(self, type_: Any, **kw: Any) -> str:
        return "TEXT"  # JSON has numeric affinity: a document that is one number would be rounded


class ExactTables(SQLiteDDLCompiler):
    """SQLAlchemy's tables, but for what is no SQL there."""

    def visit_unique_constraint(self, constraint: Any, **kw: Any) -> str:
        """Refuse a unique constraint that would wait: only foreign keys do."""
        if constraint.deferrable or constraint.initially:
            raise ReadTableMismatch(
                f"a unique constraint of {constraint.table} is deferrable: SQLite knows none",
                hint="leave `deferrable` out: see docs/read-databases.md for what comes out right",
            )
        unique: Any = super().visit_unique_constraint
        return str(unique(constraint, **kw))

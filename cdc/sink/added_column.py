"""Spell the addition of a column to a mirror's read table.

Rows from before have in it what the source's have. It is the column's default, for rows of before
that are still to come have the same in it.
"""

from typing import Any

import sqlalchemy as sa

from cdc.sink.binding import Binding
from cdc.sink.tables import catalog_of, type_sql


def add_column(connection: sa.Connection, column: "sa.Column[Any]", *, past: str | None) -> str:
    """Give the statement; `past` is what rows from before have in it, as the source prints it."""
    catalog = catalog_of(connection)
    type_ = type_sql(connection, column)
    default = "" if past is None else f" default {_default(connection, column, past)}"
    table, name = catalog.name(column.table), catalog.quote(column.name)
    return f"alter table {table} add column {name} {type_}{default};"


def _default(connection: sa.Connection, column: "sa.Column[Any]", past: str) -> str:
    """Spell a printed value as the dialect stores it."""
    if connection.dialect.name == "postgresql":
        return f"{catalog_of(connection).literal(past)}::{type_sql(connection, column)}"
    spelled = _spelled(connection, Binding(connection.dialect, _unlimited).stored(column, past))
    # LONGTEXT and LONGBLOB have no defaults on MySQL but expressions.
    return f"({spelled})" if connection.dialect.name == "mysql" else spelled


def _spelled(connection: sa.Connection, stored: object) -> str:
    match stored:
        case bytes():
            return f"x'{stored.hex()}'"
        case int():
            return str(stored)
        case _:
            return catalog_of(connection).literal(str(stored))


def _unlimited(_column: object) -> None:
    """Tell that the column takes values of any length: it is in no key."""

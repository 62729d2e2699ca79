"""How columns of mirrors are stored where the read database is not Postgres.

The rule: a type is native where every value of it fits exactly, NaN and infinity included;
everything else is kept as the text Postgres prints. docs/read-databases.md has the table.
"""

import re
from enum import Enum, auto
from typing import Final

import sqlalchemy as sa

from cdc.projection.mirror import PostgresType

_KEYS: Final = (sa.PrimaryKeyConstraint, sa.UniqueConstraint, sa.ForeignKeyConstraint)
_MODIFIER: Final = re.compile(r"\((\d+)[^)]*\)")


class Storage(Enum):
    """What a column of a mirror is kept as."""

    SMALLINT = auto()
    INTEGER = auto()
    BIGINT = auto()
    BOOLEAN = auto()
    BYTES = auto()
    UUID = auto()
    TIME = auto()
    TEXT = auto()


NATIVE: Final = {
    "smallint": Storage.SMALLINT,
    "integer": Storage.INTEGER,
    "bigint": Storage.BIGINT,
    "oid": Storage.BIGINT,
    "boolean": Storage.BOOLEAN,
    "bytea": Storage.BYTES,
    "uuid": Storage.UUID,
    "time without time zone": Storage.TIME,
}


def storage_of(type_: PostgresType) -> Storage:
    """Say what values of a type are kept as."""
    return NATIVE.get(_MODIFIER.sub("", type_.type_sql), Storage.TEXT)


def length_of(type_: PostgresType) -> int | None:
    """Give the most characters a value may have: `character varying(20)`; None without limit."""
    limited = re.fullmatch(r"character(?: varying)?\((\d+)\)", type_.type_sql)
    return int(limited[1]) if limited else None


def original(column: "sa.Column[object]") -> "sa.Column[object]":
    """Give the read table's column that this one of a scratch table is like."""
    like = column.info.get("like", column)
    assert isinstance(like, sa.Column)  # noqa: S101  `like` sets nothing else
    return like


def like(column: "sa.Column[object]", *, primary_key: bool) -> "sa.Column[object]":
    """Make a scratch table's column that is stored as a read table's column is."""
    return sa.Column(
        column.name,
        column.type,
        primary_key=primary_key,
        autoincrement=False,
        info={"like": original(column)},
    )


def columns_beside(column: "sa.Column[object]") -> int:
    """Count the columns of the widest key, index or unique constraint the column is in."""
    table = original(column).table
    name = column.name
    if not isinstance(table, sa.Table):
        return 0
    keys = [constraint.columns for constraint in table.constraints if isinstance(constraint, _KEYS)]
    groups = [{c.name for c in group} for group in (*keys, *(i.columns for i in table.indexes))]
    return max((len(group) for group in groups if name in group), default=0)

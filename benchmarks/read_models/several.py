"""Many projectors of one source table, each with a read model of its own.

How many is told by the environment, since a module is all that the daemon is given.
"""

import os
from typing import Any, Final

import sqlalchemy as sa

from cdc import Change, Delete, Deleted, Inserted, Operation, Updated, Upsert, projector

VARIABLE: Final = "CDC_BENCH_PROJECTORS"
COLUMNS: Final = ("id", "customer", "name", "amount", "updated_at")


def read_name(number: int) -> str:
    """Give the name of a projector's read table."""
    return f"items_{number:02}"


def _projector(number: int) -> Any:
    model = sa.Table(
        read_name(number),
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("customer", sa.Integer),
        sa.Column("name", sa.Text),
        sa.Column("amount", sa.Numeric(12, 2)),
        sa.Column("updated_at", sa.DateTime(timezone=True)),
    )

    @projector("public.items", into=model, name=read_name(number))
    def project(change: Change) -> Operation | None:
        match change:
            case Deleted(key=key):
                return Delete(model, id=key["id"])
            case Inserted(row=row) | Updated(row=row):
                return Upsert(model, **{name: row[name] for name in COLUMNS})
        return None

    return project


globals().update({read_name(n): _projector(n) for n in range(int(os.environ.get(VARIABLE, "0")))})

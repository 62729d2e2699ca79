"""A projector that works with every column of a change as a Python value.

What it makes of the benchmark's rows is what they were, so that the source can tell whether the
read table is right.
"""

from datetime import UTC
from decimal import Decimal

import sqlalchemy as sa

from cdc import Change, Delete, Deleted, Inserted, Operation, Updated, Upsert, projector

_CENT = Decimal("0.01")

items = sa.Table(
    "items",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("customer", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("note", sa.Text),
    sa.Column("amount", sa.Numeric(12, 2), nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
)


@projector("public.items", into=items)
def item(change: Change) -> Operation | None:
    match change:
        case Deleted(key=key):
            return Delete(items, id=key["id"])
        case Inserted(row=row) | Updated(row=row):
            return Upsert(
                items,
                id=row["id"],
                customer=abs(row["customer"]),
                name=row["name"].strip(),
                note=row["note"] or None,
                amount=row["amount"].quantize(_CENT),
                active=row["active"] is True,
                updated_at=row["updated_at"].astimezone(UTC),
            )
    return None

"""The soak's projector: it fails on some rows until somebody mends it."""

import os
from collections.abc import Iterator

import sqlalchemy as sa

from cdc import Change, Delete, Deleted, Inserted, Operation, Updated, Upsert, projector

MENDED = "CHAOS_MENDED"  # in the environment: the projector was mended
POISON = "poison"
PARCEL_READ = sa.Table(
    "parcel_read",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("label", sa.Text, nullable=False),
)


@projector("public.parcel", into=PARCEL_READ)
def parcel(change: Change) -> Iterator[Operation]:
    match change:
        case Deleted(key=key):
            yield Delete(PARCEL_READ, id=key["id"])
        case Inserted(row=row) | Updated(row=row):
            if row["label"] == POISON and MENDED not in os.environ:
                raise ValueError("a label that nobody foresaw")
            yield Upsert(PARCEL_READ, id=row["id"], label=row["label"])

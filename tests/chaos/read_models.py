"""The campaign's projector: a read model that derives."""

from collections.abc import Iterator

import sqlalchemy as sa

from cdc import UNCHANGED, Change, Delete, Deleted, Inserted, Operation, Updated, Upsert, projector

SUMMARY = sa.Table(
    "summary",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("twice", sa.BigInteger, nullable=False),
    sa.Column("loud", sa.Text, nullable=False),
)


@projector("public.account", into=SUMMARY)
def summary(change: Change) -> Iterator[Operation]:
    match change:
        case Deleted(key=key):
            yield Delete(SUMMARY, id=key["id"])
        case Inserted(row=row) | Updated(row=row):
            note = row["note"]
            loud = UNCHANGED if note is UNCHANGED else note.upper()
            yield Upsert(SUMMARY, id=row["id"], twice=2 * row["balance"], loud=loud)

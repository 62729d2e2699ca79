"""What is printed of what holds rows, or secrets, shows neither."""

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from cdc import Delete, Update, Upsert
from cdc.assemble import Transaction
from cdc.change import Column, Deleted, Inserted, Relation, Updated
from cdc.chunk import Chunk
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.projection.batch import Batch, Effects, NetEffect
from cdc.projection.check import Expected
from cdc.projection.lines import BulkPlan, Lines, NetRows, Replaced
from cdc.rows import Bulk
from cdc.settings import Settings
from cdc.source.wal2json import _Column, _RawColumn

SECRET = "hush"
T = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True), sa.Column("v"))
RELATION = Relation(TableName("public", "t"), (Column("id", 25, 25), Column("v", 25, 25)), ("id",))
VALUES = (SECRET, SECRET)
CHANGES = [
    Inserted(RELATION, VALUES),
    Updated(RELATION, VALUES, (SECRET,), VALUES),
    Deleted(RELATION, (SECRET,), VALUES),
]
TRANSACTION = Transaction(1, Lsn(1), Lsn(2), datetime.now(UTC), list(CHANGES), 3)
SHAPE = Upsert(T, id=SECRET, v=SECRET).shape
PLAN = BulkPlan(SHAPE, (0, 1), SHAPE, (0,))
TEXT = SECRET.encode()
KEYS = {SECRET: TEXT}
UNIT: Any = "a unit"
NOT_OPENED: Any = None


def batch() -> Batch:
    effect = NetEffect()
    effect.add(Upsert(T, id=SECRET, v=SECRET))
    return Batch(transactions=[TRANSACTION], effect=effect)


@pytest.mark.parametrize(
    "thing",
    [
        *CHANGES,
        CHANGES[0].row,
        CHANGES[0].key,
        TRANSACTION,
        Upsert(T, id=SECRET, v=SECRET),
        Update(T, id=SECRET, v=SECRET),
        Delete(T, id=SECRET),
        batch(),
        batch().effect,
        Effects(writes={SECRET: Upsert(T, id=SECRET, v=SECRET)}),
        Lines(PLAN, [TEXT], KEYS, KEYS, [TEXT], TEXT),
        Replaced(PLAN, TEXT, (SECRET,), (SECRET,)),
        NetRows(KEYS, [SECRET], {SECRET}),
        Expected(Upsert, SHAPE, [VALUES], exists=True, text=TEXT),
        Bulk([TRANSACTION], [], lambda: [TRANSACTION], 1),
        Chunk(UNIT, 1, RELATION, NOT_OPENED, Lsn(1), TEXT, 1, (SECRET,)),
        _Column("v", 25, SECRET),
        _RawColumn("v", 25),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_values_of_rows_are_not_shown(thing: Any) -> None:
    assert SECRET not in f"{thing!r} {thing} {[thing]}"


def test_passwords_are_not_shown() -> None:
    sections: dict[str, Any] = {
        "source": {"dsn": f"postgresql://u:{SECRET}@h/d"},
        "read": {"url": f"postgresql+psycopg://u:{SECRET}@h/d"},
        "projection": {"hash_key": SECRET},
    }
    settings = Settings(**sections)
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()}"
    assert SECRET not in settings.model_dump_json()

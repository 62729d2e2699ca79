"""What is known of read tables' columns."""

import gc
import weakref

import sqlalchemy as sa

from cdc.operation import shape_of


def made() -> sa.Table:
    return sa.Table("t", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True))


def test_a_table_has_one_shape_of_the_same_columns():
    table = made()
    assert shape_of(table, ("id",), text=True) is shape_of(table, ("id",), text=True)
    assert shape_of(table, ("id",), text=True) is not shape_of(table, ("id",), text=False)
    assert shape_of(made(), ("id",), text=True).table is not table


def test_a_table_that_nobody_uses_any_more_is_forgotten_with_its_shapes():
    table = made()
    shape_of(table, ("id",), text=True).subset(("id",))
    gone = weakref.ref(table)
    del table
    gc.collect()
    assert gone() is None

"""Rows from before and after the catalog was read: news, gone, or renamed."""

import pytest

from cdc.change import Change, Inserted, Relation
from cdc.errors import CatalogOutdated
from cdc.names import TableName
from cdc.operation import Operation
from cdc.projection.mirror import mirrors
from cdc.schema import SourceColumn, SourceTable
from cdc.settings import MirrorSettings
from cdc.snapshot import Snapshot
from cdc.source.relations import Relations

T = TableName("public", "t")
BEFORE, AFTER = 99, 100
SEEN = Snapshot(100)


def source(*names: str) -> SourceTable:
    columns = tuple(
        SourceColumn(name, 25, "text", 25, "text", generated=False, typmod=-1) for name in names
    )
    return SourceTable(T, columns, ("id",), "default")


def described(xid: int, catalog: SourceTable, *names: str, type_oid: int = 25) -> Relation:
    relations = Relations({T: catalog}, SEEN)
    relations.begin(xid)
    columns = [relations.column(name, type_oid if name != "id" else 25) for name in names]
    return relations.described(T, columns, ("id",))


def operations(catalog: SourceTable, change: Change, **settings: object) -> list[Operation]:
    wanted = MirrorSettings(source="public.*", **settings)
    (mirror,) = mirrors([wanted], {T: catalog}, hash_key=b"")
    return list(mirror.operations(change))


def test_a_column_that_the_catalog_lacks_is_news_or_gone() -> None:
    catalog = source("id", "v")
    assert described(AFTER, catalog, "id", "v", "w").news == {"w"}
    assert described(AFTER, catalog, "id", "v", "w").gone == frozenset()
    assert described(BEFORE, catalog, "id", "v", "w").gone == {"w"}
    assert described(BEFORE, catalog, "id", "v", "w").news == frozenset()


def test_another_type_is_news_where_the_catalog_is_older() -> None:
    catalog = source("id", "v")
    assert described(AFTER, catalog, "id", "v", type_oid=23).news == {"v"}
    assert described(BEFORE, catalog, "id", "v", type_oid=23).news == frozenset()


def test_another_precision_is_news_where_the_plugin_tells_it() -> None:
    relations = Relations({T: source("id", "v")}, SEEN)
    relations.begin(AFTER)
    for typmod, news in ((None, set()), (-1, set()), (9, {"v"})):
        columns = [relations.column("id", 25), relations.column("v", 25, typmod)]
        assert relations.described(T, columns, ("id",)).news == news


def test_a_mirror_leaves_out_what_is_gone_and_stops_at_news_that_it_carries() -> None:
    catalog = source("id", "v")
    gone = Inserted(described(BEFORE, catalog, "id", "v", "w"), ("1", "a", "b"))
    news = Inserted(described(AFTER, catalog, "id", "v", "w"), ("1", "a", "b"))
    (upsert,) = operations(catalog, gone)
    assert (upsert.shape.columns, upsert.values) == (("id", "v"), ("1", "a"))
    with pytest.raises(CatalogOutdated, match='"w"'):
        operations(catalog, news)
    (upsert,) = operations(catalog, news, exclude=["w"])
    assert upsert.values == ("1", "a")


def test_a_value_goes_where_a_renamed_column_was_told_to_stay() -> None:
    catalog = source("id", "w")
    before = Inserted(described(BEFORE, catalog, "id", "v"), ("1", "a"))
    (upsert,) = operations(catalog, before, rename={"w": "v"})
    assert (upsert.shape.columns, upsert.values) == (("id", "v"), ("1", "a"))


def test_former_names_are_those_of_rows_from_before_alone() -> None:
    relations = Relations({T: source("id", "w")}, SEEN, {T: {"v": "w"}})
    relations.begin(BEFORE)
    assert relations.named(T, ["id", "v"]) == ["id", "w"]
    assert relations.named(T, ["id", "w"]) == ["id", "w"]
    assert relations.named(T, ["v", "w"]) == ["v", "w"]
    assert relations.begin(AFTER)
    assert relations.named(T, ["id", "v"]) == ["id", "v"]


def test_relations_are_described_anew_where_the_catalog_becomes_the_older() -> None:
    relations = Relations({T: source("id")}, Snapshot(100, frozenset({98})))
    assert [relations.begin(xid) for xid in (97, 99, 98, 97, 100, 101)] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]

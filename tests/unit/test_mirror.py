"""Mirrors: tables carried over without code."""

from typing import Any

import pytest

from cdc.change import Change, Deleted, Inserted, Relation, Truncated, Updated
from cdc.errors import ProjectionError, RegistryError
from cdc.names import TableName
from cdc.operation import Append, Delete, Move, Operation, Truncate, Update, Upsert
from cdc.projection.batch import NetEffect
from cdc.projection.mirror import Mirror, mirrors
from cdc.projection.registry import Registry
from cdc.schema import SourceColumn, SourceTable
from cdc.settings import MirrorSettings
from cdc.source.relations import Relations
from cdc.values import UNCHANGED

COLUMNS = {"id": 23, "name": 25, "email": 25, "phone": 25, "k": 23, "g": 23}


def table(
    name: str = "authors",
    *columns: str,
    key: tuple[str, ...] = ("id",),
    schema: str = "public",
    generated: str = "",
) -> SourceTable:
    described = tuple(
        SourceColumn(
            c, COLUMNS[c], "", COLUMNS[c], "int" if COLUMNS[c] == 23 else "text", c == generated
        )
        for c in columns or ("id", "name", "email", "phone")
    )
    return SourceTable(TableName(schema, name), described, key, "default")


def built(*tables: SourceTable, **settings: Any) -> list[Mirror]:
    return mirrors(
        [MirrorSettings(**{"source": "public.authors"} | settings)],
        {one.name: one for one in tables or (table(),)},
        hash_key=b"key",
    )


def one(*tables: SourceTable, **settings: Any) -> Mirror:
    (mirror,) = built(*tables, **settings)
    return mirror


def relation(source: SourceTable | None = None) -> Relation:
    source = source or table()
    return Relations({source.name: source}).known(source.name)


def shown(operations: Any) -> list[dict[str, Any]]:
    return [dict(zip(o.shape.columns, o.values, strict=True)) for o in operations]


ROW = ("1", "Ada", "ada@x.org", "123")


def carried(mirror: Mirror, change: Change) -> list[Operation]:
    return list(mirror.operations(change))


def test_a_mirror_carries_the_text_and_decodes_nothing() -> None:
    (upsert,) = carried(one(), Inserted(relation(), ROW))
    assert type(upsert) is Upsert
    assert upsert.shape.text
    assert upsert.shape.full
    assert upsert.values is ROW


def test_columns_are_left_out_renamed_and_masked() -> None:
    mirror = one(
        target="author_read",
        exclude=["phone"],
        rename={"name": "full_name"},
        mask={"email": "hash"},
    )
    assert [c.name for c in mirror.table.columns] == ["id", "full_name", "email"]
    (row,) = shown(carried(mirror, Inserted(relation(), ROW)))
    assert row["full_name"] == "Ada"
    assert len(row["email"]) == 64
    (null,) = shown(carried(mirror, Inserted(relation(), ("1", None, None, None))))
    assert null == {"id": "1", "full_name": None, "email": None}


def test_a_masked_value_leaves_in_no_operation() -> None:
    mirror = one(mask={"email": "hash", "phone": "null"})
    changes: list[Change] = [
        Inserted(relation(), ROW),
        Updated(relation(), ROW, ("9",), ("9", *ROW[1:])),
        Deleted(relation(), ("1",), ROW),
    ]
    for change in changes:
        for operation in carried(mirror, change):
            assert "ada@x.org" not in operation.values
            assert "123" not in operation.values


def test_the_hash_depends_on_its_key_and_on_the_text() -> None:
    schema = {table().name: table()}
    settings = [MirrorSettings(source="public.authors", mask={"email": "hash"})]
    hashes = set()
    for key in (b"", b"a", b"b"):
        (mirror,) = mirrors(settings, schema, hash_key=key)
        for email in ("x", "y", ""):
            (row,) = shown(carried(mirror, Inserted(relation(), ("1", "n", email, "p"))))
            hashes.add(row["email"])
    assert len(hashes) == 9


def test_a_masked_value_that_was_not_sent_stays_unsent() -> None:
    mirror = one(mask={"email": "hash"})
    (update,) = carried(mirror, Updated(relation(), ("1", "n", UNCHANGED, "p"), partial=True))
    assert type(update) is Update
    assert shown([update]) == [{"id": "1", "name": "n", "phone": "p"}]


def test_a_changed_key_moves_the_row() -> None:
    change = Updated(relation(), ("2", "n", UNCHANGED, "p"), ("1",), partial=True)
    move, write = carried(one(), change)
    assert isinstance(move, Move)
    assert (move.old_key, move.key) == ("1", "2")
    assert type(write) is Update


def test_a_move_pairs_old_and_new_in_the_order_of_the_read_tables_key() -> None:
    source = table("authors", "k", "id", "name", key=("id", "k"))
    move, write = carried(
        one(source), Updated(relation(source), ("10", "2", "n"), old_key_values=("1", "10"))
    )
    assert isinstance(move, Move)
    assert isinstance(write, Upsert)
    assert move.key == write.key
    assert dict(zip([c.name for c in move.shape.table.primary_key], move.old_key, strict=True)) == {
        "id": "1",
        "k": "10",
    }


def test_a_delete_and_an_upsert_of_one_row_meet_under_one_key() -> None:
    source = table("authors", "k", "id", "name", key=("id", "k"))
    mirror, effect = one(source), NetEffect()
    for change in (
        Inserted(relation(source), ("1", "2", "n")),
        Deleted(relation(source), ("2", "1")),
    ):
        for operation in carried(mirror, change):
            effect.add(operation)
    effects = effect.segments[0][mirror.table]
    assert not effects.writes
    assert len(effects.deletes) == 1


def test_a_delete_and_a_truncate() -> None:
    mirror = one(rename={"id": "author_id"})
    (delete,) = carried(mirror, Deleted(relation(), ("1",)))
    assert type(delete) is Delete
    assert shown([delete]) == [{"author_id": "1"}]
    (truncate,) = carried(mirror, Truncated(relation()))
    assert isinstance(truncate, Truncate)
    assert truncate.table is mirror.table


def test_insert_only_appends_and_ignores_updates_and_deletes() -> None:
    source = table(key=())
    mirror = one(source, insert_only=True)
    assert not mirror.table.primary_key.columns
    (append,) = carried(mirror, Inserted(relation(source), ROW))
    assert isinstance(append, Append)
    assert carried(mirror, Updated(relation(source), ROW)) == []
    assert carried(mirror, Deleted(relation(source), ())) == []


def test_insert_only_of_a_table_with_a_key_appends_too() -> None:
    mirror = one(insert_only=True)
    assert not mirror.table.primary_key.columns
    assert carried(mirror, Updated(relation(), ROW, ("9",))) == []
    assert carried(mirror, Deleted(relation(), ("9",))) == []
    assert isinstance(carried(mirror, Inserted(relation(), ROW))[0], Append)


def test_a_generated_column_is_no_column_that_stays_null() -> None:
    source = table("authors", "id", "g", generated="g")
    mirror = one(source)
    assert [c.name for c in mirror.table.columns] == ["id"]
    assert relation(source).names == ("id",)


def test_a_pattern_covers_tables_and_one_named_outright_wins() -> None:
    tables = {t.name: t for t in (table("authors"), table("posts"), table("posts", schema="other"))}
    found = mirrors(
        [
            MirrorSettings(source="public.posts", exclude={"phone"}),
            MirrorSettings(source="public.*"),
        ],
        tables,
        hash_key=b"",
    )
    columns = {mirror.table.name: len(mirror.table.columns) for mirror in found}
    assert columns == {"authors": 4, "posts": 3}


def test_a_pattern_may_exclude_a_column_that_not_every_table_has() -> None:
    (mirror,) = built(source="public.*", exclude=["phone", "nothing"])
    assert len(mirror.table.columns) == 3


def test_two_mirrors_of_one_table_are_both_built() -> None:
    found = mirrors(
        [
            MirrorSettings(source="public.authors", target="a"),
            MirrorSettings(source="public.authors", target="b"),
        ],
        {table().name: table()},
        hash_key=b"",
    )
    assert {mirror.table.name for mirror in found} == {"a", "b"}
    assert len(Registry(found).of(table().name)) == 2


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        (None, {"source": "public.nothing"}, ["public.nothing"]),
        (None, {"source": "nothing.*"}, ["nothing.*"]),
        (None, {"source": "public.*", "target": "x"}, ["public.*", "target"]),
        (table(key=()), {}, ["public.authors", "insert_only"]),
        (None, {"exclude": ["id"]}, ['"id"']),
        (None, {"mask": {"id": "hash"}}, ['"id"']),
        (None, {"exclude": ["emial"]}, ['"emial"']),
        (None, {"rename": {"emial": "x"}}, ['"emial"']),
        (None, {"mask": {"emial": "null"}}, ['"emial"']),
        (None, {"rename": {"name": "email"}}, ['"email"']),
        (None, {"rename": {"name": "x", "email": "x"}}, ['"x"']),
        (
            table("Straße 1", key=()),
            {"source": 'public."Straße 1"'},
            ['alter table public."Straße 1"'],
        ),
    ],
)
def test_what_cannot_be_mirrored_is_refused(
    source: SourceTable | None, settings: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(RegistryError) as caught:
        built(source or table(), **settings)
    for part in said:
        assert part in f"{caught.value} {caught.value.hint}"


def test_two_mirrors_into_one_read_table_are_refused() -> None:
    tables = (table("authors"), table("authors", schema="other"))
    with pytest.raises(RegistryError, match="authors"):
        built(*tables, source="*.authors")
    twice = [MirrorSettings(source="public.authors"), MirrorSettings(source="public.authors")]
    with pytest.raises(RegistryError, match="authors"):
        mirrors(twice, {table().name: table()}, hash_key=b"")


def test_a_mirror_does_not_write_our_own_bookkeeping() -> None:
    with pytest.raises(RegistryError, match="cdc_checkpoint"):
        Registry(built(target="cdc_checkpoint"))


def test_a_column_that_the_read_table_lacks_stops_with_its_name() -> None:
    mirror = one()
    wider = relation(table("authors", "id", "name", "email", "phone", "k"))
    with pytest.raises(ProjectionError, match='"k"') as caught:
        carried(mirror, Inserted(wider, (*ROW, "1")))
    assert "Ada" not in f"{caught.value} {caught.value.hint}"


def test_a_column_that_is_gone_keeps_its_place_in_the_read_table() -> None:
    (upsert,) = carried(one(), Inserted(relation(table("authors", "id", "name")), ("1", "n")))
    assert isinstance(upsert, Upsert)
    assert upsert.shape.columns == ("id", "name")
    assert not upsert.shape.full


class Interrupted(Mirror):
    """A mirror that another thread comes to use after each thing that it notes."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        change = self.__dict__.pop("waiting", None)
        if change is not None:
            self.__dict__["seen"] += shown(self.operations(change))
            self.__dict__["waiting"] = change


def test_two_threads_may_carry_rows_of_other_descriptions_at_once() -> None:
    """The writer's thread reads in order what the other thread is past."""
    source = table()
    made = one(source)
    mirror = Interrupted(made.name, made.source, made.table, made.settings, made.hash_key)
    usual = relation(source)
    turned = Relation(usual.name, usual.columns[::-1], usual.key)
    expected = dict(zip(COLUMNS, ROW, strict=False))
    assert shown(mirror.operations(Inserted(turned, ROW[::-1]))) == [expected]
    mirror.__dict__.update(waiting=Inserted(turned, ROW[::-1]), seen=[])
    assert shown(mirror.operations(Inserted(usual, ROW))) == [expected]
    seen = mirror.__dict__["seen"]
    assert seen
    assert all(row == expected for row in seen)

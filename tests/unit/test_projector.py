"""Projectors written as functions: what they mean, and what is refused."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cdc import (
    UNCHANGED,
    Change,
    Delete,
    Deleted,
    Inserted,
    Operation,
    Truncate,
    Truncated,
    Update,
    Updated,
    Upsert,
    projector,
)
from cdc.assemble import Transaction
from cdc.change import Column, Relation
from cdc.errors import (
    ProjectionError,
    ProjectorImportError,
    RegistryError,
    UnknownColumn,
    ValueUnreadable,
)
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operation import Move
from cdc.projection.project import project
from cdc.projection.projector import FunctionProjector
from cdc.projection.registry import Registry, load

SECRET = "s3cr3t"
POSTS = Relation(
    TableName("public", "posts"),
    (
        Column("id", 23, 23),
        Column("title", 25, 25),
        Column("body", 25, 25),
        Column("at", 1184, 1184),
    ),
    ("id",),
)
METADATA = sa.MetaData()
READ = sa.Table(
    "post_read",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("title", sa.Text),
    sa.Column("body", sa.Text),
)
LISTED = sa.Table("listed", sa.MetaData(), sa.Column("id", sa.ARRAY(sa.Text), primary_key=True))
TAGS = sa.Table(
    "post_tag",
    METADATA,
    sa.Column("post_id", sa.Integer, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("tag", sa.Text),
)
NO_KEY = sa.Table("no_key", METADATA, sa.Column("id", sa.Integer))


class Base(DeclarativeBase):
    pass


class PostRead(Base):
    __tablename__ = "mapped_post"
    id: Mapped[int] = mapped_column("post_id", primary_key=True)
    title: Mapped[str]


def inserted(key: str = "1", body: Any = "b") -> Inserted:
    return Inserted(POSTS, (key, SECRET, body, "infinity"))


def updated(key: str = "1", *, old: str | None = None, body: Any = "b") -> Updated:
    values = (key, SECRET, body, "infinity")
    return Updated(POSTS, values, (old,) if old else None, partial=body is UNCHANGED)


def deleted(key: str = "1") -> Deleted:
    return Deleted(POSTS, (key,))


TRUNCATED = Truncated(POSTS)


def simple(change: Change) -> Iterator[Operation]:
    match change:
        case Deleted(key=key):
            yield Delete(READ, id=key["id"])
        case Inserted(row=row) | Updated(row=row):
            yield Upsert(READ, id=row["id"], title=row["title"], body=row["body"])


def projecting(function: Any, *into: sa.Table, **more: Any) -> FunctionProjector:
    return projector("public.posts", into=into or (READ,), **more)(function)


def operations(one: FunctionProjector, *changes: Change) -> list[Operation]:
    whole = Transaction(1, Lsn(0x16B3748), Lsn(9), datetime(2024, 1, 1, tzinfo=UTC), [*changes], 1)
    return [operation for _, operation in project(whole, Registry([one]))]


def refusal(function: Any, *changes: Change) -> str:
    with pytest.raises(ProjectionError) as caught:
        operations(
            projecting(function, READ, TAGS, name="posts_to_read"), *(changes or (inserted(),))
        )
    message = str(caught.value)
    for said in ("posts_to_read", "public.posts", "0/16B3748", "id='1'"):
        assert said in message
    assert SECRET not in message + str(caught.value.hint)
    return message


def test_a_call_is_seen_while_it_runs_and_counted() -> None:
    seen = []

    def watched(change: Change) -> Iterator[Operation]:
        seen.append((one.calls.count, one.calls.running))
        yield from simple(change)
        if one.calls.count > 2:
            raise LookupError

    one = projecting(watched)
    operations(one, inserted(), updated())
    assert seen == [(1, True), (2, True)]
    with pytest.raises(ProjectionError):
        operations(one, deleted())
    assert (one.calls.count, one.calls.running) == (3, False)


def test_changes_become_operations() -> None:
    assert operations(projecting(simple), inserted(), updated(), deleted()) == [
        Upsert(READ, id=1, title=SECRET, body="b"),
        Upsert(READ, id=1, title=SECRET, body="b"),
        Delete(READ, id=1),
    ]


def test_a_value_that_was_not_sent_is_left_out_of_the_write() -> None:
    assert operations(projecting(simple), updated(body=UNCHANGED)) == [
        Update(READ, id=1, title=SECRET)
    ]


@pytest.mark.parametrize("body", ["b", UNCHANGED])
def test_a_changed_key_moves_the_row_so_that_unsent_columns_stay(body: Any) -> None:
    move, write = operations(projecting(simple), updated("2", old="1", body=body))
    assert isinstance(move, Move)
    assert (move.old_key, move.key) == (1, 2)
    expected = Update if body is UNCHANGED else Upsert
    assert type(write) is expected
    assert write.key == 2


def test_a_changed_key_whose_row_is_no_longer_wanted_is_deleted() -> None:
    def filtered(change: Change) -> Operation | None:
        if isinstance(change, Deleted):
            return Delete(READ, id=change.key["id"])
        return None

    assert operations(projecting(filtered), updated("2", old="1")) == [Delete(READ, id=1)]


def test_a_changed_key_that_the_read_row_does_not_have_touches_it_once() -> None:
    def by_constant(change: Change) -> Operation:
        return Delete(READ, id=7) if isinstance(change, Deleted) else Upsert(READ, id=7, title="t")

    found = operations(projecting(by_constant), updated("2", old="1"))
    assert found[-1] == Upsert(READ, id=7, title="t")
    assert not any(isinstance(operation, Delete) for operation in found)


def tagging(change: Change) -> Iterator[Operation]:
    for position in (1, 2):
        if isinstance(change, Deleted):
            yield Delete(TAGS, post_id=change.key["id"], position=position)
        else:
            row = change.row  # type: ignore[union-attr]
            yield Upsert(TAGS, post_id=row["id"], position=position, tag=row["body"])


def test_a_changed_key_with_several_read_rows_loses_none_of_their_unsent_columns() -> None:
    found = operations(projecting(tagging, TAGS), updated("2", old="1", body=UNCHANGED))
    moves = [(m.old_key, m.key) for m in found if isinstance(m, Move)]
    assert moves == [((1, 1), (2, 1)), ((1, 2), (2, 2))]
    assert not any(isinstance(operation, Delete) for operation in found)


def test_moves_that_cannot_be_told_are_an_error_where_columns_were_not_sent() -> None:
    def uneven(change: Change) -> Iterator[Operation]:
        yield from list(tagging(change))[: 1 if isinstance(change, Deleted) else 2]

    with pytest.raises(ProjectionError):
        operations(projecting(uneven, TAGS), updated("2", old="1", body=UNCHANGED))
    found = operations(projecting(uneven, TAGS), updated("2", old="1"))
    assert found[0] == Delete(TAGS, post_id=1, position=1)


def test_rows_of_two_read_tables_move_each() -> None:
    def both(change: Change) -> Iterator[Operation]:
        yield from simple(change)
        yield from list(tagging(change))[:1]

    found = operations(projecting(both, READ, TAGS), updated("2", old="1", body=UNCHANGED))
    assert {(m.shape.table.name, m.old_key) for m in found if isinstance(m, Move)} == {
        ("post_read", 1),
        ("post_tag", (1, 1)),
    }


def test_a_truncate_empties_the_read_tables_that_only_this_projector_writes() -> None:
    found = operations(projecting(simple, READ, TAGS), TRUNCATED)
    assert [operation.table for operation in found if isinstance(operation, Truncate)] == [
        READ,
        TAGS,
    ]


def test_a_projector_that_shares_a_table_must_say_what_a_truncate_means() -> None:
    first, second = projecting(simple, name="a"), projecting(simple, name="b")
    with pytest.raises(RegistryError, match="post_read") as caught:
        Registry([first, second])
    assert "on_truncate" in str(caught.value.hint)
    say = {"on_truncate": lambda _: None}
    Registry([projecting(simple, name="a", **say), projecting(simple, name="b", **say)])


def test_what_a_truncate_means_may_be_said() -> None:
    told = projecting(simple, on_truncate=lambda change: Delete(READ, id=len(change.relation.key)))
    assert operations(told, TRUNCATED) == [Delete(READ, id=1)]


@pytest.mark.parametrize("returned", [None, [], (), iter(())])
def test_a_projector_may_return_nothing(returned: Any) -> None:
    assert operations(projecting(lambda _: returned), inserted()) == []


def test_a_projector_may_return_one_operation_or_several() -> None:
    one = Upsert(READ, id=1)
    assert operations(projecting(lambda _: one), inserted()) == [one]
    assert operations(projecting(lambda _: [one, one]), inserted()) == [one, one]


def test_a_table_outside_into_is_an_error() -> None:
    outside = sa.Table("outside", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    assert "outside" in refusal(lambda _: Upsert(outside, id=1))
    assert "outside" in refusal(lambda _: Truncate(outside))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda _: Upsert(READ, id=1, titel=SECRET), ['"titel"', '"title"']),
        (lambda _: Update(READ, id=1, nothing=SECRET), ['"nothing"']),
        (lambda _: Upsert(READ, title=SECRET), ['"id"']),
        (lambda _: Upsert(TAGS, post_id=1), ['"position"']),
        (lambda _: Delete(READ, title=SECRET), ["post_read"]),
        (lambda _: Delete(READ, id=1, title=SECRET), ['"title"']),
        (lambda _: Upsert(READ, id=UNCHANGED), ["post_read"]),
        (lambda _: Delete(READ, id=UNCHANGED), ["post_read"]),
        (lambda _: Upsert(READ, id=None), ['"id" of post_read', "None", "int"]),
        (lambda _: Upsert(READ, id=SECRET), ['"id" of post_read', "a str", "int"]),
        (lambda _: Update(TAGS, post_id=1, position=[1]), ['"position"', "a list"]),
        (lambda _: Delete(READ, id=UUID(int=1)), ['"id" of post_read', "a UUID"]),
        (lambda _: {"id": SECRET}, ["str"]),
        (lambda _: 7, ["int"]),
        (lambda change: Upsert(READ, id=change.row["nothing"]), ['"nothing"']),
        (lambda change: Upsert(READ, id=1, title=change.row["tilte"]), ['"title"']),
        (lambda change: Upsert(READ, id=1, title=change.row["at"]), ['"at"', 'row.text("at")']),
        (lambda change: int(change.row["title"]), ["ValueError", "test_projector.py"]),
        (lambda change: {}[change.row["title"]], ["KeyError", "test_projector.py"]),
        (lambda change: change.row["title"].nothing, ["AttributeError"]),
        (lambda change: sys.exit(change.row["title"]), ["SystemExit"]),
        (lambda _: Upsert(LISTED, id=[SECRET]), ['"id" of listed', "a list"]),
    ],
)
def test_what_is_wrong_is_said_at_once_without_values(function: Any, said: list[str]) -> None:
    message = refusal(function)
    for part in said:
        assert part in message


def test_a_key_may_be_whatever_its_column_binds() -> None:
    class Lowered(sa.types.TypeDecorator[str]):
        impl = sa.Uuid
        cache_ok = True

    kinds: list[tuple[Any, Any]] = [
        (sa.Numeric, 1),
        (sa.BigInteger, Decimal(1)),
        (sa.Uuid, UUID(int=1)),
        (sa.Enum("a", "b"), "a"),
        (sa.DateTime(timezone=True), datetime(2026, 1, 1, tzinfo=UTC)),
        (Lowered, "text of a uuid"),
    ]
    for kind, value in kinds:
        one = sa.Table("one", sa.MetaData(), sa.Column("id", kind, primary_key=True))
        assert Upsert(one, id=value).key == value


def test_a_generator_that_raises_halfway_is_named_too() -> None:
    def half(change: Any) -> Iterator[Operation]:
        yield Upsert(READ, id=1)
        raise RuntimeError(change.row["title"])

    assert "RuntimeError" in refusal(half)


def test_unchanged_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="is UNCHANGED"):
        bool(UNCHANGED)
    assert repr(UNCHANGED) == "UNCHANGED"


def test_a_row_decodes_a_value_when_it_is_looked_at() -> None:
    row = inserted().row
    assert row["id"] == 1
    assert row.text("at") == "infinity"
    with pytest.raises(ValueUnreadable, match='"at"'):
        row["at"]
    with pytest.raises(UnknownColumn):
        row["nothing"]
    assert row.get("nothing", 5) == 5
    assert "nothing" not in row
    assert list(row) == ["id", "title", "body", "at"]
    assert SECRET not in repr(row) + repr(Upsert(READ, id=1, title=SECRET))


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (1082, "infinity"),
        (1082, "0044-03-15 BC"),
        (1082, "10000-01-01"),
        (1114, "-infinity"),
        (1114, "10000-01-01 00:00:00"),
        (1184, "0044-03-15 00:00:00+00 BC"),
        (1083, "24:00:00"),
        (1266, "24:00:00+00"),
        (1185, "{infinity}"),
        (3910, '["0044-03-15 00:00:00+00 BC",)'),
        (114, "1" * 5000),
        (3802, "[" * 100_000 + "]" * 100_000),
    ],
)
def test_a_value_that_python_cannot_hold_is_said_and_there_as_text(oid: int, text: str) -> None:
    relation = Relation(TableName("public", "t"), (Column("c", oid, oid),), ("c",))
    row = Inserted(relation, (text,)).row
    with pytest.raises(ValueUnreadable, match='"c"') as caught:
        row["c"]
    assert text not in str(caught.value)
    assert row.text("c") == text


def test_a_mapped_class_is_written_by_its_attributes() -> None:
    upsert = Upsert(PostRead, id=1, title="t")
    assert upsert.shape.table is PostRead.__table__
    assert upsert.shape.columns == ("post_id", "title")
    assert upsert.key == 1
    with pytest.raises(ProjectionError, match="post_id"):
        Upsert(PostRead, post_id=1)
    with pytest.raises(ProjectionError, match='"post_id"'):
        Upsert(PostRead, title="t")


@pytest.mark.parametrize("into", [int, "post_read", None, 7])
def test_what_is_no_read_model_is_refused(into: Any) -> None:
    with pytest.raises(ProjectionError, match="no read model"):
        projector("public.posts", into=into)


def test_a_malformed_table_name_is_refused() -> None:
    with pytest.raises(ValueError, match="not a table name"):
        projector("a.b.c", into=READ)


def test_two_projectors_of_one_name_are_refused() -> None:
    with pytest.raises(RegistryError, match="simple"):
        Registry([projecting(simple, READ), projecting(simple, TAGS)])


def test_two_definitions_of_one_read_table_are_refused() -> None:
    again = sa.Table("post_read", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(RegistryError, match="post_read"):
        Registry([projecting(simple, READ), projecting(simple, again, name="other")])


def test_a_read_model_without_a_key_is_refused() -> None:
    with pytest.raises(RegistryError, match="no_key"):
        Registry([projecting(simple, NO_KEY)])


def test_a_projector_is_still_the_function_it_was() -> None:
    found = projecting(simple)(inserted())
    assert list(found) == operations(projecting(simple), inserted())  # type: ignore[arg-type]


@pytest.fixture
def _here(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "good_projectors.py").write_text(
        "import sqlalchemy as sa\nfrom cdc import projector\n"
        "T = sa.Table('t', sa.MetaData(), sa.Column('id', sa.Integer, primary_key=True))\n"
        "@projector('a', into=T)\ndef one(change): ...\n"
        "@projector('b', into=T)\ndef two(change): ...\nalias = one\n"
    )
    (tmp_path / "again_projectors.py").write_text("from good_projectors import *\n")
    (tmp_path / "bad_projectors.py").write_text("\nimport nothing_of_this_name\n")
    (tmp_path / "leaving_projectors.py").write_text("\nraise SystemExit(0)\n")
    (tmp_path / "worse_projectors.py").write_text("def f(:\n")
    (tmp_path / "leaving_projectors.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "odd_projectors.py").write_text("class Odd(BaseException): ...\nraise Odd\n")
    (tmp_path / "loud_projectors.py").write_text(
        "import threading\nprint('loud')\nforever = threading.Thread(target=threading.Event().wait)\n"
        "forever.start()\n"
    )


@pytest.mark.usefixtures("_here")
def test_modules_are_searched_for_projectors_once_each() -> None:
    found = load(["good_projectors", "again_projectors", "good_projectors"])
    assert [one.name for one in found] == ["one", "two"]


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("bad_projectors", ["nothing_of_this_name", "bad_projectors.py:2"]),
        ("worse_projectors", ["SyntaxError"]),
        ("leaving_projectors", ["SystemExit", "leaving_projectors.py:2"]),
        ("no_such_projectors", ["no_such_projectors"]),
        ("leaving_projectors", ["SystemExit: 0", "leaving_projectors.py:2"]),
        ("odd_projectors", ["Odd", "odd_projectors.py:2"]),
    ],
)
def test_a_module_that_does_not_import_is_said_with_its_place(module: str, said: list[str]) -> None:
    with pytest.raises(ProjectorImportError) as caught:
        load([module])
    for part in said:
        assert part in str(caught.value)


@pytest.mark.usefixtures("_here")
def test_a_module_that_prints_leaves_the_answer_alone_and_its_threads_keep_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert load(["loud_projectors"]) == []
    assert capsys.readouterr() == ("", "loud\n")
    assert sys.modules["loud_projectors"].forever.daemon

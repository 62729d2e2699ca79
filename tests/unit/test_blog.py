"""The example read models: what becomes of a blog's posts and comments."""

import ast
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

import projectors.blog
from cdc import UNCHANGED, Delete, Deleted, Inserted, Update, Updated, Upsert
from cdc.change import Column, Relation
from cdc.demo import application
from cdc.names import TableName
from cdc.values import TEXT, Text
from projectors.blog import CommentRead, PostRead, comment, excerpt, post, slug

BIGINT, TIMESTAMPTZ = 20, 1184
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _relation(table: str, **columns: int) -> Relation:
    described = tuple(Column(name, oid, oid) for name, oid in columns.items())
    return Relation(TableName("public", table), described, ("id",))


POSTS = _relation("posts", id=BIGINT, author=TEXT, title=TEXT, body=TEXT, created_at=TIMESTAMPTZ)
COMMENTS = _relation(
    "comments", id=BIGINT, post_id=BIGINT, author=TEXT, body=TEXT, created_at=TIMESTAMPTZ
)
POST: tuple[Text, ...] = ("7", "ada", "What's new?", "It is\n\nspring.", "2026-03-01 12:00:00+00")
COMMENT: tuple[Text, ...] = ("9", "7", "bob", "  Nice!\n", "2026-03-01 12:00:00+00")


def _values(operation: Upsert | Update) -> dict[str, object]:
    return dict(zip(operation.shape.columns, operation.values, strict=True))


@pytest.mark.parametrize("change", [Inserted(POSTS, POST), Updated(POSTS, POST)])
def test_a_post_gets_an_address_and_an_excerpt(change):
    assert list(post(change)) == [
        Upsert(
            PostRead,
            id=7,
            slug="what-s-new",
            title="What's new?",
            excerpt="It is spring.",
            body="It is\n\nspring.",
            author="ada",
            published_at=NOON,
        )
    ]


@pytest.mark.parametrize("change", [Inserted(COMMENTS, COMMENT), Updated(COMMENTS, COMMENT)])
def test_a_comment_loses_the_white_space_around_it(change):
    assert list(comment(change)) == [
        Upsert(CommentRead, id=9, post_id=7, author="bob", body="Nice!", written_at=NOON)
    ]


def test_deleted_rows_are_deleted_by_key():
    assert list(post(Deleted(POSTS, ("7",)))) == [Delete(PostRead, id=7)]
    assert list(comment(Deleted(COMMENTS, ("9",)))) == [Delete(CommentRead, id=9)]


def test_a_body_that_was_not_sent_leaves_body_and_excerpt_as_they_are():
    unsent = (*POST[:3], UNCHANGED, POST[4])
    (operation,) = post.operations(Updated(POSTS, unsent, partial=True))
    assert isinstance(operation, Update)
    assert _values(operation) == {
        "id": 7,
        "slug": "what-s-new",
        "title": "What's new?",
        "author": "ada",
        "published_at": NOON,
    }


def test_a_comment_that_was_not_sent_stays_as_it_is():
    unsent = (*COMMENT[:3], UNCHANGED, COMMENT[4])
    (operation,) = comment.operations(Updated(COMMENTS, unsent, partial=True))
    assert isinstance(operation, Update)
    assert "body" not in _values(operation)


def test_a_slug_has_letters_of_any_script_and_single_dashes():
    assert slug("  Größe -- 東京, λόγος_2! 🌱") == "größe-東京-λόγος-2"


def test_an_excerpt_ends_between_words():
    assert excerpt("word " * 100) == "word " * 23 + "word…"


def test_the_relationship_has_an_index_and_no_foreign_key():
    table = CommentRead.metadata.tables["comment_read"]
    assert not table.foreign_keys
    assert [index.columns.keys() for index in table.indexes] == [["post_id"]]


def test_the_read_models_are_joined_from_both_sides():
    comments = sa.select(PostRead).join(PostRead.comments)
    posts = sa.select(CommentRead).join(CommentRead.post)
    on = "post_read.id = comment_read.post_id"
    assert on in str(comments)
    assert "comment_read.post_id = post_read.id" in str(posts)


def _imports(module: object) -> set[str]:
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [
        *(alias.name for node in found if isinstance(node, ast.Import) for alias in node.names),
        *(str(node.module) for node in found if isinstance(node, ast.ImportFrom)),
    ]
    return {name.partition(".")[0] for name in names}


def test_projectors_see_only_the_public_door():
    tree = ast.parse(Path(projectors.blog.__file__).read_text())
    modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    assert {name for name in modules if name.startswith("cdc")} == {"cdc"}


def test_the_application_knows_nothing_of_us():
    assert not _imports(application) & {"cdc", "projectors", "psycopg"}

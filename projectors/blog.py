"""A blog's read models: what its pages show, derived from its posts and comments."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from textwrap import shorten
from typing import Any

from sqlalchemy import BigInteger, DateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cdc import (
    UNCHANGED,
    Change,
    Delete,
    Deleted,
    Inserted,
    Operation,
    Updated,
    Upsert,
    projector,
)

EXCERPT_LENGTH = 120


class Base(DeclarativeBase):
    """What the blog's read tables belong to."""


# The relationship below has no FOREIGN KEY constraint underneath, on purpose. The write database
# has one and has checked every row; a second one would only cost: a look at the parent for every
# comment, no truncate of post_read alone, no rebuilding of one table while the other stays, and a
# daemon that stops where the tables are filled one after the other. What a join needs is the index.


class PostRead(Base):
    """A post as its page shows it."""

    __tablename__ = "post_read"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    slug: Mapped[str]
    title: Mapped[str]
    excerpt: Mapped[str]
    body: Mapped[str]
    author: Mapped[str]
    published_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))

    comments: Mapped[list["CommentRead"]] = relationship(
        primaryjoin="PostRead.id == foreign(CommentRead.post_id)",
        order_by="CommentRead.id",
        back_populates="post",
        viewonly=True,
    )


class CommentRead(Base):
    """A comment as it stands below its post."""

    __tablename__ = "comment_read"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    post_id: Mapped[int] = mapped_column(BigInteger, index=True)
    author: Mapped[str]
    body: Mapped[str]
    written_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))

    post: Mapped[PostRead] = relationship(
        primaryjoin="foreign(CommentRead.post_id) == PostRead.id",
        back_populates="comments",
        viewonly=True,
    )


@projector("public.posts", into=PostRead)
def post(change: Change) -> Iterator[Operation]:
    """Give a post its address and its excerpt."""
    match change:
        case Deleted(key=key):
            yield Delete(PostRead, id=key["id"])
        case Inserted(row=row) | Updated(row=row):
            yield Upsert(
                PostRead,
                id=row["id"],
                slug=derived(slug, row["title"]),
                title=row["title"],
                excerpt=derived(excerpt, row["body"]),
                body=row["body"],
                author=row["author"],
                published_at=row["created_at"],
            )


@projector("public.comments", into=CommentRead)
def comment(change: Change) -> Iterator[Operation]:
    """Carry a comment over, without the white space around it."""
    match change:
        case Deleted(key=key):
            yield Delete(CommentRead, id=key["id"])
        case Inserted(row=row) | Updated(row=row):
            yield Upsert(
                CommentRead,
                id=row["id"],
                post_id=row["post_id"],
                author=row["author"],
                body=derived(str.strip, row["body"]),
                written_at=row["created_at"],
            )


def derived(function: Callable[[str], str], value: Any) -> Any:
    """Derive a column from a text that may not have been sent.

    An update of another column does not bring a long text again (TOAST): it is UNCHANGED then, so
    is what derives from it, and both columns of the read row stay as they are.
    """
    return UNCHANGED if value is UNCHANGED else function(value)


def slug(title: str) -> str:
    """Make the readable part of an address: "What's new?" gives "what-s-new"."""
    return re.sub(r"[\W_]+", "-", title.lower()).strip("-")


def excerpt(body: str) -> str:
    """Give the beginning of a text, cut between words, on one line."""
    return shorten(body, EXCERPT_LENGTH, placeholder="…")

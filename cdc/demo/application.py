"""A blog: an ordinary application, which writes to its own database and knows of nothing else.

    python application.py migrate URL      make the tables
    python application.py serve URL        write until SIGTERM, then say how much

URL is SQLAlchemy's; without one, BLOG_DATABASE_URL in the environment is taken.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, DateTime, ForeignKey, Identity, create_engine, func, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

TRANSACTIONS_PER_SECOND: Final = 120
AUTHORS: Final = 12
VOCABULARY: Final = (
    "we you they a the this that write read change row table key page book river stone light "
    "winter summer city market garden train letter question answer because although never often "
    "slowly at last in of to from with without blue green wide small café naïve Größe 東京 λόγος 🌱"
)
WORDS: Final = VOCABULARY.split()


class Base(DeclarativeBase):
    """What the blog's tables belong to."""


class Author(Base):
    """Somebody who writes, known by a handle that may change."""

    __tablename__ = "authors"

    handle: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    password_hash: Mapped[str]
    joined_at: Mapped[datetime] = mapped_column(DateTime(True), server_default=func.now())


class Post(Base):
    """A post."""

    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    author: Mapped[str] = mapped_column(ForeignKey(Author.handle, onupdate="cascade"), index=True)
    title: Mapped[str]
    body: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(True), server_default=func.now())

    comments: Mapped[list["Comment"]] = relationship(
        back_populates="post", cascade="all, delete-orphan", passive_deletes=True
    )


class Comment(Base):
    """What somebody wrote below a post."""

    __tablename__ = "comments"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey(Post.id, ondelete="cascade"), index=True)
    author: Mapped[str] = mapped_column(ForeignKey(Author.handle, onupdate="cascade"), index=True)
    body: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(True), server_default=func.now())

    post: Mapped[Post] = relationship(back_populates="comments")


class ChangedMind(Exception):
    """Somebody pressed "cancel": the transaction is not to be."""


class Blog:
    """People who use the blog, as random as people are."""

    def __init__(self, url: str) -> None:
        self._sessions = sessionmaker(create_engine(url))
        self._random = random.Random()  # noqa: S311  nothing secret is drawn
        self._weights = self._actions()

    def _actions(self) -> dict[Callable[[Session], None], int]:
        """Give what people do, and how often out of a hundred times."""
        return {
            self._publish: 16,
            self._discuss: 12,
            self._comment: 30,
            self._retitle: 14,
            self._rewrite: 6,
            self._edit_comment: 10,
            self._delete_comment: 8,
            self._delete_post: 3,
            self._rename_author: 1,
        }

    def open(self) -> None:
        """Let the authors join."""
        with self._sessions.begin() as session:
            if session.scalar(select(func.count()).select_from(Author)) == 0:
                session.add_all(self._new_author() for _ in range(AUTHORS))

    def act(self) -> bool:
        """Do one thing, or a few, in one transaction; tell whether it was committed."""
        several = 1 if self._random.random() < 0.8 else self._random.randint(2, 6)  # noqa: PLR2004
        chosen = self._random.choices(
            list(self._weights), weights=list(self._weights.values()), k=several
        )
        try:
            with self._sessions.begin() as session:
                for action in chosen:
                    action(session)
                    session.flush()
                self._perhaps_reconsider(session)
        except ChangedMind:
            return False
        return True

    def _perhaps_reconsider(self, session: Session) -> None:
        """Now and then take back the last thing done, now and then everything."""
        mood = self._random.random()
        if mood < 0.03:  # noqa: PLR2004
            with suppress(ChangedMind), session.begin_nested():
                self._publish(session)
                session.flush()
                raise ChangedMind
        if mood > 0.94:  # noqa: PLR2004
            raise ChangedMind

    def _publish(self, session: Session) -> None:
        session.add(self._new_post(session))

    def _discuss(self, session: Session) -> None:
        """Write a post and its first comments at once."""
        post = self._new_post(session)
        post.comments = [self._new_comment(session) for _ in range(self._random.randint(1, 5))]
        session.add(post)

    def _comment(self, session: Session) -> None:
        if post := self._any_post(session):
            post.comments.append(self._new_comment(session))

    def _retitle(self, session: Session) -> None:
        if post := self._any_post(session):
            post.title = self._text(3, 9)

    def _rewrite(self, session: Session) -> None:
        if post := self._any_post(session):
            post.body = self._body()

    def _edit_comment(self, session: Session) -> None:
        if comment := self._any_comment(session):
            comment.body += "\n\nEdit:\t" + self._text(2, 12)

    def _delete_comment(self, session: Session) -> None:
        if comment := self._any_comment(session):
            session.delete(comment)

    def _delete_post(self, session: Session) -> None:
        if post := self._any_post(session):
            session.delete(post)

    def _rename_author(self, session: Session) -> None:
        """Take another handle: the database carries it on to posts and comments."""
        session.get_one(Author, self._any_author(session)).handle = self._handle()

    def _new_author(self) -> Author:
        return Author(
            handle=self._handle(),
            name=self._text(2, 2).title(),
            password_hash=f"scrypt${self._random.randbytes(24).hex()}",
        )

    def _new_post(self, session: Session) -> Post:
        return Post(author=self._any_author(session), title=self._text(3, 9), body=self._body())

    def _new_comment(self, session: Session) -> Comment:
        return Comment(author=self._any_author(session), body=f"  {self._text(3, 40)}\n")

    def _any_author(self, session: Session) -> str:
        return session.scalars(select(Author.handle).order_by(func.random()).limit(1)).one()

    def _any_post(self, session: Session) -> Post | None:
        newest = session.scalar(select(func.max(Post.id))) or 0
        some = self._random.randint(0, newest)
        return session.scalar(select(Post).where(Post.id >= some).order_by(Post.id).limit(1))

    def _any_comment(self, session: Session) -> Comment | None:
        newest = session.scalar(select(func.max(Comment.id))) or 0
        some = self._random.randint(0, newest)
        return session.scalar(
            select(Comment).where(Comment.id >= some).order_by(Comment.id).limit(1)
        )

    def _handle(self) -> str:
        return f"{self._random.choice(WORDS)}-{self._random.randrange(10**9):09}"

    def _body(self) -> str:
        """Write a few paragraphs; one time in five a long read."""
        paragraphs = self._random.randint(60, 90) if self._random.random() < 0.2 else 2  # noqa: PLR2004
        return "\n\n".join(self._text(20, 60) for _ in range(paragraphs))

    def _text(self, fewest: int, most: int) -> str:
        words = self._random.choices(WORDS, k=self._random.randint(fewest, most))
        return " ".join(words).capitalize() + self._random.choice((".", "!", "?", " \\o/", '"'))


def migrate(url: str) -> None:
    """Make the tables."""
    Base.metadata.create_all(create_engine(url))


def serve(url: str) -> None:
    """Write at a steady pace until told to stop; then print how many transactions there were."""
    asked_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: asked_to_stop.append(number))
    blog = Blog(url)
    blog.open()
    outcomes: Counter[bool] = Counter()
    due = time.monotonic()
    while not asked_to_stop:
        time.sleep(max(0.0, due - time.monotonic()))
        outcomes[blog.act()] += 1
        due = max(due + random.expovariate(TRANSACTIONS_PER_SECOND), time.monotonic() - 1)
    print(f"{outcomes[True]:,} transactions committed, {outcomes[False]:,} rolled back")  # noqa: T201


def main() -> None:
    """Do what the command line asks."""
    commands = {"migrate": migrate, "serve": serve}
    if len(sys.argv) not in {2, 3} or sys.argv[1] not in commands:
        sys.exit((__doc__ or "").strip())
    url = sys.argv[2] if len(sys.argv) > 2 else os.environ["BLOG_DATABASE_URL"]  # noqa: PLR2004
    commands[sys.argv[1]](url)


if __name__ == "__main__":
    main()

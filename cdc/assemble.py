"""Messages to transactions: whole ones, or pieces of one too big for memory."""

from collections.abc import Sequence
from copy import copy
from datetime import UTC, datetime
from typing import Final, Self

from msgspec import Struct

from cdc.change import Change
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.message import Begin, Commit, Emitted, Message

_NOT_OF_THE_STREAM: Final = 0  # no transaction has this id


class Transaction(Struct, frozen=True, gc=False):
    """All changes of one commit, in order; or, where `ends` is False, the next piece of them.

    `size` is about what the changes take in memory, in bytes. Only the last piece has an `end_lsn`.
    """

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn | None
    commit_time: datetime
    changes: list[Change]
    size: int

    @property
    def ends(self) -> bool:
        return self.end_lsn is not None


def placed_at(position: Lsn, changes: list[Change]) -> Transaction:
    """Give changes that the stream did not bring, as if it had, at a position."""
    now = datetime.now(UTC)
    return Transaction(_NOT_OF_THE_STREAM, position, position, now, changes, len(changes))


class Assembler:
    """Collect messages into transactions.

    Transactions that the checkpoint already covers are dropped whole: the server may send again
    what was committed at or after its own, older, confirmed position.
    """

    def __init__(self, checkpoint: Lsn, *, piece_bytes: int) -> None:
        self._checkpoint = checkpoint
        self._piece_bytes = piece_bytes
        self._begin: Begin | None = None
        self._dropping = False
        self.dropped = 0  # transactions
        self._changes: list[Change] = []
        self._size = 0

    @property
    def between_transactions(self) -> bool:
        """Tell whether every transaction begun has ended."""
        return self._begin is None

    @property
    def dropping(self) -> bool:
        """Tell whether the transaction that has begun is dropped."""
        return self._begin is not None and self._dropping

    def fork(self) -> Self:
        """Give another assembler that has been fed the same."""
        other = copy(self)
        self._changes = list(self._changes)
        return other

    def cut(self) -> Transaction | None:
        """Give what there is of the transaction that is not complete, as a piece; None: none is."""
        if self._begin is None or self._dropping:
            return None
        return self._take(self._begin, end_lsn=None)

    def pass_by(self, transactions: Sequence[Transaction]) -> bool:
        """Note that whole ones come next; tell False, noting nothing, where they do not."""
        if self._begin is not None or transactions[0].commit_lsn < self._checkpoint:
            return False
        self._checkpoint = transactions[-1].end_lsn or self._checkpoint
        return True

    def feed(self, message: Message, size: int) -> Transaction | None:
        """Take one message of about `size` bytes; give the transaction or piece it completes.

        Raise ProtocolError where messages come in an order that no transaction has.
        """
        if isinstance(message, Begin):
            return self._open(message)
        if isinstance(message, Commit):
            return self._close(message)
        if isinstance(message, Emitted):
            return None
        return self.add(message, size)

    def _open(self, begin: Begin) -> Transaction | None:
        if self._begin is not None:
            raise ProtocolError(f"a transaction began at {begin.commit_lsn} inside another one")
        self._begin = begin
        # A checkpoint is never inside a commit record: before its start means not yet applied.
        self._dropping = begin.commit_lsn < self._checkpoint
        self.dropped += self._dropping
        return None

    def add(self, change: Change, size: int) -> Transaction | None:
        """Take a change, likewise."""
        if self._begin is None:
            raise ProtocolError(f"a change of {change.relation.name} came outside a transaction")
        if self._dropping:
            return None
        self._changes.append(change)
        self._size += size
        if self._size < self._piece_bytes:
            return None
        return self._take(self._begin, end_lsn=None)

    def _close(self, commit: Commit) -> Transaction | None:
        begin, self._begin = self._begin, None
        if begin is None or begin.commit_lsn != commit.commit_lsn:
            raise ProtocolError(f"a commit at {commit.commit_lsn} closes no transaction")
        if self._dropping:
            return None
        self._checkpoint = commit.end_lsn
        return self._take(begin, end_lsn=commit.end_lsn)

    def _take(self, begin: Begin, *, end_lsn: Lsn | None) -> Transaction:
        changes, self._changes = self._changes, []
        size, self._size = self._size, 0
        return Transaction(begin.xid, begin.commit_lsn, end_lsn, begin.commit_time, changes, size)

"""What a plugin's output says, one value per frame, the same for both plugins."""

from datetime import datetime

from msgspec import Struct

from cdc.change import Change
from cdc.lsn import Lsn


class Begin(Struct, frozen=True, gc=False):
    """A committed transaction follows.

    `commit_lsn` is where its commit record starts. pgoutput tells the end only at the commit.
    """

    xid: int
    commit_lsn: Lsn
    commit_time: datetime


class Commit(Struct, frozen=True, gc=False):
    """The transaction is complete; `end_lsn` is just after its commit record."""

    commit_lsn: Lsn
    end_lsn: Lsn


class Emitted(Struct, frozen=True):
    """A message somebody wrote into the WAL with `pg_logical_emit_message`."""

    prefix: str
    content: str


Message = Begin | Change | Commit | Emitted

"""Every error an operator can meet, as one tree.

CdcError
├── ConfigurationError            2   what the operator wrote cannot be used
│   ├── SettingError                  a key or value of the configuration
│   ├── ProjectorImportError          a projector module that does not import
│   ├── RegistryError                 projectors that contradict one another or their read models
│   └── PortTaken                     the HTTP port is in use
├── SourceError                   3   the write database
│   ├── SourceUnavailable             passes by itself: retried for ever
│   ├── SourceRefused                 wrong password, missing right, wrong database
│   ├── SourceNotReady                wal_level, plugin, slots, publication: SQL mends it
│   ├── SlotActive                    another session streams from the slot: stand by
│   └── SlotBlocked                   transactions that write kept it from being created
├── ReadError                     4   the read database
│   ├── ReadUnavailable               passes by itself: retried for ever
│   │   └── ReadTransactionLost           with part of the work: stream it again
│   ├── ReadLocked                    another daemon serves the slot: stand by
│   ├── ReadRefused                   wrong password, missing right
│   ├── ReadTableMismatch             a read table that does not fit its definition
│   └── WriteRefused                  a change the read database will not take
├── ProjectionError               5   a projector raised, or returned what it must not
│   ├── UnknownColumn                 it asked a row for a column it has not
│   └── ValueUnreadable               it asked for a value that Python's type cannot hold
├── SchemaChanged                 8   a source table is no longer what its read tables were made for
│   └── CatalogOutdated               the catalog was read before that: it is read again
├── CopyError                     9   a copy that was asked for is not made
│   ├── NothingToCopy                 the slot has no such copy: it was not set up, or was dropped
│   └── NotStreaming                  no daemon makes it
├── ServerFailed                  7   a throwaway server of `cdc demo` did not start (cdc.servers)
├── ProtocolError                 6   what the plugin sent cannot be read, or it left rows out
│   └── NumberNotSent                 wal2json 2.5 sent a NaN or an infinity as null
├── StartRefused                      the start-up table of docs/architecture.md
│   ├── ChangesConsumedElsewhere 10
│   ├── SourceReplaced           11
│   ├── SlotWithoutCheckpoint    12
│   ├── SlotMissing              13
│   ├── SlotLost                 14
│   └── SlotMismatch             15
├── CheckpointMoved              16   another daemon wrote: this one must stop
├── QuarantineFull               18   changes of too many keys fail: a fault, no poison
└── QuarantineError              19   what was asked of the quarantine cannot be done

The number is the exit code. A class's docstring is its default message.
"""

from collections.abc import Sequence
from typing import ClassVar, Self


class CdcError(Exception):
    """Something went wrong."""

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False
    usual_hint: ClassVar[str | None] = None
    """What helps as a rule, where an error brings no hint of its own."""

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, sql: Sequence[str] = ()
    ) -> None:
        """Take what is wrong, and what to do; `sql` mends it, statement by statement."""
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.hint = hint
        self.sql = tuple(sql)

    def alone(self) -> Self:
        """Let go of the calls it came through: who keeps it would keep all that they hold."""
        self.__context__ = None
        return self.with_traceback(None)

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigurationError(CdcError):
    """The configuration cannot be used."""

    exit_code = 2


class SettingError(ConfigurationError):
    """A setting is unknown, missing or malformed."""


class ProjectorImportError(ConfigurationError):
    """A projector module does not import."""


class RegistryError(ConfigurationError):
    """The projectors contradict one another, their read models or the source tables."""


class PortTaken(ConfigurationError):
    """The HTTP port is in use."""


class SourceError(CdcError):
    """The write database cannot be used."""

    exit_code = 3


class SourceUnavailable(SourceError):
    """The write database does not answer."""

    transient = True


class SourceRefused(SourceError):
    """The write database refused the connection."""


class SourceNotReady(SourceError):
    """The write database is not set up for logical replication."""


class SlotActive(SourceError):
    """Another session is streaming from the slot."""

    transient = True
    usual_hint = "`cdc status` shows how it does; this command needs it stopped"


class SlotBlocked(SourceError):
    """Transactions that write kept the slot from being created: none was left behind."""


class ReadError(CdcError):
    """The read database cannot be used."""

    exit_code = 4


class ReadUnavailable(ReadError):
    """The read database does not answer."""

    transient = True


class ReadLocked(ReadError):
    """Another daemon holds the read database's lock for this slot: stand by."""

    transient = True
    usual_hint = SlotActive.usual_hint


class ReadTransactionLost(ReadUnavailable):
    """The read database lost what was not on its disk yet: it is streamed again."""


class ReadRefused(ReadError):
    """The read database refused the connection."""


class ReadTableMismatch(ReadError):
    """A read table does not fit its definition."""


class WriteRefused(ReadError):
    """The read database will not take a change."""


class ProjectionError(CdcError):
    """A projector failed."""

    exit_code = 5
    cause: str = ""
    """What it raised, and where, without the key of the row."""
    of_table: bool = False
    """Whether the table is at fault, and so every row, rather than the one."""


class UnknownColumn(ProjectionError, KeyError):
    """The row has no such column."""


class ValueUnreadable(ProjectionError, ValueError):
    """Python's own type cannot hold the value."""


class ProtocolError(CdcError):
    """The replication stream cannot be read."""

    exit_code = 6


class NumberNotSent(ProtocolError):
    """The plugin sent a NaN or an infinity as null."""


class SchemaChanged(CdcError):
    """A source table has changed: its read tables no longer fit."""

    exit_code = 8


class CatalogOutdated(SchemaChanged):
    """A source table changed after the catalog was read: it is read again."""

    transient = True


class CopyError(CdcError):
    """A copy that was asked for is not made."""

    exit_code = 9


class NothingToCopy(CopyError):
    """There is no such copy: the pipeline was not set up, or it was dropped."""


class NotStreaming(CopyError):
    """No daemon streams, so nobody makes the copy."""


class StartRefused(CdcError):
    """Starting here would lose changes or apply them twice."""

    exit_code = 10


class ChangesConsumedElsewhere(StartRefused):
    """The slot has moved past the checkpoint: something else consumed changes."""

    exit_code = 10


class SourceReplaced(StartRefused):
    """The write database is not the one the checkpoint belongs to: restored or replaced."""

    exit_code = 11


class SlotWithoutCheckpoint(StartRefused):
    """The slot exists but the read database has no checkpoint for it."""

    exit_code = 12


class SlotMissing(StartRefused):
    """The read database has a checkpoint, but its slot is gone: changes were lost."""

    exit_code = 13


class SlotLost(StartRefused):
    """The server has invalidated the slot: changes were lost."""

    exit_code = 14


class SlotMismatch(StartRefused):
    """The slot belongs to another plugin or database."""

    exit_code = 15


class CheckpointMoved(CdcError):
    """The checkpoint was moved by somebody else: another daemon is writing."""

    exit_code = 16


class QuarantineFull(CdcError):
    """Changes of too many keys fail at once: it is a fault, and no poison."""

    exit_code = 18


class QuarantineError(CdcError):
    """What was asked of the quarantine cannot be done."""

    exit_code = 19

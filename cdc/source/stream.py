"""The replication stream: frames in, standby status out.

One connection serves one START_REPLICATION: a second one on it ends at once, without an error.
"""

import logging
import os
import re
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import sql

from cdc.errors import ProtocolError, SourceUnavailable
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.source.connection import Connection, source_error, translated
from cdc.source.frame import Frame, Keepalive, Stretch, keepalive, position, status
from cdc.source.gathering import Gathering
from cdc.source.plain_wire import BYTES_AT_ONCE
from cdc.source.wire import Wire, wire_of

log = logging.getLogger(__name__)

_ACKNOWLEDGE_SECONDS: Final = 0.1
_LONGEST_FEEDBACK_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 30.0
_WARNED_OF: Final = re.compile(r'table "(.*)"\."(.*)"$', re.DOTALL)
# Of the server itself: a crash (57P01), synchronized_standby_slots that are missing or not active
# (22023, 55000). A plugin's elog(WARNING) is 01000.
_SERVERS_WARNINGS: Final = ("22", "55", "57")


def _quoted(value: str) -> sql.SQL:
    """Quote an option's value: the replication grammar has no E'' strings, only doubled quotes."""
    return sql.SQL("'{}'".format(value.replace("'", "''")))


class Stream:
    """A started replication stream. One thread reads; any thread may acknowledge."""

    def __init__(
        self,
        connection: Connection,
        *,
        slot: str,
        options: Mapping[str, str],
        optional: Mapping[str, str] | None = None,
        wants: Callable[[TableName], bool] = lambda _: True,
    ) -> None:
        """Take a walsender's connection; changes may be left out that nobody `wants`.

        `optional` are options that the plugin may not know;
        `options_refused` then tells.
        """
        self._optional = optional or {}
        self.options_refused = False
        self._connection = connection
        self._descriptor = connection.pgconn.socket
        self._wire: Wire | None = None
        self._slot = slot
        self._options = options
        self._received = Lsn(0)
        self._acknowledged = Lsn(0)
        self._reported = Lsn(0)
        self._sent_at = 0.0
        self._heard_at = 0.0
        self._ask_seconds = _LONGEST_FEEDBACK_SECONDS
        self._feedback_seconds = _LONGEST_FEEDBACK_SECONDS
        self._plugin_warnings: list[str] = []
        self._told: set[str] = set()
        self._gathering = Gathering(self._descriptor, enough=BYTES_AT_ONCE)
        self._wants = wants
        self._open = threading.Lock()
        self._closed = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def received(self) -> Lsn:
        """How far the server has sent."""
        return self._received

    @property
    def reported(self) -> Lsn:
        """How far the server has been told it may forget."""
        return self._reported

    def start(
        self,
        lsn: Lsn,
        *,
        silence_seconds: float = _SILENCE_SECONDS,
        bytes_at_once: int = BYTES_AT_ONCE,
    ) -> None:
        """Start streaming at a position; raise a SourceError.

        A server that has been silent for a third of `silence_seconds` is asked for an answer.
        About `bytes_at_once` are read before they are looked at.
        """
        self._gathering = Gathering(self._descriptor, enough=bytes_at_once)
        self._ask_seconds = min(self._ask_seconds, silence_seconds / 3)
        with translated():
            self._feedback_seconds = self._feedback_interval()
            self._wire = wire_of(self._connection, self._noticed, bytes_at_once=bytes_at_once)
            self._execute_start(self._wire, lsn)
        self._acknowledged = self._received = self._reported = lsn

    def _execute_start(self, wire: Wire, lsn: Lsn) -> None:
        """Start with the optional options, and where the plugin refuses them without."""
        try:
            wire.start(self._start_statement(lsn, self._optional))
        except psycopg.errors.InvalidParameterValue:
            if not self._optional:
                raise
            self.options_refused = True
            wire.start(self._start_statement(lsn, {}))

    def _feedback_interval(self) -> float:
        query = "select setting::int from pg_settings where name = 'wal_sender_timeout'"
        row = self._connection.execute(query).fetchone()
        timeout = (row[0] if row else 0) / 1000
        longest = min(_LONGEST_FEEDBACK_SECONDS, self._ask_seconds)
        return min(timeout / 3, longest) if timeout else longest

    def _start_statement(self, lsn: Lsn, optional: Mapping[str, str]) -> str:
        options = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), _quoted(value))
            for name, value in {**self._options, **optional}.items()
        )
        statement = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({})").format(
            sql.Identifier(self._slot), sql.SQL(str(lsn)), options
        )
        return statement.as_string(self._connection)

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Keep a plugin's WARNING: it means that rows were left out.

        wal2json warns of updates and deletes without a key ("no tuple identifier for UPDATE in
        table ..."): of insert-only tables nobody wants them. What the server itself warns of is
        told, once.
        """
        text = notice.message_primary or "a warning without text"
        if notice.severity_nonlocalized != "WARNING":
            return
        if not (notice.sqlstate or "").startswith(_SERVERS_WARNINGS):
            self._plugin_warnings.append(text)
        elif text not in self._told:
            self._told.add(text)
            log.warning("the write database warns", extra={"of": text})

    def read(self, *, seconds: float) -> tuple[Sequence[Frame] | Stretch, Keepalive | None]:
        """Give the data frames that have arrived, and the last keepalive; wait for some that long.

        It asks for an answer if one before did. The wait also ends when feedback is due. Raise
        SourceUnavailable where the stream ended, ProtocolError where the plugin warned.
        """
        wire = self._started
        with translated():
            frames, other, ended = wire.read()
        if len(frames):
            self._note(position(frames[-1]))
        self._refuse_warnings()
        alive = None if other is None else keepalive(other)
        if alive is not None:
            self._note(alive.wal_end)
        elif len(frames):
            pass
        elif ended:
            raise self._ended(wire)
        else:
            self._wait(min(seconds, self.until_feedback()))
        return frames, alive

    @property
    def _started(self) -> Wire:
        assert self._wire is not None  # noqa: S101  it was started
        return self._wire

    def gather(self, frames: int) -> None:
        """Let more arrive before it is read, after so many frames."""
        self._gathering.wait(frames)

    def _note(self, position: Lsn) -> None:
        self._heard_at = time.monotonic()
        self._received = max(self._received, position)

    def _refuse_warnings(self) -> None:
        warnings, self._plugin_warnings = self._plugin_warnings, []
        for text in warnings:
            named = _WARNED_OF.search(text)
            if named is None or self._wants(TableName(*named.groups())):
                raise ProtocolError(
                    f"the plugin left rows out, near {self._received}: {text}",
                    hint="a table without a usable key was updated or deleted from: give it a "
                    "primary key or a replica identity, then copy it again",
                )

    def _ended(self, wire: Wire) -> Exception:
        error = wire.ended()
        if error is not None:
            return source_error(error)
        return SourceUnavailable("write database: the server ended the stream")

    def _wait(self, seconds: float) -> None:
        """Sleep until bytes arrive or somebody acknowledges."""
        ready, _, _ = select.select([self._descriptor, self._wake_read], [], [], seconds)
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)

    def until_feedback(self) -> float:
        """Say in how many seconds feedback is due."""
        due = (
            _ACKNOWLEDGE_SECONDS if self._acknowledged > self._reported else self._feedback_seconds
        )
        return max(0.0, self._sent_at + due - time.monotonic())

    def acknowledge(self, lsn: Lsn) -> None:
        """Let the server forget what lies before a position that is durable on the read side."""
        self._acknowledged = max(self._acknowledged, lsn)
        self.wake()

    def wake(self) -> None:
        """End a wait in `frames`."""
        with self._open, suppress(BlockingIOError):  # the pipe is full of wake-ups already
            if not self._closed:
                os.write(self._wake_write, b".")

    def feedback(self) -> None:
        """Send the standby status if it is due; raise SourceUnavailable."""
        if not self._closed and self.until_feedback() <= 0:
            self._send_status(self._acknowledged)

    def reply(self) -> None:
        """Answer a keepalive that asks for it, at once.

        A server that is shutting down waits for all it sent to be flushed here, and asks again at
        once while the position it is told is older: so an older one is never told. Zero leaves
        the slot where it is, and the server goes by the write position instead (walsender.c,
        WalSndDone).
        """
        caught_up = self._acknowledged >= self._received
        self._send_status(self._acknowledged if caught_up else Lsn(0))

    def _send_status(self, flushed: Lsn) -> None:
        written = max(self._received, flushed)
        ask = time.monotonic() - self._heard_at >= self._ask_seconds
        with translated():
            self._started.send(
                status(written=written, flushed=flushed, ask=ask), seconds=self._feedback_seconds
            )
        self._sent_at = time.monotonic()
        self._reported = max(self._reported, flushed)

    def close(self) -> None:
        """Report the last acknowledgement and leave; never raise. Closing again does nothing."""
        if self._closed:
            return
        try:
            if self._acknowledged > self._reported:
                self._send_status(self._acknowledged)
            if self._wire is not None:
                self._wire.finish(seconds=self._feedback_seconds)
        except (SourceUnavailable, psycopg.Error):
            pass  # it is gone already: what it was not told, it will send again
        finally:
            with self._open:
                self._closed = True
                self._connection.close()
                os.close(self._wake_read)
                os.close(self._wake_write)

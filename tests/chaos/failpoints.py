"""Named points in the daemon's flow, and how a process of the tests dies at one of them.

The product knows nothing of them: a life that is to die at one wraps the function before it calls
the daemon, in its own process. A point whose function is gone makes `arm` fail.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdc.assemble import Assembler
from cdc.exchange import Exchange
from cdc.operate import setup
from cdc.reader import Reader
from cdc.sink import checkpoint, copies
from cdc.sink.postgres import PostgresSink
from cdc.sink.writer import Writer
from cdc.source.chunks import ChunkReader
from cdc.source.stream import Stream


@dataclass(frozen=True)
class Step:
    """A function that is a step; `counts` tells of its result whether it did something."""

    owner: Any
    function: str
    counts: Callable[[Any], object] = lambda _: True


BEGINNING = {
    "intent": Step(checkpoint, "intend"),
    "slot created": Step(setup, "create_slot"),
    "first checkpoint": Step(checkpoint, "advance"),
}
STREAMING = {
    "frame read": Step(Stream, "read", lambda read: read[0]),
    "frames decoded": Step(Reader, "read"),
    "transaction assembled": Step(Assembler, "feed", lambda transaction: transaction is not None),
    "transaction queued": Step(Exchange, "offer", bool),
    "batch handed over": Step(Exchange, "hand_over"),
    "batch written": Step(Writer, "_apply_merged"),
    "checkpoint moved": Step(checkpoint, "advance"),
    "commit": Step(Writer, "_commit"),
    "acknowledged": Step(Stream, "acknowledge"),
    "acknowledge sent": Step(Stream, "_send_status"),
}
COPYING = {
    "chunk read": Step(ChunkReader, "read"),
    "copy progress": Step(copies, "store"),
}
STEPS = BEGINNING | STREAMING | COPYING
COMMIT_SENT = "commit sent"


def _names(steps: dict[str, Step]) -> list[str]:
    return [f"{when} {name}" for name in steps for when in ("before", "after")]


AT_BEGIN = _names(BEGINNING)
ON_THE_WAY = _names(STREAMING)
IN_COPIES = _names(COPYING)


class Failpoint:
    """Kills its process when it is reached for the n-th time."""

    def __init__(self, hit: int) -> None:
        self._left = hit
        self._lock = threading.Lock()

    def reached(self) -> bool:
        """Count; tell whether it is time."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def pass_by(self) -> None:
        if self.reached():
            die()


def die() -> None:
    """Leave as a process leaves that is killed: nothing is flushed, closed or rolled back."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(name: str, hit: int) -> None:
    """Let this process die at a point when it is reached for the n-th time."""
    point = Failpoint(hit)
    if name == COMMIT_SENT:
        _die_with_the_commit_on_its_way(point)
        return
    when, _, step = name.partition(" ")
    (_before if when == "before" else _after)(STEPS[step], point)


def _before(step: Step, point: Failpoint) -> None:
    original = getattr(step.owner, step.function)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        point.pass_by()
        return original(*arguments, **named)

    setattr(step.owner, step.function, wrapped)


def _after(step: Step, point: Failpoint) -> None:
    original = getattr(step.owner, step.function)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if step.counts(result):
            point.pass_by()
        return result

    setattr(step.owner, step.function, wrapped)


def _die_with_the_commit_on_its_way(point: Failpoint) -> None:
    """Send the commit that psycopg's pipeline holds back, and do not wait for the answer."""
    original = PostgresSink.positions

    def wrapped(sink: PostgresSink) -> tuple[int, int]:
        pipeline = sink._driver._pipeline
        if pipeline is not None and point.reached():
            for send in pipeline.command_queue:
                send()
            pipeline.pgconn.pipeline_sync()
            while pipeline.pgconn.flush():
                pass
            die()
        return original(sink)

    PostgresSink.positions = wrapped

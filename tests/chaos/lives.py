"""Lives of the daemon: processes forked from one that has everything imported already."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cdc.cli import main
from cdc.lsn import Lsn
from cdc.source.stream import Stream
from tests.chaos.failpoints import arm

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.chaos.lives", "tests.chaos.read_models"])


class Life:
    """A `cdc` command in a process of its own, which may be made to die at a failpoint."""

    def __init__(
        self, arguments: Sequence[str], log: Path, *, at: str | None = None, hit: int = 1
    ) -> None:
        self._told, tell = _FORKS.Pipe(duplex=False)
        self.log = log
        self._process = _FORKS.Process(
            target=_live, args=(list(arguments), str(log), tell, at, hit), daemon=True
        )
        self._process.start()
        tell.close()
        self._streaming = False

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def streaming(self) -> bool:
        """Tell whether it has begun to stream."""
        if not self._streaming and self._told.poll():
            try:
                self._streaming = self._told.recv_bytes() == b"streaming"
            except EOFError:
                return False
        return self._streaming

    def ended(self, seconds: float) -> bool:
        """Wait that long; tell whether it has ended."""
        self._process.join(seconds)
        return self._process.exitcode is not None

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        self._process.kill()

    def close(self) -> int:
        """Wait for its end; give its exit code, which is below zero after a signal."""
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        self._process.close()
        self._told.close()
        return code

    @property
    def killed(self) -> bool:
        return self._process.exitcode == -signal.SIGKILL


def _live(arguments: list[str], log: str, tell: Connection, at: str | None, hit: int) -> None:
    _write_to(log)
    for name in [name for name in os.environ if name.startswith("CDC_")]:
        del os.environ[name]
    _tell_of_streaming(tell)
    if at is not None:
        arm(at, hit)
    sys.argv = ["cdc", *arguments]
    main()


def _write_to(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _tell_of_streaming(tell: Connection) -> None:
    start = Stream.start

    def started(stream: Stream, lsn: Lsn, **options: Any) -> None:
        start(stream, lsn, **options)
        tell.send_bytes(b"streaming")

    Stream.start = started

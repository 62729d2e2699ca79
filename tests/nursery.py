"""Commands of `cdc` in processes of their own, forked from one that has everything imported.

`python -m cdc` takes half a second of a processor before its first line; the tests run it a thousand
times. What is forked here is told everything that a new process would be: arguments, environment,
folder, outputs; and then runs the module `cdc` as `__main__`. tests/acceptance starts the command
itself.

Run as a script it is the nursery: it reads orders from its standard input, a line of JSON each.
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.02


class Child:
    """A command that was forked; to those who wait for it, as subprocess.Popen."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Give the exit code, below zero after a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask(code_of=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; give the exit code, or raise subprocess.TimeoutExpired."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE_SECONDS
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("cdc", timeout or 0)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks; it ends with us."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            # Threads do not survive a fork; this keeps numpy from starting some.
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, **order: Any) -> Any:
        """Have something done; give the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        output: Path,
        errors: Path,
    ) -> Child:
        """Start a command in a folder; what it prints is added to the files."""
        for file in (output, errors):
            file.touch()
        return Child(
            self,
            self.ask(
                arguments=list(arguments),
                folder=str(folder),
                environment=dict(environment),
                outputs=[str(output), str(errors)],
            ),
        )

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


def _serve() -> None:
    """Obey orders until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to all of a terminal's processes
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if "code_of" in order:
            answer = _code(order["code_of"])
        else:
            answer = os.fork()
            if answer == 0:
                answers.close()
                _become(order)
                return
        answers.write(json.dumps(answer).encode() + b"\n")


def _code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(order: dict[str, Any]) -> None:
    """Be what the order describes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    _replace(0, os.devnull, os.O_RDONLY)
    for number, file in enumerate(order["outputs"], start=1):
        _replace(number, file, os.O_WRONLY | os.O_APPEND)
    sys.path[0] = order["folder"]
    sys.argv = ["cdc", *order["arguments"]]
    runpy.run_module("cdc", run_name="__main__", alter_sys=True)


def _replace(number: int, file: str, flags: int) -> None:
    opened = os.open(file, flags)
    os.dup2(opened, number)
    os.close(opened)


if __name__ == "__main__":
    for name in ("cdc.cli", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite"):
        import_module(name)
    gc.freeze()  # what is shared stays so: no collector writes to it
    _serve()

"""The processes of the demo: each in a session of its own, none of which outlives the demo."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from cdc.servers.process import LAUNCH

_PATIENCE_SECONDS: Final = 30
_TAIL_LINES: Final = 12
_NOT_FIELDS: Final = ("time", "level", "logger", "message")


class ChildFailed(Exception):
    """A process of the demo ended, or did not do what was asked. `tail` is what it last said."""

    def __init__(self, message: str, tail: list[str]) -> None:
        super().__init__(message)
        self.tail = tail


class Child:
    """A Python process, its output kept in a file. A context manager that ends it.

    Ctrl-C in the terminal does not reach it: it is asked to stop when its turn has come. Where
    the demo itself is killed, the kernel ends it too (on Linux).
    """

    def __init__(
        self, name: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        identity = (os.getpid(), os.geteuid(), os.getegid())
        launcher = [sys.executable, "-I", "-S", str(LAUNCH), *map(str, identity)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*launcher, sys.executable, *arguments],
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def check(self, *, patience: float = 0.0) -> None:
        """Raise ChildFailed where it has ended, or does within so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
            raise self.failed(self._end)

    def stop(self) -> None:
        """Ask it to stop and wait for it; raise ChildFailed where it does not, or complains."""
        self._process.send_signal(signal.SIGTERM)
        self.finish()

    def finish(self) -> None:
        """Wait for its end; raise ChildFailed where that does not come, or is a bad one."""
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failed(f"did not end within {_PATIENCE_SECONDS} s") from None
        if self._process.returncode != 0:
            raise self.failed(self._end)

    @property
    def _end(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def failed(self, what: str) -> ChildFailed:
        """Say what it did not do, with the end of its output."""
        return ChildFailed(f"the {self.name} {what}", self.said()[-_TAIL_LINES:])

    def said(self) -> list[str]:
        """Give the lines of its output so far, those in JSON as text."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [_as_text(fields) if (fields := _fields(line)) else line for line in lines]

    def logged(self, message: str) -> dict[str, Any] | None:
        """Give the fields of the log line with this message, once there is one."""
        for line in self._log.read_text(errors="replace").splitlines():
            fields = _fields(line)
            if fields and fields.get("message") == message:
                return fields
        return None


def _fields(line: str) -> dict[str, Any] | None:
    """Give the fields of a log line in JSON; None for any other line, or half of one."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and "message" in fields else None


def _as_text(fields: Mapping[str, Any]) -> str:
    rest = "".join(f" {name}={value}" for name, value in fields.items() if name not in _NOT_FIELDS)
    return f"{fields.get('level', '')}: {fields['message']}{rest}"

"""Logs: one line per state change, a constant message and its fields; for people or machines."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

Format = Literal["text", "json"]
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(*, form: Format = "text", level: str = "INFO") -> None:
    """Send the daemon's logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger("cdc")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
    # What psycopg warns of is raised too, and said in our words.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def printable(value: object) -> str:
    """Escape control characters: names come from a database that somebody else writes."""
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={printable(value)}" for name, value in _fields(record).items())
        return f"{time} {record.levelname.lower():7} {record.getMessage()}{fields}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # A field may not pass for one of these.
        return json.dumps(line | _fields(record) | line, default=str)

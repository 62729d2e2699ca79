"""What the daemon of this machine says of itself, over HTTP."""

import http.client
import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

from cdc.settings import Settings

_SECONDS: Final = 2.0
_MOST_BYTES: Final = 4 * 1024**2
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where it listens, not we

Answer = Mapping[str, Any]


SILENT: Final[Answer] = {}
"""Of one that takes a connection, and does not answer."""


def ask(settings: Settings) -> Answer | None:
    """Give the daemon's `/status`, or SILENT; None where there is none, or one of another slot."""
    host, port = settings.http.address
    if port == 0:
        return None
    try:
        found = _get(_ANYWHERE.get(host, host), port)
    except TimeoutError:
        return SILENT
    except (OSError, ValueError, http.client.HTTPException):
        return None
    ours = isinstance(found, dict) and found.get("slot") == settings.source.slot
    return found if ours and "state" in found else None


def _get(host: str, port: int) -> Any:
    with closing(http.client.HTTPConnection(host, port, timeout=_SECONDS)) as connection:
        connection.request("GET", "/status")
        return json.loads(connection.getresponse().read(_MOST_BYTES))

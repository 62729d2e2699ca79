"""Python values in the COPY data that a Postgres read database is sent."""

from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import psycopg
from psycopg.adapt import Dumper

_encode: Final = msgspec.json.Encoder().encode


class DatetimeDumper(Dumper):
    """Print a datetime as psycopg does, in a fraction of the time that `str` takes."""

    def dump(self, obj: datetime) -> bytes:
        if obj.__class__ is datetime and (obj.tzinfo is None or obj.tzinfo is UTC):
            return _encode(obj)[1:-1]  # without the quotes
        return str(obj).encode()


def made_faster(cursor: psycopg.Cursor[Any]) -> psycopg.Cursor[Any]:
    """Have a cursor that is used for COPY alone print values faster."""
    cursor.adapters.register_dumper(datetime, DatetimeDumper)
    return cursor

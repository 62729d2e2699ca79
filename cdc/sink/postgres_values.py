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
        if obj.__class__ is not datetime:
            return str(obj).encode()
        if obj.tzinfo is None:
            encoded = _encode(obj)  # "2026-11-30T12:00:00.000001"
            return encoded[1:11] + b" " + encoded[12:-1]
        if obj.tzinfo is UTC:
            encoded = _encode(obj)  # "2026-11-30T12:00:00.000001Z"
            return encoded[1:11] + b" " + encoded[12:-2] + b"+00:00"
        return str(obj).encode()


def made_faster(cursor: psycopg.Cursor[Any]) -> psycopg.Cursor[Any]:
    """Have a cursor that is used for COPY alone print values faster."""
    cursor.adapters.register_dumper(datetime, DatetimeDumper)
    return cursor

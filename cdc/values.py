"""Postgres's text output as Python values.

A row keeps every value as the text the server printed; it becomes a Python value when somebody
looks at it. Decoding is psycopg's: its loaders know every built-in type, and lose nothing but in
intervals and JSON, which are read here. The text forms are those of the settings that
`cdc.source.connection` pins (ISO dates, hex bytea, UTC). docs/types.md tells what becomes of each.
"""

import json
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Final

import psycopg
from psycopg.adapt import AdaptersMap, Buffer, Loader, Transformer
from psycopg.pq import Format
from psycopg.types.json import set_json_loads

BYTEA: Final = 17
TEXT: Final = 25
FIRST_USER_OID: Final = 16384  # FirstNormalObjectId in access/transam.h: below are built-in types


class Unchanged:
    """The type of UNCHANGED: a value the server did not send (unchanged TOAST). Not NULL."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"

    def __bool__(self) -> bool:
        raise TypeError("UNCHANGED has no truth value: compare with `is UNCHANGED`")


UNCHANGED: Final = Unchanged()

Text = str | None | Unchanged
"""A column's value as it travels: the server's text, NULL, or not sent."""


# IntervalStyle postgres, without years and months: those have no fixed length.
_INTERVAL: Final = re.compile(
    r"(?:(?P<days>[-+]?\d+) days?)? ?(?P<sign>[-+])?"
    r"(?:(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)(?:\.(?P<fraction>\d+))?)?"
)


class _IntervalLoader(Loader):
    """Read an interval; psycopg would take a month for 30 days, and infinity for nothing."""

    def load(self, data: Buffer) -> timedelta:
        match = _INTERVAL.fullmatch(bytes(data).decode())
        if match is None:
            raise ValueError("an interval without a fixed length")
        parts = {name: int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds")}
        days = timedelta(parts.pop("days"))
        time = timedelta(**parts, microseconds=int((match["fraction"] or "0").ljust(6, "0")))
        return days - time if match["sign"] == "-" else days + time


def _exact(literal: str) -> float | Decimal:
    """Give a JSON number as a float, or as a Decimal where a float would change it."""
    number, exact = float(literal), Decimal(literal)
    return number if Decimal(repr(number)) == exact else exact


def _document(text: str | bytes) -> Any:
    return json.loads(text, parse_float=_exact)


class _Exact:
    """psycopg's adapters, and ours over them: what a Transformer asks of its context."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)
        self.adapters.register_loader("interval", _IntervalLoader)
        set_json_loads(_document, self)


_EXACT: Final = _Exact()


# What psycopg's loaders do, without a way through bytes.
_PLAIN: Final[dict[str, Callable[[str], Any]]] = {
    "bool": "t".__eq__,
    "date": date.fromisoformat,
    "int2": int,
    "int4": int,
    "int8": int,
    "numeric": Decimal,
    "text": str,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
    "varchar": str,
}
_PLAIN_BY_OID: Final = {psycopg.adapters.types[name].oid: load for name, load in _PLAIN.items()}


@cache
def loader(type_oid: int) -> Callable[[str], Any]:
    """Give the function that turns a value's text into a Python value; str where none is known.

    The function raises psycopg.DataError, ValueError or ArithmeticError where Python's type cannot
    hold the value.
    """
    if type_oid in _PLAIN_BY_OID:
        return _PLAIN_BY_OID[type_oid]
    load = Transformer(_EXACT).get_loader(type_oid, Format.TEXT).load
    return lambda text: load(text.encode())

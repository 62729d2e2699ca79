"""Postgres's text output as Python values.

A row keeps every value as the text the server printed; it becomes a Python value when somebody
looks at it. Decoding is psycopg's: its loaders know every built-in type. The text forms are those
of the settings that `cdc.source.connection` pins (ISO dates, hex bytea, UTC).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from psycopg.adapt import Transformer
from psycopg.pq import Format

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


@cache
def loader(type_oid: int) -> Callable[[str], Any]:
    """Give the function that turns a value's text into a Python value; str where none is known.

    The function raises psycopg.DataError or ValueError where Python's type cannot hold the value.
    """
    load = Transformer().get_loader(type_oid, Format.TEXT).load
    return lambda text: load(text.encode())

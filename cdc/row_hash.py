"""A hash of a row's text that Postgres works out itself, the same on whichever server."""

from collections.abc import Sequence
from typing import Final

SETTINGS: Final = (
    "set local bytea_output = hex; set local datestyle = 'ISO'; set local extra_float_digits = 3; "
    "set local intervalstyle = postgres; set local timezone = 'UTC'"
)
"""What the text depends on."""


def hashed(columns: Sequence[str]) -> str:
    """Give the sum of the hashes of rows, whatever their order; `columns` are quoted.

    A row's text is what the types' own output functions print, and tells NULL from empty text.
    """
    row = f'row({", ".join(columns)})::text collate "C"'
    return f"coalesce(sum(hashtextextended({row}, 0)::numeric), 0)"

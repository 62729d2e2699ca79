"""A column of a read table as its own database describes it."""

from typing import NamedTuple


class ReadColumn(NamedTuple):
    """Its type, spelled as the server does; `required`: NOT NULL, and without a default."""

    type_sql: str
    required: bool


Difference = tuple[str, str | None]
"""What differs between a table and its definition, and the statement that mends it, if any does."""

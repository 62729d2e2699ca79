"""Names of source tables, as an operator writes them."""

import re
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

_PART = r'"(?:[^"]|"")+"|[^".]+'
_NAME = re.compile(rf"(?:({_PART})\.)?({_PART})")


class TableName(NamedTuple):
    """Schema and table of the write database, unquoted."""

    schema: str
    table: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `schema.table`; a part with a dot or a quote stands in double quotes.

        A name without a schema is in `public`. Raise ValueError where it is no name.
        """
        match = _NAME.fullmatch(text)
        if not match:
            raise ValueError(f"not a table name: {text!r}")
        schema, table = match.groups()
        return cls(_unquote(schema or "public"), _unquote(table))

    def matches(self, pattern: "TableName") -> bool:
        """Tell whether the pattern (`*` and `?` in either part) covers this name."""
        return fnmatchcase(self.schema, pattern.schema) and fnmatchcase(self.table, pattern.table)

    @property
    def is_pattern(self) -> bool:
        """Tell whether a part holds a wildcard."""
        return any(sign in part for part in self for sign in "*?")

    def __str__(self) -> str:
        return f"{_quote(self.schema)}.{_quote(self.table)}"


def _unquote(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def _quote(part: str) -> str:
    plain = '"' not in part and "." not in part
    return part if plain else '"{}"'.format(part.replace('"', '""'))

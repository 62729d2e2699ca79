"""Names of source tables, as an operator writes them."""

import re
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

_PART = r'"(?:[^"]|"")+"|[^".]+'
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
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
        # fnmatch knows character classes too, which we do not promise
        wanted = (part.replace("[", "[[]") for part in pattern)
        return all(fnmatchcase(part, want) for part, want in zip(self, wanted, strict=True))

    @property
    def sql(self) -> str:
        """The name as SQL takes it."""
        return ".".join(part if _PLAIN.fullmatch(part) else _quoted(part) for part in self)

    @property
    def is_pattern(self) -> bool:
        """Tell whether a part holds a wildcard."""
        return any(sign in part for part in self for sign in "*?")

    def __str__(self) -> str:
        return f"{_quote(self.schema)}.{_quote(self.table)}"


def _unquote(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def _quote(part: str) -> str:
    return _quoted(part) if '"' in part or "." in part else part


def _quoted(part: str) -> str:
    return '"{}"'.format(part.replace('"', '""'))

"""Rows as the text format of COPY: Postgres documentation, COPY, "Text Format"."""

from collections.abc import Iterable, Sequence
from typing import Final

from cdc.values import Text

# Stands for NULL until the text is escaped: no Postgres text can hold this character.
_NULL: Final = "\0"
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def encode(rows: Sequence[Sequence[Text]]) -> bytes:
    """Encode rows of text values; at least one row, of at least one column.

    Rows are joined first and escaped only where the whole holds something to escape, which is
    many times faster than value by value.
    """
    lines = [_line(row) for row in rows]
    text = "\n".join(lines)
    separators = len(rows) * (len(rows[0]) - 1)
    if "\\" in text or "\r" in text or not _counts(text, tabs=separators, lines=len(rows)):
        text = "\n".join("\t".join(_escaped(row)) for row in rows)
    return text.replace(_NULL, "\\N").encode() + b"\n"


def _line(row: Sequence[Text]) -> str:
    try:
        return "\t".join(row)  # type: ignore[arg-type]
    except TypeError:
        return "\t".join([_NULL if value is None else str(value) for value in row])


def _counts(text: str, *, tabs: int, lines: int) -> bool:
    return text.count("\t") == tabs and text.count("\n") == lines - 1


def _escaped(row: Iterable[Text]) -> list[str]:
    return [_NULL if value is None else str(value).translate(_ESCAPES) for value in row]

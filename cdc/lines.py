"""Rows as lines that COPY reads: Postgres documentation, COPY, "CSV Format".

Columns are separated by tabs and NULL is nothing at all; what needs quoting stands between bytes
of the value 1, which texts hardly ever hold. So a value is nearly always its own encoding, and rows
can be cut out of what the plugins send.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from cdc.values import Text

OPTIONS: Final = r"with (format csv, delimiter e'\t', quote e'\x01', null '', encoding 'UTF8')"
"""What COPY is told of the format."""

QUOTE: Final = b"\x01"
EMPTY: Final = QUOTE * 2
SPECIAL: Final = b"\t\n\r\x01"
"""Bytes that a value must be quoted for."""

_SPECIAL: Final = re.compile(r"[\t\n\r\x01]")
_EMPTY: Final = re.compile(r"[\t\n][\t\n]")
_END: Final = r"\."  # alone on a line it would end the data


def encode(values: Sequence[Text]) -> bytes:
    """Encode one row, without the line's end."""
    try:
        line = "\t".join(values)  # type: ignore[arg-type]
    except TypeError:
        line = "\t".join([_field(value) for value in values])
    else:
        if "" in values or line.count("\t") >= len(values) or _must_quote(line):
            line = "\t".join([_field(value) for value in values])
    return line.encode()


def encode_all(rows: Sequence[Sequence[Text]]) -> bytes:
    """Encode rows of as many values each, at least one, into what COPY is sent.

    They are joined first, and looked at one by one only where the whole holds something special:
    that is many times faster.
    """
    try:
        text = "\n".join(map("\t".join, rows))  # type: ignore[arg-type]
    except TypeError:
        return joined(map(encode, rows))
    tabs, lines = len(rows) * (len(rows[0]) - 1), len(rows) - 1
    plain = text.count("\t") == tabs and text.count("\n") == lines
    if not plain or "\r" in text or "\x01" in text or _END in text or _has_empty(text):
        return joined(map(encode, rows))
    return text.encode() + b"\n"


def _has_empty(text: str) -> bool:
    """Tell whether a value may be empty."""
    around = text[:1] + text[-1:]
    return not text or around.strip("\t\n") != around or bool(_EMPTY.search(text))


def decode(text: bytes) -> list[tuple[Text, ...]]:
    """Decode whole lines, each with its end: the inverse of `encode_all`.

    Lines are split at once, and looked at one by one only where something is quoted.
    """
    lines = text.decode().removesuffix("\n")
    if not text:
        return []
    if "\x01" in lines:
        return [_values(line) for line in _whole(lines.split("\n"), "\n")]
    if _has_empty(lines):
        return [tuple([value or None for value in line.split("\t")]) for line in lines.split("\n")]
    return [tuple(line.split("\t")) for line in lines.split("\n")]


def cut(text: bytes, size: int) -> int:
    """Give where the line ends that the byte at `size` is in, or the text."""
    end = text.find(b"\n", size) + 1
    while text.count(QUOTE, 0, end) % 2:  # inside of a value
        end = text.find(b"\n", end) + 1
    return end or len(text)


def _values(line: str) -> tuple[Text, ...]:
    values = line.split("\t")
    if "\x01" not in line:
        return tuple([value or None for value in values])
    return tuple([_unquoted(value) if value else None for value in _whole(values, "\t")])


def _unquoted(value: str) -> str:
    return value[1:-1].replace("\x01\x01", "\x01") if value[0] == "\x01" else value


def _whole(parts: Iterable[str], separator: str) -> Iterator[str]:
    """Join parts again that were split inside of quotes, where a part has an odd number of them."""
    begun: list[str] = []
    for part in parts:
        if part.count("\x01") % 2:
            begun.append(part)
            if len(begun) > 1:
                yield separator.join(begun)
                begun = []
        elif begun:
            begun.append(part)
        else:
            yield part


def joined(rows: Iterable[bytes]) -> bytes:
    """Join encoded rows, at least one, into what COPY is sent."""
    return b"\n".join(rows) + b"\n"


def _must_quote(line: str) -> bool:
    return "\n" in line or "\r" in line or "\x01" in line or line == _END


def _field(value: Text) -> str:
    if value is None:
        return ""
    text = str(value)
    if text and not _SPECIAL.search(text) and text != _END:
        return text
    return "\x01" + text.replace("\x01", "\x01\x01") + "\x01"

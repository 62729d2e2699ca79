"""A position in the write-ahead log."""

import re
from typing import Final, Self

_FORM: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A WAL position in bytes, written as Postgres writes `pg_lsn`: `16/B374D848`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the `X/X` form; raise ValueError where it is not one."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        high, low = match.groups()
        return cls((int(high, 16) << 32) | int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({self!s})"

"""A position in the write-ahead log."""

from typing import Final, Self

_HALF_DIGITS: Final = 8


class Lsn(int):
    """A WAL position in bytes, written as Postgres writes `pg_lsn`: `16/B374D848`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the `X/X` form; raise ValueError where it is not one."""
        high, slash, low = text.partition("/")
        if not slash:
            raise ValueError(f"not an LSN: {text!r}")
        value = (int(high, 16) << 32) | int(low, 16)
        if len(low) > _HALF_DIGITS or not 0 <= value < 1 << 64:
            raise ValueError(f"not an LSN: {text!r}")
        return cls(value)

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({self!s})"

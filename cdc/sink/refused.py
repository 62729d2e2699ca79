"""What is said, of every kind of read database, where it will not take rows or is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cdc.errors import ReadError

UNREACHABLE: Final = "start it, or correct read.url"


class RowsRefused(ReadError):
    """The read database refused rows of a batch."""


@contextmanager
def values_refused() -> Iterator[None]:
    """Tell of a value that the driver cannot send by its error's type alone."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise RowsRefused(f"{type(error).__name__} while sending its values") from None

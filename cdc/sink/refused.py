"""What every kind of read database says of rows it will not take."""

from collections.abc import Iterator
from contextlib import contextmanager

from cdc.errors import ReadError


class RowsRefused(ReadError):
    """The read database refused rows of a batch."""


@contextmanager
def values_refused() -> Iterator[None]:
    """Tell of a value that the driver cannot send by its error's type alone."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise RowsRefused(f"{type(error).__name__} while sending its values") from None

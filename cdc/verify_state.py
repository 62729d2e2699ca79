"""Verifications: how far the read rows of each unit have been compared, and with what result."""

import threading
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from cdc.copy_state import Key, Unit

Phase = Literal["waiting", "comparing", "done"]

Verdict = Literal["missing", "extra", "different"]
"""Of a read row: it should be there; it should not be there; it has other values."""

VERDICTS: Final[tuple[Verdict, ...]] = ("missing", "extra", "different")
WHOLE: Final = 100.0


class Verification(Struct, frozen=True):
    """How far a unit has been compared.

    `asked` counts up each time somebody asks for it anew. `reached` is the key of the last source
    row. `compared` and `skipped` count source rows: those compared, and those left out of a
    sample. `mended` counts the read rows that were put right, of those that were not. `note` says
    what was not compared, and why.
    """

    unit: Unit
    phase: Phase = "waiting"
    asked: int = 1
    sample: float = WHOLE
    repair: bool = False
    reached: Key | None = None
    compared: int = 0
    skipped: int = 0
    expected: int | None = None
    missing: int = 0
    extra: int = 0
    different: int = 0
    mended: int = 0
    note: str | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def due(self) -> bool:
        """Tell whether something is left to be compared."""
        return self.phase != "done"

    @property
    def mismatched(self) -> int:
        """How many read rows are not as they should be."""
        return self.missing + self.extra + self.different - self.mended

    def begun_anew(self) -> "Verification":
        """Give it as it is before the first row; what was mended stays counted."""
        found = self if self.repair else replace(self, missing=0, extra=0, different=0, mended=0)
        return replace(found, reached=None, compared=0, skipped=0)


class Mismatch(Struct, frozen=True):
    """A read row that is not as it should be: its key as text, in the order of the table's key."""

    table: str
    verdict: Verdict
    key: tuple[str | None, ...]


class Ledger:
    """Verifications as far as they are committed. Shared by the threads of the pipeline."""

    def __init__(self, verifications: Iterable[Verification]) -> None:
        """Take what is stored."""
        self._verifications = {one.unit: one for one in verifications}
        self._changed = threading.Condition()
        self._outstanding = 0
        self._fruitless = 0

    @property
    def all(self) -> dict[Unit, Verification]:
        """How far each unit is."""
        with self._changed:
            return dict(self._verifications)

    def current(self, unit: Unit) -> Verification:
        """Give how far a unit is."""
        with self._changed:
            return self._verifications[unit]

    def take(self, verification: Verification) -> None:
        """Note how far a unit is: as it was committed, or somebody asked."""
        with self._changed:
            self._verifications[verification.unit] = verification

    @property
    def fruitless(self) -> int:
        """How many checks have come to nothing: what they were of has to be read again."""
        with self._changed:
            return self._fruitless

    def expect(self) -> None:
        """Note that a check is under way."""
        with self._changed:
            self._outstanding += 1

    def release(self, *, fruitless: bool) -> None:
        """Note that a check is no longer under way."""
        with self._changed:
            self._outstanding -= 1
            self._fruitless += fruitless
            self._changed.notify_all()

    def wait(self, outstanding: int, *, seconds: float) -> bool:
        """Wait until no more than so many checks are under way; tell False where they are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._outstanding <= outstanding, seconds)

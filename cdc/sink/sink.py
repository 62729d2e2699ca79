"""What the writer asks of a kind of read database."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from cdc.projection.batch import Segment


class Holding(NamedTuple):
    """Who holds a lock, and what ends that: SQL, or else a command of the system's."""

    who: str
    ended_by: str


class Sink(Protocol):
    """What of writing is one dialect's own. Works inside the transaction its caller began."""

    takes_lines: bool
    """Whether encoded rows (`cdc.lines`) can be written."""

    def configure(self) -> None:
        """Prepare the session; raise ReadError where its commits could not be relied on."""

    def lock(self, slot: str) -> bool:
        """Take the slot's lock for as long as the connection lives; tell whether it was free."""

    def lock_holder(self, slot: str) -> str:
        """Say who holds the slot's lock."""

    def holding(self, slot: str) -> Holding | None:
        """Look who holds the slot's lock, taking nothing; None where it is free."""

    def end_silent_holder(self, slot: str, *, seconds: float) -> str | None:
        """End the session that holds the slot's lock, where it waits that long for its client.

        Give who it was; None where it does something, or where this is not to be had.
        """

    def positions(self) -> tuple[int, int]:
        """Give how far the read database has written, and how far that is durable.

        Equal where a commit returns when it is durable.
        """

    def flush(self) -> None:
        """Make all commits so far durable."""

    def together(self) -> AbstractContextManager[object]:
        """Send the statements within at once, where the driver can; errors may come at the end."""

    def defer_constraints(self) -> None:
        """Let constraints that may be deferred wait for `check_deferred`."""

    def check_deferred(self) -> None:
        """Check the constraints that wait for the commit now, while the rows can be told."""

    def committed(self) -> None:
        """Note that the transaction is over."""

    def rolled_back(self) -> None:
        """Note a rollback to the savepoint."""

    def keep(self) -> None:
        """Note that the savepoint was released."""

    def copied_directly(self) -> bool:
        """Tell whether rows were written without a look at what is there; from now on, look."""

    def fits(self, values: tuple[Any, ...]) -> bool:
        """Tell whether a row is not larger than the server takes."""

    def apply(self, segment: Segment, *, in_sets: bool = False) -> None:
        """Write one segment of net effects; raise RowsRefused where rows will not be taken.

        `in_sets`: each set of rows by one statement, where the dialect can.
        """

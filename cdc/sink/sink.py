"""What the writer asks of a kind of read database."""

from typing import Protocol

from cdc.projection.batch import Segment


class Sink(Protocol):
    """What of writing is one dialect's own. Works inside the transaction its caller began."""

    def configure(self) -> None:
        """Prepare the session; raise ReadError where its commits could not be relied on."""

    def lock(self, slot: str) -> bool:
        """Take the slot's lock for as long as the connection lives; tell whether it was free."""

    def lock_holder(self, slot: str) -> str:
        """Say who holds the slot's lock."""

    def positions(self) -> tuple[int, int]:
        """Give how far the read database has written, and how far that is durable.

        Equal where a commit returns when it is durable.
        """

    def flush(self) -> None:
        """Make all commits so far durable."""

    def check_deferred(self) -> None:
        """Check the constraints that wait for the commit now, while the rows can be told."""

    def committed(self) -> None:
        """Note that the transaction is over."""

    def rolled_back(self) -> None:
        """Note a rollback to the savepoint."""

    def keep(self) -> None:
        """Note that the savepoint was released."""

    def apply(self, segment: Segment) -> None:
        """Write one segment of net effects; raise RowsRefused where rows will not be taken."""

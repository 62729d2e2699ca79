"""What somebody asks for in the read database, looked up again and again."""

from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import sqlalchemy as sa

from cdc.copy_state import Unit
from cdc.errors import ReadUnavailable
from cdc.sink.engine import connect, translated

T = TypeVar("T")


class Asked(Generic[T]):
    """Looks up what is stored, on a connection of its own. Used by one thread."""

    def __init__(
        self,
        engine: sa.Engine,
        slot: str,
        load: Callable[[sa.Connection, str], dict[Unit, T] | None],
    ) -> None:
        self._engine = engine
        self._slot = slot
        self._load = load
        self._connection: sa.Connection | None = None

    def look(self) -> dict[Unit, T]:
        """Give what is stored; nothing while the read database does not answer."""
        try:
            if self._connection is None:
                self._connection = connect(self._engine)
            with translated(), self._connection.begin():
                return self._load(self._connection, self._slot) or {}
        except ReadUnavailable:  # the writer says so
            self.close()
            return {}

    def close(self) -> None:
        """Disconnect; never raise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError):
                connection.close()

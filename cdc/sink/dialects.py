"""The kinds of read database there are."""

from collections.abc import Callable
from typing import Final

import sqlalchemy as sa

from cdc.sink.mysql import MySQLSink
from cdc.sink.postgres import PostgresSink
from cdc.sink.sink import Sink
from cdc.sink.sqlite import SQLiteSink

_SINKS: Final[dict[str, Callable[[sa.Connection], Sink]]] = {
    "postgresql": PostgresSink,
    "mysql": MySQLSink,
    "sqlite": SQLiteSink,
}


def sink_of(connection: sa.Connection) -> Sink:
    """Give the sink that writes through a connection."""
    return _SINKS[connection.dialect.name](connection)

"""Compare the read database, row by row, with the projection of the write database.

What the read tables should hold is worked out anew: every source row goes through the projectors
as if it had just been inserted, and what they return is written by the sink into temporary tables
shaped like the read tables. Both sides are then values of the same types in the same database,
which compares them. No row leaves it: only counts and keys do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import batched, chain
from typing import Any, Final, Literal

import sqlalchemy as sa
from psycopg import sql

from cdc.change import Inserted, Relation
from cdc.errors import CdcError, ProjectionError
from cdc.operation import Append, Operation, Truncate, Update, key_columns, shape_of
from cdc.projection.batch import NetEffect
from cdc.projection.project import describe
from cdc.projection.projector import Projector
from cdc.projection.registry import Registry
from cdc.schema import Schema, SourceTable
from cdc.sink.engine import translated as read_translated
from cdc.sink.postgres import PostgresSink
from cdc.source.connection import Connection, translated
from cdc.source.relations import Relations

Verdict = Literal["missing", "extra", "different"]
VERDICTS: Final[tuple[Verdict, ...]] = ("missing", "extra", "different")

_CHUNK: Final = 5_000
# The stream ignores row-level security; a comparison that obeyed it would call rows extra.
_SOURCE_SESSION: Final = (
    "set transaction isolation level repeatable read, read only",
    "set local row_security = off",
)
# The sink's session steers away from reading whole tables, which is all that is done here.
_READ_SESSION: Final = sa.text("""
select set_config(name, 'on', true)
from unnest(array['enable_hashjoin', 'enable_mergejoin', 'enable_seqscan']) as name
""")


@dataclass(frozen=True, slots=True)
class TableComparison:
    """How the rows of one read table compare with what the projectors make of the source.

    `keys` holds the first few keys of each verdict, as text, in the order of `key_columns`.
    `skipped` says why a table was not compared; then all counts are zero.
    """

    table: str
    key_columns: tuple[str, ...]
    rows: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    keys: dict[Verdict, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def equal(self) -> bool:
        """Tell whether nothing differs."""
        return not (self.missing or self.extra or self.different)


def compare(
    registry: Registry, schema: Schema, *, source: Connection, read: sa.Connection, keys: int = 10
) -> list[TableComparison]:
    """Compare every read table of the registry; name up to `keys` keys for each verdict.

    Both databases are read as of one moment each: the result means something when the daemon has
    caught up and nothing writes in between. `source` is in autocommit mode; `read` is a connection
    of its own, outside a transaction. Nothing is changed. Raise a CdcError.
    """
    with read_translated(), _rolled_back(read):
        read.execute(_READ_SESSION)
        expectation = _Expectation(registry, read)
        with translated(), _snapshot(source):
            for relations in (Relations(schema),):
                rows = (
                    (relation, row)
                    for name in registry.sources
                    for relation, row in _rows(source, schema[name], relations.known(name))
                )
                del rows
        return [expectation.compare(table, keys) for table in registry.read_tables]

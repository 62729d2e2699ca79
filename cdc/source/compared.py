"""Read a source table for a comparison: by the sums of its rows' hashes, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from cdc import row_hash
from cdc.copy_state import Key
from cdc.source.chunks import ChunkReader


@dataclass(frozen=True, slots=True)
class Summed:
    """How many rows there are, the sum of their hashes (`cdc.row_hash`), and the last one's key.

    `ends` tells that no rows came after them.
    """

    count: int
    total: int
    last: Key | None
    ends: bool


class ComparedReader(ChunkReader):
    """Reads chunks, and what tells of rows without bringing them."""

    def sum(self, columns: Sequence[str], *, after: Key | None, rows: int) -> Summed:
        """Sum up the next rows after a key, in the transaction that `begin` began."""
        with self._described():
            self._opened().execute(row_hash.SETTINGS)
        names = [sql.Identifier(name).as_string() for name in columns]
        wanted = sql.SQL(", ").join(sql.Identifier("t", name) for name in columns)
        row = self._ask(sql.SQL(row_hash.hashed(names)), wanted, after=after, rows=rows)
        return Summed(row[1], int(row[0]), *self._end(row[1:], rows))

    def skip(self, *, after: Key | None, rows: int) -> Summed:
        """Find where the next rows after a key end, by their keys alone; outside a transaction."""
        wanted = sql.SQL(", ").join(sql.Identifier("t", name) for name in self.relation.key)
        row = self._ask(sql.SQL("0"), wanted, after=after, rows=rows)
        return Summed(row[1], 0, *self._end(row[1:], rows))

    def any_left(self, *, after: Key | None, bound: Key) -> bool:
        """Tell whether rows come after a key and not past another; outside a transaction."""
        with self._described():
            order = self._key_order()
            conditions = [order.up_to(bound), *([order.after(after)] if after else [])]
            query = sql.SQL("select exists (select from {} t where {})").format(
                self._from, sql.SQL(" and ").join(conditions)
            )
            row = self._opened().execute(query).fetchone()
        return bool(row and row[0])

    def _end(self, row: Sequence[Any], rows: int) -> tuple[Key | None, bool]:
        count, *last = row
        return (tuple(last) if count else None), count < rows

    def _ask(
        self, first: sql.Composable, wanted: sql.Composable, *, after: Key | None, rows: int
    ) -> tuple[Any, ...]:
        """Ask for something of the next rows, with their number and the last key.

        The key is printed by its types' output functions, as `concat` does.
        """
        with self._described():
            order = self._key_order()
            after_it = sql.SQL("where {}").format(order.after(after)) if after else sql.SQL("")
            last = [
                sql.SQL("(array_agg(concat({})))[count(*)]").format(sql.Identifier(name))
                for name in self.relation.key
            ]
            row = (
                self._opened()
                .execute(
                    sql.SQL(
                        "select {} from (select {} from {} t {} order by {} limit {}) p"
                    ).format(
                        sql.SQL(", ").join([first, sql.SQL("count(*)"), *last]),
                        wanted,
                        self._from,
                        after_it,
                        order.by,
                        sql.Literal(rows),
                    )
                )
                .fetchone()
            )
        assert row is not None  # noqa: S101  an aggregate gives one row
        return tuple(row)

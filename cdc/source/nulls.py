"""Tell NULL from what wal2json 2.5 sends as null: the NaN and infinities of number columns.

wal2json 2.6 can be asked for numbers as text, which has names for them; 2.5 cannot, and prints
null. In a column that is NOT NULL that is told at once. In others the row is looked up as it is
now, many at a time: where it holds NaN or an infinity the stream must not go on. Where it has been
changed since, or is gone, its later change follows and is looked at in its turn, so that no NaN
can stay NULL in the read database; that a value in between could not be told is logged.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from cdc.change import Relation
from cdc.errors import NumberNotSent
from cdc.names import TableName
from cdc.schema import Schema, SourceColumn
from cdc.source.current_rows import CurrentRows, Found, Key

NUMBERS: Final = (700, 701, 1700)  # float4, float8, numeric; a domain's values are sent as text
_AT_ONCE: Final = 1000
_HINT: Final = (
    "install wal2json 2.6 on the write database's server and start again: nothing is lost. Or, "
    'with another source.slot, set plugin = "pgoutput" and copy again. docs/types.md tells more'
)

log = logging.getLogger(__name__)


def is_number(column: SourceColumn) -> bool:
    """Tell whether wal2json prints the column's values as JSON numbers that may be none."""
    return column.type_oid in NUMBERS and not column.generated


class Nulls:
    """What is to be made of a null in a number column. Used by one thread."""

    def __init__(
        self, schema: Schema, rows: CurrentRows, *, trusted: Collection[TableName] = ()
    ) -> None:
        """Take the catalog; the nulls of `trusted` tables are taken for NULL."""
        self._trusted = frozenset(trusted)
        self._required = {
            table.name: {column.name for column in table.columns if column.required}
            for table in schema.values()
        }
        self._rows = rows
        self._doubts: dict[Relation, dict[Key, int]] = {}
        self._count = 0
        self._warned: set[TableName] = set()

    def doubts(self, table: TableName) -> bool:
        """Tell whether nulls of a table's number columns must be looked at."""
        return table not in self._trusted

    def look_at(self, relation: Relation, columns: Sequence[str], key: Key, *, xid: int) -> None:
        """Take note of a new row in which these columns came as null.

        Raise NumberNotSent where that is certain to be no NULL, or cannot be told.
        """
        if relation.name in self._trusted:
            return
        self.look_at_old(relation, columns, key)
        if not key:
            raise not_sent(relation.name, columns[0], key)
        self._doubts.setdefault(relation, {})[key] = xid
        self._count += 1
        if self._count >= _AT_ONCE:
            self.settle()

    def look_at_old(self, relation: Relation, columns: Sequence[str], key: Key) -> None:
        """Raise NumberNotSent where one of the columns cannot be NULL.

        An old row cannot be looked up: a NaN that was in it is NULL there.
        """
        required = self._required.get(relation.name, set())
        for name in columns:
            if name in required and relation.name not in self._trusted:
                raise not_sent(relation.name, name, key)

    def settle(self) -> None:
        """Look up every row noted; raise NumberNotSent where one holds NaN or an infinity."""
        if not self._doubts:
            return
        doubts, self._doubts, self._count = self._doubts, {}, 0
        self._rows.wait_visible({xid for keys in doubts.values() for xid in keys.values()})
        for relation, keys in doubts.items():
            columns = [c.name for c in relation.columns if c.type_oid in NUMBERS]
            found = self._rows.find(relation, keys, columns)
            self._judge(relation, keys, found)

    def _judge(self, relation: Relation, keys: Mapping[Key, int], found: list[Found]) -> None:
        for row in found:
            if row.not_numbers:
                raise not_sent(relation.name, row.not_numbers[0], row.key)
        told = sum(row.xid == keys[row.key] for row in found)
        if told < len(keys) and relation.name not in self._warned:
            self._warned.add(relation.name)
            log.warning(
                "nulls of float and numeric columns could not be told from NaN: their rows have "
                "changed since, and their later changes follow",
                extra={"table": str(relation.name)},
            )


def not_sent(table: TableName, column: str, key: Key) -> NumberNotSent:
    """Say which value wal2json did not send."""
    where = f", in the row with the key ({', '.join(map(repr, key))})" if key else ""
    return NumberNotSent(
        f'column "{column}" of {table} holds NaN or an infinity{where}: wal2json 2.5 sends it as '
        "null",
        hint=_HINT,
    )

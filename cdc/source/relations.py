"""What is known of the source tables while their changes are decoded."""

from collections.abc import Iterable, Mapping
from copy import copy

from cdc.change import Column, Relation
from cdc.names import TableName
from cdc.schema import Schema, SourceColumn, SourceTable
from cdc.snapshot import Snapshot
from cdc.source.partitions import Partitions

Names = Mapping[str, str]


class Relations:
    """Tables by the name they are reported under, as the catalog described them at the start.

    The stream itself says which columns a row has; the catalog adds what it does not say: the key
    columns, which types decode as which, which columns are generated, and whose partition a table
    is.

    A row is as its table was when the row was written, which may be before or after the catalog
    was read. `seen` tells which: what the catalog lacks of a transaction that it saw is gone by
    now, and of any other it is news. `former` gives columns' names of before they were renamed,
    by the tables' names; `former_tables` the tables' own. With `partitions`, changes of every table
    are reported, and those tell whose they are.
    """

    def __init__(
        self,
        schema: Schema,
        seen: Snapshot | None = None,
        former: Mapping[TableName, Names] | None = None,
        former_tables: Mapping[TableName, TableName] | None = None,
        partitions: Partitions | None = None,
    ) -> None:
        self._tables: dict[TableName, SourceTable] = {
            old: schema[new] for old, new in (former_tables or {}).items()
        }
        self._partitions = partitions
        for table in schema.values():
            for name in (table.name, *(() if partitions else table.leaves)):
                self._tables[name] = table
        self._decoded_as = {
            column.type_oid: column.decoded_as
            for table in schema.values()
            for column in table.columns
        }
        self._seen = seen
        self._former = former or {}
        self._covered: bool | None = None
        self.turns = 0  # how often `begin` told that

    def begin(self, xid: int) -> bool:
        """Note whose rows follow; tell whether relations must be described anew for them."""
        if self._partitions is not None:
            self._partitions.begin(xid)
        if self._seen is None:
            return False
        before, self._covered = self._covered, self._seen.sees(xid)
        turned = before is not None and before is not self._covered
        self.turns += turned
        return turned

    @property
    def settled(self) -> bool:
        """Tell whether it is known how the rows of transactions are described."""
        return self._seen is None or self._covered is not None

    def fork(self) -> "Relations":
        """Give the same, for another who begins transactions of its own. Not with `partitions`."""
        return copy(self)

    @property
    def unfiltered(self) -> bool:
        """Tell whether changes of tables that nobody wants are reported too."""
        return self._partitions is not None

    def owner(self, reported: TableName) -> TableName | None:
        """Give the wanted table whose rows those reported are; None where they are nobody's.

        Raise SchemaChanged where that cannot be known any more.
        """
        table = self._table(reported)
        if table is None:
            return reported if self._partitions is None else None
        return table.name

    def _table(self, reported: TableName) -> SourceTable | None:
        table = self._tables.get(reported)
        if table is None and self._partitions is not None:
            root = self._partitions.root_of(reported)
            table = None if root is None else self._tables[root]
        return table

    def known(self, reported: TableName) -> Relation:
        """Give the table as the catalog knows it; without columns where it does not."""
        table = self._table(reported)
        if table is None:
            return Relation(reported, (), ())
        columns = [self.column(c.name, c.type_oid) for c in table.columns if not c.generated]
        key = () if table.generated_key else table.key  # only insert-only tables are without
        return Relation(table.name, tuple(columns), key)

    def described(
        self, reported: TableName, columns: Iterable[Column], key: tuple[str, ...]
    ) -> Relation:
        """Give the table as the stream describes it, compared with the catalog."""
        table = self._table(reported)
        if table is None:
            return Relation(reported, tuple(columns), key)
        listed = tuple(columns)
        catalog = {column.name: column for column in table.columns}
        news: frozenset[str] = frozenset()
        gone: frozenset[str] = frozenset()
        if self._covered:
            gone = frozenset(c.name for c in listed if c.name not in catalog)
        elif self._covered is not None:
            news = frozenset(c.name for c in listed if not _same(c, catalog.get(c.name)))
        return Relation(table.name, listed, key, news, gone)

    def column(self, name: str, type_oid: int, typmod: int | None = None) -> Column:
        """Describe a column by name and type."""
        return Column(name, type_oid, self._decoded_as.get(type_oid, type_oid), typmod)

    def named(self, reported: TableName, names: list[str]) -> list[str]:
        """Give a row's column names as they are now: some were renamed since it was written."""
        table = self._table(reported)
        former = self._former.get(table.name) if table is not None and self._covered else None
        if not former or former.keys().isdisjoint(names):
            return names
        return [n if former.get(n, n) in names else former.get(n, n) for n in names]

    def generated(self, reported: TableName) -> frozenset[str]:
        """Name the generated columns, which pgoutput does not send: dropped everywhere."""
        table = self._table(reported)
        if table is None:
            return frozenset()
        return frozenset(column.name for column in table.columns if column.generated)


def _same(column: Column, known: SourceColumn | None) -> bool:
    return (
        known is not None
        and column.type_oid == known.type_oid
        and column.typmod in {None, known.typmod}
    )

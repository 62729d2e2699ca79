"""What is known of the source tables while their changes are decoded."""

from cdc.change import Column, Relation
from cdc.names import TableName
from cdc.schema import Schema, SourceTable


class Relations:
    """Tables by the name they are reported under, as the catalog described them at the start.

    The stream itself says which columns a row has; the catalog adds what it does not say: the key
    columns, which types decode as which, which columns are generated, and whose partition a table
    is.
    """

    def __init__(self, schema: Schema) -> None:
        self._tables: dict[TableName, SourceTable] = {}
        for table in schema.values():
            for name in (table.name, *table.leaves):
                self._tables[name] = table
        self._decoded_as = {
            column.type_oid: column.decoded_as
            for table in schema.values()
            for column in table.columns
        }

    def known(self, reported: TableName) -> Relation:
        """Give the table as the catalog knows it; without columns where it does not."""
        table = self._tables.get(reported)
        if table is None:
            return Relation(reported, (), ())
        columns = [self.column(c.name, c.type_oid) for c in table.columns if not c.generated]
        key = () if table.generated_key else table.key  # only insert-only tables are without
        return Relation(table.name, tuple(columns), key)

    def column(self, name: str, type_oid: int) -> Column:
        """Describe a column by name and type."""
        return Column(name, type_oid, self._decoded_as.get(type_oid, type_oid))

    def generated(self, reported: TableName) -> frozenset[str]:
        """Name the generated columns, which pgoutput does not send: dropped everywhere."""
        table = self._tables.get(reported)
        if table is None:
            return frozenset()
        return frozenset(column.name for column in table.columns if column.generated)

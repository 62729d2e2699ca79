"""The write database's tables, as its catalog describes them."""

from dataclasses import dataclass
from typing import Literal

from cdc.names import TableName

Identity = Literal["default", "full", "index", "nothing"]


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column: its type, and the built-in types its values are stored and decoded as.

    `required` tells that it is NOT NULL. `missing` is the text that rows from before the column was
    added have in it. `past_unknown` tells that those rows have something that the catalog does not
    tell.
    """

    name: str
    type_oid: int
    type_sql: str
    decoded_as: int
    stored_as: str
    generated: bool
    required: bool = False
    attnum: int = 0
    typmod: int = -1
    missing: str | None = None
    past_unknown: bool = False


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table whose changes are wanted.

    `key` is empty where the replica identity gives none that updates and deletes could use.
    `leaves` are a partitioned table's partitions, under whose names wal2json reports its rows.
    """

    name: TableName
    columns: tuple[SourceColumn, ...]
    key: tuple[str, ...]
    identity: Identity
    partitioned: bool = False
    leaves: tuple[TableName, ...] = ()
    oid: int = 0

    @property
    def generated_key(self) -> str | None:
        """Name a generated column of the key, by which no row can be told: it is not sent."""
        generated = {column.name for column in self.columns if column.generated}
        return next((name for name in self.key if name in generated), None)


Schema = dict[TableName, SourceTable]

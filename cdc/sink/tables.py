"""Read tables: create those that are missing, refuse those that do not fit."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from cdc.errors import ReadTableMismatch
from cdc.operation import key_columns
from cdc.sink.mysql_catalog import MySQLCatalog
from cdc.sink.postgres_catalog import PostgresCatalog
from cdc.sink.read_column import Difference, ReadColumn
from cdc.sink.sqlite_catalog import SQLiteCatalog
from cdc.sink.storage import like

_ANEW: Final = "drop the table: it is made anew, empty."
_SURELY_KEPT_BYTES: Final = 63  # of a name: Postgres cuts what is longer


class Catalog(Protocol):
    """What one dialect says of its tables."""

    def missing(self, tables: Sequence[sa.Table]) -> list[sa.Table]:
        """Give the tables that do not exist, in the order given."""

    def look_up(self, tables: Sequence[sa.Table]) -> None:
        """Take what will be asked of these tables, where that takes less time for all together."""

    def columns(self, table: sa.Table, *, scratch: bool) -> dict[str, ReadColumn]:
        """Describe a table's columns, by name; `scratch`: a temporary one."""

    def unique_keys(self, table: sa.Table) -> list[set[str]]:
        """Give the sets of columns that are unique."""

    def further(self, table: sa.Table) -> list[Difference]:
        """Give what else keeps the table from being used."""

    def drop_scratch(self, table: sa.Table) -> None:
        """Drop a temporary table."""

    def name(self, table: sa.Table) -> str:
        """Give the table's name as SQL takes it."""

    def quote(self, name: str) -> str:
        """Quote an identifier."""

    def literal(self, text: str) -> str:
        """Quote a string."""

    def change_type(self, table: sa.Table, column: str, type_sql: str) -> str | None:
        """Spell the change of a column's type."""

    def drop_required(self, table: sa.Table, column: str, type_sql: str) -> str | None:
        """Spell that a column need not be given."""

    def make_unique(self, table: sa.Table, columns: str) -> str:
        """Spell the unique index that a key needs."""


_CATALOGS: Final[dict[str, Callable[[sa.Connection], Catalog]]] = {
    "postgresql": PostgresCatalog,
    "mysql": MySQLCatalog,
    "sqlite": SQLiteCatalog,
}


def catalog_of(connection: sa.Connection) -> Catalog:
    """Give the catalog of the database a connection goes to."""
    return _CATALOGS[connection.dialect.name](connection)


def require_definable(connection: sa.Connection, tables: Sequence[sa.Table]) -> None:
    """Refuse names that the dialect cannot tell apart, or has no place for."""
    dialect = connection.dialect.name
    if dialect == "postgresql":
        return
    _require_distinct([table.fullname for table in tables], f"two read tables, for {dialect}")
    for table in tables:
        _require_distinct([c.name for c in table.columns], f"two columns of {table.fullname}")
        if table.schema and dialect == "sqlite":
            raise ReadTableMismatch(
                f"read table {table.fullname} names a schema, and SQLite has none",
                hint="leave the read model's `schema` out",
            )


def _require_distinct(names: list[str], what: str) -> None:
    for name, count in Counter(name.casefold() for name in names).items():
        if count > 1:
            raise ReadTableMismatch(
                f"{what} are both named {name}: there, names that differ in case are the same",
                hint="give one another name: a mirror's `target` or `rename`",
            )


def missing(connection: sa.Connection, tables: Sequence[sa.Table]) -> list[sa.Table]:
    """Give the tables that do not exist yet, in the order given."""
    return catalog_of(connection).missing(tables)


def create(connection: sa.Connection, tables: Sequence[sa.Table]) -> None:
    """Create the tables, with their indexes and foreign keys, which may go in a circle.

    Where each statement is a commit of its own (MySQL) a table is one statement: who is killed
    between them goes on with the next table. Raise ReadTableMismatch for a type the dialect lacks.
    """
    if connection.dialect.name == "mysql":
        for table in tables:
            create_one(connection, table)
        return
    for table in tables:
        definition = CreateTable(table)
        _making(table, connection, partial(definition.compile, dialect=connection.dialect))
    for metadata in dict.fromkeys(table.metadata for table in tables):
        together = [table for table in tables if table.metadata is metadata]
        metadata.create_all(connection, tables=together, checkfirst=False)


def column_names(
    connection: sa.Connection, tables: Sequence[sa.Table]
) -> dict[sa.Table, frozenset[str]]:
    """Name the columns that tables have by now; those that do not exist are left out."""
    catalog = catalog_of(connection)
    absent = set(catalog.missing(tables))
    present = [table for table in tables if table not in absent]
    catalog.look_up(present)
    return {table: frozenset(catalog.columns(table, scratch=False)) for table in present}


def type_sql(connection: sa.Connection, column: "sa.Column[Any]") -> str:
    """Spell a column's type as the dialect stores it."""
    compiler = connection.dialect.type_compiler_instance
    return str(compiler.process(column.type, type_expression=column))


def create_one(connection: sa.Connection, table: sa.Table) -> None:
    """Create a table, by the one statement that is its own; raise ReadTableMismatch."""
    _making(table, connection, partial(connection.execute, CreateTable(table)))


def _making(table: sa.Table, connection: sa.Connection, make: Callable[[], object]) -> None:
    try:
        make()
    except sa.exc.CompileError as error:
        text = " ".join(str(error.args[0]).split())
        raise ReadTableMismatch(
            f"read table {table.fullname} cannot be made by {connection.dialect.name}: {text}",
            hint="give the read model a type that every dialect has, or one `.with_variant(...)`",
        ) from None


def misfits(connection: sa.Connection, tables: Sequence[sa.Table]) -> list[ReadTableMismatch]:
    """Compare existing tables with their definitions; give an error for each that differs."""
    catalog, types = catalog_of(connection), _Types(connection)
    catalog.look_up(tables)
    found = []
    for table in tables:
        differences = [
            *_column_differences(catalog, table, types.as_created(table)),
            *_key_differences(catalog, table),
            *catalog.further(table),
        ]
        if differences:
            found.append(_misfit(table, differences))
    return found


def _misfit(table: sa.Table, differences: list[Difference]) -> ReadTableMismatch:
    statements = [statement for _, statement in differences if statement is not None]
    whole = len(statements) == len(differences)
    mend = "on the read database: " + " ".join(f"{s};" for s in statements) + f" Or {_ANEW}"
    return ReadTableMismatch(
        f"read table {table.fullname} does not fit: " + "; ".join(text for text, _ in differences),
        hint=mend if whole else f"on the read database, {_ANEW}",
        sql=statements if whole else (),
    )


def _column_differences(
    catalog: Catalog, table: sa.Table, wanted: Mapping[str, str]
) -> Iterator[Difference]:
    """Compare with the columns wanted, by what the server itself calls their types."""
    actual = catalog.columns(table, scratch=False)
    alter = f"alter table {catalog.name(table)}"
    for name, type_sql in wanted.items():
        if name not in actual:
            add = f"{alter} add column {catalog.quote(name)} {type_sql}"
            yield f'column "{name}" is missing', add
        elif actual[name].type_sql != type_sql:
            change = catalog.change_type(table, name, type_sql)
            yield f'column "{name}" is {actual[name].type_sql}, not {type_sql}', change
    for name, column in actual.items():
        if name not in wanted and column.required:
            mend = catalog.drop_required(table, name, column.type_sql)
            yield f'column "{name}" is not known to the read model, and required', mend


class _Types:
    """What the server calls types, however they are spelled: each is tried once."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._catalog = catalog_of(connection)
        self._known: dict[str, str] = {}

    def as_created(self, table: sa.Table) -> dict[str, str]:
        """Give the types of the columns that a definition gives, by name."""
        columns = [like(column, primary_key=False) for column in table.columns]
        scratch = sa.Table("cdc_fit", sa.MetaData(), *columns, prefixes=["temporary"])
        try:
            spelled = [type_sql(self._connection, column) for column in columns]
        except sa.exc.CompileError:  # making it tells which column it is
            return self._tried(scratch)
        are_names_kept = all(len(column.name.encode()) <= _SURELY_KEPT_BYTES for column in columns)
        if are_names_kept and self._known.keys() >= set(spelled):
            return {c.name: self._known[type_] for c, type_ in zip(columns, spelled, strict=True)}
        tried = self._tried(scratch)
        self._known |= zip(spelled, tried.values(), strict=True)
        return tried

    def _tried(self, scratch: sa.Table) -> dict[str, str]:
        """Create a temporary table; give its columns' types, in order."""
        create_one(self._connection, scratch)
        described = self._catalog.columns(scratch, scratch=True)
        self._catalog.drop_scratch(scratch)
        return {name: column.type_sql for name, column in described.items()}


def _key_differences(catalog: Catalog, table: sa.Table) -> list[Difference]:
    key = key_columns(table)
    if not key or set(key) in catalog.unique_keys(table):
        return []
    columns = ", ".join(map(catalog.quote, key))
    said = f"nothing makes its key ({', '.join(key)}) unique"
    return [(said, catalog.make_unique(table, columns))]

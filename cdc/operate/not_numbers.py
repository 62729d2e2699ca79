"""Which tables hold numbers that wal2json 2.5 may send as null, and whether that could be told."""

from collections.abc import Iterator, Mapping
from typing import Final

from cdc.errors import CdcError, RegistryError, SourceNotReady
from cdc.names import TableName
from cdc.operate.setup import Plan
from cdc.settings import Settings
from cdc.source.connection import Connection, translated
from cdc.source.current_rows import holds_not_numbers
from cdc.source.nulls import is_number

_READABLE = """
select has_schema_privilege(c.relnamespace, 'usage') and has_table_privilege(c.oid, 'select')
       and not row_security_active(c.oid)
from pg_class c where c.oid = %s
"""
_LOOK_MILLISECONDS: Final = 2000
REMEDY: Final = (
    'install wal2json 2.6 on the write database\'s server; or set source.plugin = "pgoutput" with '
    "another source.slot; or, where you know that they hold neither, list the table in "
    "source.trust_nulls"
)

Columns = Mapping[TableName, list[str]]


def trusted(settings: Settings, plan: Plan) -> set[TableName]:
    """Give the tables whose nulls the operator vouches for."""
    patterns = [TableName.parse(text) for text in settings.source.trust_nulls]
    return {name for name in plan.schema if any(name.matches(p) for p in patterns)}


def number_columns(settings: Settings, plan: Plan, *, required: bool) -> Columns:
    """Name the number columns, by table: those that are NOT NULL, or those that are not.

    Tables that are trusted are left out.
    """
    known = trusted(settings, plan)
    named = {
        name: [c.name for c in table.columns if is_number(c) and c.required is required]
        for name, table in plan.schema.items()
        if name not in known
    }
    return {name: columns for name, columns in named.items() if columns}


def refusals(settings: Settings, plan: Plan, source: Connection) -> Iterator[CdcError]:
    """Give an error for each table where a null could not be told from NaN.

    Raise a SourceError.
    """
    for name, columns in number_columns(settings, plan, required=False).items():
        listed = ", ".join(f'"{column}"' for column in columns)
        if name in plan.insert_only:
            yield RegistryError(
                f"wal2json 2.5 sends NaN and infinities as null, and rows of {name}, which is "
                f"insert-only, cannot be looked up to tell them from NULL: columns {listed}",
                hint=REMEDY,
            )
        elif not _readable(source, plan.schema[name].oid):
            yield SourceNotReady(
                f"wal2json 2.5 sends NaN and infinities as null: to tell them from NULL, rows of "
                f"{name} are looked up, which the role may not read whole: columns {listed}",
                hint=f"grant select on {name.sql} to the role in source.dsn, and bypassrls where "
                f"row-level security hides rows from it; or {REMEDY}",
            )


def held(settings: Settings, plan: Plan, source: Connection) -> Iterator[tuple[TableName, str]]:
    """Name the tables that hold NaN or an infinity now, as far as can be seen in a few seconds."""
    for required in (True, False):
        for name, columns in number_columns(settings, plan, required=required).items():
            if _readable(source, plan.schema[name].oid) and holds_not_numbers(
                source, name, columns, milliseconds=_LOOK_MILLISECONDS
            ):
                yield name, ", ".join(f'"{column}"' for column in columns)


def _readable(source: Connection, oid: int) -> bool:
    with translated():
        row = source.execute(_READABLE, [oid]).fetchone()
    return bool(row and row[0])

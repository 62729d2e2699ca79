"""Read rows of the write database again, as they are now."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import psycopg
from psycopg import sql

from cdc.change import Relation
from cdc.errors import SourceUnavailable
from cdc.names import TableName
from cdc.schema import Schema, SourceTable
from cdc.source.connection import Connection, translated
from cdc.values import Text

Key = tuple[Text, ...]

# A commit may be streamed before other sessions see it: with synchronous standbys, long before.
_VISIBLE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.01
# The stream tells 32 bits of a transaction id; its upper half is that of the ids in use now.
_VISIBLE: Final = """
select coalesce(bool_and(pg_visible_in_snapshot(whole::text::xid8, s)), true)
from (select pg_current_snapshot(), pg_snapshot_xmax(pg_current_snapshot())::text::bigint) n(s, m),
     unnest(%s::bigint[]) x,
     lateral (select (m - x) & 4294967295) d(behind),
     lateral (select case when behind < 2147483648 then m - behind
                          else m - behind + 4294967296 end) w(whole)
"""
# Rows must not be hidden; and a table that is being altered must not hold up the stream's feedback.
_SESSION: Final = (
    "set row_security = off",
    "set lock_timeout = '5s'",
    "set statement_timeout = '15s'",
)
_GONE: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidTextRepresentation,
)


class Found(NamedTuple):
    """A row that is there: its key, who wrote it, and which columns hold no number."""

    key: Key
    xid: int
    not_numbers: list[str]


class CurrentRows:
    """Look rows up by key, on a connection of its own that is opened when first needed."""

    def __init__(self, open_: Callable[[], Connection], schema: Schema) -> None:
        self._open = open_
        self._schema = schema
        self._connection: Connection | None = None

    def wait_visible(self, xids: Iterable[int]) -> None:
        """Wait until committed transactions are seen; raise SourceUnavailable where that is long.

        It is tried again from the checkpoint then.
        """
        wanted = list(xids)
        deadline = time.monotonic() + _VISIBLE_SECONDS
        while not self._are_visible(wanted):
            if time.monotonic() > deadline:
                raise SourceUnavailable(
                    "write database: a commit that was streamed is not visible yet (does it wait "
                    "for a synchronous standby?)"
                )
            time.sleep(_PAUSE_SECONDS)

    def _are_visible(self, xids: list[int]) -> bool:
        with translated():
            row = self._opened().execute(_VISIBLE, [xids]).fetchone()
        return bool(row and row[0])

    def find(
        self, relation: Relation, keys: Mapping[Key, int], columns: Sequence[str]
    ) -> list[Found]:
        """Find the rows that have these keys now, and where they hold NaN or an infinity.

        None are found where the table or its columns are no longer there. Raise a SourceError.
        """
        table = self._schema[relation.name]
        statement = _statement(table, relation.key, columns)
        arguments = [list(values) for values in zip(*keys, strict=True)]
        with translated():
            try:
                rows = self._opened().execute(statement, arguments).fetchall()
            except _GONE:
                return []
        ordered = list(keys)
        return [Found(ordered[n - 1], xid, names) for n, xid, names in rows]

    def _opened(self) -> Connection:
        if self._connection is None:
            self._connection = self._open()
            with translated():
                for statement in _SESSION:
                    self._connection.execute(statement)
        return self._connection

    def close(self) -> None:
        """Disconnect; never raise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def _statement(table: SourceTable, key: Sequence[str], columns: Sequence[str]) -> sql.Composed:
    """Join the keys, given as text, with the table."""
    return sql.SQL(
        "select w.n, t.xmin::text::bigint, array_remove(array[{flags}], null) "
        "from unnest({arrays}) with ordinality w({names}, n) join only {table} t on {matches}"
    ).format(
        flags=sql.SQL(", ").join(map(_flag, columns)),
        arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(key)),
        names=sql.SQL(", ").join(_name(f"k{n}") for n in range(len(key))),
        table=_name(*table.name),
        matches=sql.SQL(" and ").join(_match(table, name, n) for n, name in enumerate(key)),
    )


def _name(*parts: str) -> sql.Identifier:
    """Quote a name for a statement with parameters, where % is doubled."""
    return sql.Identifier(*(part.replace("%", "%%") for part in parts))


def _flag(column: str) -> sql.Composed:
    return sql.SQL(
        "case when t.{}::text in ('NaN', 'Infinity', '-Infinity') then {} end::text"
    ).format(_name(column), sql.Literal(column.replace("%", "%%")))


def _match(table: SourceTable, name: str, position: int) -> sql.Composed:
    """Compare a key column: as its own type, or as text where a mirror stores it as text."""
    stored_as = next((c.stored_as for c in table.columns if c.name == name), "text")
    as_text = stored_as in {"text", "text[]"}
    form = "t.{}::text = w.{}" if as_text else f"t.{{}} = w.{{}}::{stored_as}"
    return sql.SQL(form).format(_name(name), _name(f"k{position}"))


_HELD: Final = "select exists (select from only {} t where {})"


def holds_not_numbers(
    connection: Connection, table: TableName, columns: Sequence[str], *, milliseconds: int
) -> bool | None:
    """Tell whether a row of the table holds NaN or an infinity now; None: it takes too long."""
    anywhere = sql.SQL(" or ").join(
        sql.SQL("t.{} in ('NaN', 'Infinity', '-Infinity')").format(sql.Identifier(name))
        for name in columns
    )
    with translated(), connection.transaction():
        connection.execute(f"set local statement_timeout = {milliseconds}")
        try:
            with connection.transaction():
                statement = sql.SQL(_HELD).format(sql.Identifier(*table), anywhere)
                row = connection.execute(statement).fetchone()
        except psycopg.errors.QueryCanceled:
            return None
    return bool(row and row[0])

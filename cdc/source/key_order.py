"""The order of a table's rows by key: that of the key's own index, whatever that is.

The operators and collations are those of the index, named with their schema. The search path would
find others for types of extensions (citext's key is not in the order of text), and then rows would
be left out in silence.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from psycopg import sql
from psycopg.rows import class_row

from cdc.copy_state import Key
from cdc.errors import CatalogOutdated
from cdc.schema import SourceTable
from cdc.source.connection import Connection, translated

# A value is cast to the type the index compares, which has no length that would cut it off; where
# that stands for many types (enums, arrays, ranges, rows), to the column's own. A domain over an
# enum is cast too: the operators of enums do not take it.
_COLUMNS: Final = """
select a.attname as name,
       case when t.typtype = 'p' then format_type(b.oid, b.typmod)
            else format_type(c.opcintype, -1) end as type_sql,
       t.typtype = 'p' and b.oid <> a.atttypid as converted,
       c.opcdefault and k.collated_by in (0, a.attcollation) as usual,
       case when k.collated_by not in (0, a.attcollation)
            then quote_ident(cn.nspname) || '.' || quote_ident(co.collname) end as "collation",
       o.less, o.at_most, o.equal, o.at_least, o.greater
from pg_index i
join pg_class r on r.oid = i.indrelid
cross join unnest(i.indkey, i.indclass, i.indcollation) with ordinality
     as k(attnum, opclass, collated_by, position)
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
join pg_opclass c on c.oid = k.opclass
join pg_type t on t.oid = c.opcintype
left join pg_collation co on co.oid = k.collated_by
left join pg_namespace cn on cn.oid = co.collnamespace
cross join lateral (
    with recursive base(oid, typmod) as (
        select a.atttypid, a.atttypmod
        union all
        select d.typbasetype, d.typtypmod
        from base join pg_type d on d.oid = base.oid where d.typtype = 'd'
    )
    select base.* from base join pg_type d on d.oid = base.oid where d.typtype <> 'd'
) b
cross join lateral (
    select max(form) filter (where amopstrategy = 1) as less,
           max(form) filter (where amopstrategy = 2) as at_most,
           max(form) filter (where amopstrategy = 3) as equal,
           max(form) filter (where amopstrategy = 4) as at_least,
           max(form) filter (where amopstrategy = 5) as greater
    from pg_amop p
    join pg_operator q on q.oid = p.amopopr
    join pg_namespace qn on qn.oid = q.oprnamespace
    cross join lateral (
        select 'operator(' || quote_ident(qn.nspname) || '.' || q.oprname || ')' as form
    ) f
    where p.amopfamily = c.opcfamily and p.amoplefttype = c.opcintype
      and p.amoprighttype = c.opcintype
) o
where i.indrelid = %s and i.indisvalid and i.indimmediate and k.position <= i.indnkeyatts
  and case r.relreplident when 'i' then i.indisreplident when 'n' then false
      else i.indisprimary end
order by k.position
"""


class KeyColumn(NamedTuple):
    """A column of the key, and how its index compares it.

    `converted` tells that it must be cast to be compared; `usual`, that its type and collation are
    compared so unless something else is said.
    """

    name: str
    type_sql: str
    converted: bool
    usual: bool
    collation: str | None
    less: str
    at_most: str
    equal: str
    at_least: str
    greater: str

    @property
    def operand(self) -> sql.Composable:
        """Name the column as it is compared."""
        name = sql.Identifier("t", self.name)
        if self.converted:
            return sql.SQL("{}::{}").format(name, sql.SQL(self.type_sql))
        if self.collation is not None:
            return sql.SQL("{} collate {}").format(name, sql.SQL(self.collation))
        return name

    @property
    def order(self) -> sql.Composable:
        """Write it as rows are ordered by it."""
        if self.usual:
            return sql.Identifier("t", self.name)
        return sql.SQL("{} using {}").format(self.operand, sql.SQL(self.less))

    @property
    def backwards(self) -> sql.Composable:
        """Write it as rows are ordered by it, the last one first."""
        if self.usual:
            return sql.SQL("{} desc").format(sql.Identifier("t", self.name))
        return sql.SQL("{} using {}").format(self.operand, sql.SQL(self.greater))

    def compared(self, operator: str, value: str) -> sql.Composed:
        """Compare it with a value."""
        return sql.SQL("{} {} {}").format(self.operand, sql.SQL(operator), self.literal(value))

    def literal(self, value: str) -> sql.Composed:
        """Write a value, given as text, as one of the column's."""
        return sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(self.type_sql))


class KeyOrder:
    """Conditions and orders, on a table that is called t, by its key."""

    def __init__(self, columns: Sequence[KeyColumn]) -> None:
        self._columns = tuple(columns)

    @classmethod
    def read(cls, connection: Connection, table: SourceTable) -> "KeyOrder":
        """Read how the table's key is ordered, with search_path = pg_catalog.

        Raise CatalogOutdated where it is no longer the table's key.
        """
        with translated(), connection.cursor(row_factory=class_row(KeyColumn)) as cursor:
            columns = cursor.execute(_COLUMNS, [table.oid]).fetchall()
        if tuple(column.name for column in columns) != table.key:
            raise CatalogOutdated(f"table {table.name} no longer has the key it had")
        return cls(columns)

    @property
    def by(self) -> sql.Composed:
        """What follows `order by`."""
        return sql.SQL(", ").join(column.order for column in self._columns)

    @property
    def backwards(self) -> sql.Composed:
        """What follows `order by` for the last rows to come first."""
        return sql.SQL(", ").join(column.backwards for column in self._columns)

    def after(self, key: Key) -> sql.Composable:
        """Hold for the rows that come after a key."""
        greater = {column.greater for column in self._columns}
        if len(greater) > 1:
            return _each_after(self._columns, key)
        return self._compared(greater.pop(), key)

    def up_to(self, key: Key) -> sql.Composable:
        """Hold for the rows that come before a key, and for the one that has it."""
        at_most = {column.at_most for column in self._columns}
        if len(at_most) > 1:
            return _each_up_to(self._columns, key)
        return self._compared(at_most.pop(), key)

    def _compared(self, operator: str, key: Key) -> sql.Composed:
        return sql.SQL("({}) {} ({})").format(
            sql.SQL(", ").join(column.operand for column in self._columns),
            sql.SQL(operator),
            self._literals(key),
        )

    def _literals(self, key: Key) -> sql.Composed:
        return sql.SQL(", ").join(
            column.literal(value) for column, value in zip(self._columns, key, strict=True)
        )

    def among(self, keys: Sequence[Key]) -> sql.Composed:
        """Join t with keys, at least one, so that each is looked up in the index."""
        names = [sql.Identifier("w", f"k{n}") for n in range(len(self._columns))]
        return sql.SQL("(select distinct * from (values {}) v) w({}) on {}").format(
            sql.SQL(", ").join(sql.SQL("({})").format(self._literals(key)) for key in keys),
            sql.SQL(", ").join(sql.Identifier(f"k{n}") for n in range(len(self._columns))),
            sql.SQL(" and ").join(
                sql.SQL("{} {} {}").format(column.operand, sql.SQL(column.equal), name)
                for column, name in zip(self._columns, names, strict=True)
            ),
        )


def _each_after(columns: Sequence[KeyColumn], key: Key) -> sql.Composable:
    """Compare column by column, where no one operator compares all."""
    column, value = columns[0], key[0]
    greater = column.compared(column.greater, value)
    if len(columns) == 1:
        return greater
    return sql.SQL("{} and ({} or ({} and {}))").format(
        column.compared(column.at_least, value),
        greater,
        column.compared(column.equal, value),
        _each_after(columns[1:], key[1:]),
    )


def _each_up_to(columns: Sequence[KeyColumn], key: Key) -> sql.Composable:
    """Likewise, from the other side."""
    column, value = columns[0], key[0]
    at_most = column.compared(column.at_most, value)
    if len(columns) == 1:
        return at_most
    return sql.SQL("{} and ({} or ({} and {}))").format(
        at_most,
        column.compared(column.less, value),
        column.compared(column.equal, value),
        _each_up_to(columns[1:], key[1:]),
    )

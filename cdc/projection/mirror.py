"""Mirrors: projectors from configuration."""

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.types import UserDefinedType

from cdc.change import Change, Inserted, Relation, Truncated, Updated
from cdc.errors import CatalogOutdated, ProjectionError, RegistryError
from cdc.names import TableName
from cdc.operation import (
    Append,
    Delete,
    Move,
    Operation,
    Shape,
    Truncate,
    Upsert,
    key_columns,
    shape_of,
)
from cdc.projection.lines import BulkPlan
from cdc.projection.projector import without_unchanged
from cdc.schema import Schema, SourceColumn, SourceTable
from cdc.settings import MirrorSettings
from cdc.values import Text

Values = tuple[Text, ...]


class Masked(str):
    """A text that a mask was put over already."""

    __slots__ = ()


Carry = Callable[[Values], Values]


class PostgresType(UserDefinedType[Any]):
    """A type by the name Postgres itself prints for it."""

    cache_ok = True

    def __init__(self, type_sql: str) -> None:
        self.type_sql = type_sql

    def get_col_spec(self, **_: Any) -> str:
        """Give the type's SQL."""
        return self.type_sql


class _Plan(NamedTuple):
    """How rows of one relation become rows of the read table."""

    shape: Shape
    carry: Carry
    key_shape: Shape
    carry_key: Carry


@dataclass(eq=False)
class Mirror:
    """A projector that carries a table over as it is, minus, renamed or masked columns."""

    name: str
    source: TableName
    table: sa.Table
    settings: MirrorSettings
    hash_key: bytes
    # A plan and what it is for are one value: the writer's thread projects too, where it applies
    # in order, and rows of other descriptions.
    _last: tuple[Relation, _Plan] | None = field(default=None, init=False)
    _last_in_bulk: tuple[Relation, BulkPlan] | None = field(default=None, init=False)

    @property
    def sources(self) -> tuple[TableName, ...]:
        return (self.source,)

    @property
    def into(self) -> tuple[sa.Table, ...]:
        return (self.table,)

    def operations(self, change: Change) -> Iterable[Operation]:
        if isinstance(change, Truncated):
            return (Truncate(self.table),)
        last = self._last
        if last is None or last[0] is not change.relation:
            last = self._last = (change.relation, self._plan(change.relation))
        plan = last[1]
        if self.settings.insert_only:
            return self._appended(change, plan)
        if isinstance(change, Inserted):
            return (Upsert.of(plan.shape, plan.carry(change.values)),)
        if isinstance(change, Updated):
            return self._updated(change, plan)
        return (Delete.of(plan.key_shape, plan.carry_key(change.key_values)),)

    def _appended(self, change: Change, plan: _Plan) -> Iterable[Operation]:
        if isinstance(change, Inserted):
            return (Append.of(plan.shape, plan.carry(change.values)),)
        return ()

    def _updated(self, change: Updated, plan: _Plan) -> Iterable[Operation]:
        upsert = Upsert.of(plan.shape, plan.carry(change.values))
        write = without_unchanged(upsert) if change.partial else upsert
        if change.old_key_values is None:
            return (write,)
        old = plan.carry_key(change.old_key_values)
        new = plan.carry_key(change.relation.key_of(change.values))
        return (Move.between(plan.key_shape, old, new), write)

    @property
    def in_bulk(self) -> bool:
        """Tell whether rows may be written in bulk: their values are the source's own texts."""
        return not self.settings.mask

    def bulk_plan(self, relation: Relation) -> BulkPlan:
        """Give how rows of a relation are written in bulk; raise ProjectionError."""
        last = self._last_in_bulk
        if last is None or last[0] is not relation:
            last = self._last_in_bulk = (relation, self._planned_in_bulk(relation))
        return last[1]

    def _planned_in_bulk(self, relation: Relation) -> BulkPlan:
        kept = self._kept(relation)
        self._require_columns(kept)
        of = {self._target(name): relation.positions[name] for name in kept}
        key = key_columns(self.table)
        return BulkPlan(
            shape=shape_of(self.table, tuple(of), text=True),
            positions=tuple(of.values()),
            key_shape=shape_of(self.table, key, text=True),
            key_positions=tuple(of[name] for name in key),
        )

    def _plan(self, relation: Relation) -> _Plan:
        """Work out how a relation's rows are carried over."""
        kept = self._kept(relation)
        self._require_columns(kept)
        target = {name: self._target(name) for name in kept}
        return _Plan(
            shape=shape_of(self.table, tuple(target.values()), text=True),
            carry=self._carry(relation.names, kept),
            key_shape=shape_of(self.table, tuple(target[k] for k in relation.key), text=True)
            if key_columns(self.table)
            else shape_of(self.table, (), text=True),
            carry_key=self._carry(relation.key, list(relation.key)),
        )

    def _kept(self, relation: Relation) -> list[str]:
        """Name the columns carried over: not those that the source has lost since.

        Raise CatalogOutdated where the source has changed since the read table was made to fit.
        """
        kept = [name for name in relation.names if name not in self.settings.exclude]
        news = [name for name in kept if name in relation.news]
        if news:
            raise CatalogOutdated(
                f'{relation.name} was given column "{news[0]}", or the column another type'
            )
        stays = {self._target(name) for name in kept if name not in relation.gone}
        missing = {column.name for column in self.table.columns} - stays
        return [n for n in kept if n not in relation.gone or self._target(n) in missing]

    def _target(self, name: str) -> str:
        return self.settings.rename.get(name, name)

    def _require_columns(self, kept: list[str]) -> None:
        known = {column.name for column in self.table.columns}
        for name in kept:
            if self._target(name) not in known:
                raise ProjectionError(
                    f'the source has a new column "{name}" that the read table '
                    f"{self.table.name} lacks",
                    hint="stop the daemon, add the column to the read table (alter table ... add "
                    f'column ...), or list "{name}" in the mirror\'s `exclude`; then start again',
                )

    def _carry(self, names: Sequence[str], kept: list[str]) -> Carry:
        masks = {name: mask for name, mask in self.settings.mask.items() if name in kept}
        if not masks and list(names) == kept:
            return _as_it_is
        picked = [(names.index(name), self._masked(masks.get(name))) for name in kept]
        return lambda values: tuple(mask(values[position]) for position, mask in picked)

    def veiled(self, change: Change) -> Change:
        """Give a change that this mirror makes the same of, without what it does not carry over."""
        if not isinstance(change, Inserted | Updated) or not self._veils:
            return change
        values = zip(change.relation.names, change.values, strict=True)
        change = replace(change, values=tuple(self._veil(*pair) for pair in values))
        return replace(change, old_values=None) if isinstance(change, Updated) else change

    @property
    def _veils(self) -> bool:
        return bool(self.settings.mask or self.settings.exclude)

    def _veil(self, name: str, value: Text) -> Text:
        if not isinstance(value, str):
            return value
        if name in self.settings.exclude:
            return None
        mask = self.settings.mask.get(name)
        return Masked(self._hashed(value)) if mask == "hash" else self._masked(mask)(value)

    def masked(self, name: str, value: Text) -> Text:
        """Give a source column's value as it is written."""
        return self._masked(self.settings.mask.get(name))(value)

    def _masked(self, mask: str | None) -> Callable[[Text], Text]:
        if mask == "null":
            return _null
        return self._hashed if mask == "hash" else _same

    def _hashed(self, value: Text) -> Text:
        if not isinstance(value, str) or isinstance(value, Masked):
            return value
        return hmac.new(self.hash_key, value.encode(), hashlib.sha256).hexdigest()


def _as_it_is(values: Values) -> Values:
    return values


def _same(value: Text) -> Text:
    return value


def _null(_value: Text) -> Text:
    return None


def mirrors(settings: Sequence[MirrorSettings], schema: Schema, *, hash_key: bytes) -> list[Mirror]:
    """Build the mirrors that the configuration asks for of the tables the catalog holds.

    A table named outright wins over a pattern that covers it too. Raise RegistryError for a table
    that does not exist, has no usable key, or whose columns the settings misname.
    """
    covered = [(mirror, table) for mirror in settings for table in _covered(mirror, schema)]
    outright = {table.name for mirror, table in covered if not _is_pattern(mirror)}
    metadata = sa.MetaData()
    return [
        _mirror(mirror, table, metadata=metadata, hash_key=hash_key)
        for mirror, table in covered
        if not (_is_pattern(mirror) and table.name in outright)
    ]


def name_of(mirror: MirrorSettings, source: TableName) -> str:
    """Name the projector that a mirror of a table is."""
    return f"mirror:{source}" + (f">{mirror.target}" if mirror.target else "")


def _is_pattern(mirror: MirrorSettings) -> bool:
    return TableName.parse(mirror.source).is_pattern


def _covered(mirror: MirrorSettings, schema: Schema) -> list[SourceTable]:
    wanted = TableName.parse(mirror.source)
    if wanted.is_pattern:
        covered = [table for name, table in schema.items() if name.matches(wanted)]
    else:
        covered = [schema[wanted]] if wanted in schema else []
    if not covered:
        raise RegistryError(
            f"the write database has no table {wanted} to mirror",
            hint="create it, or correct `source` in [[projection.mirrors]]",
        )
    if wanted.is_pattern and mirror.target is not None:
        raise RegistryError(
            f"the mirror of {wanted} covers several tables and cannot have one `target`",
            hint="leave `target` out, or name the table",
        )
    return covered


def _mirror(
    settings: MirrorSettings, source: SourceTable, *, metadata: sa.MetaData, hash_key: bytes
) -> Mirror:
    _require_key(settings, source)
    _require_names(settings, source)
    table = _read_table(settings, source, metadata)
    name = name_of(settings, source.name)
    return Mirror(name, source.name, table, settings, hash_key)


def _require_key(settings: MirrorSettings, source: SourceTable) -> None:
    if settings.insert_only:
        return
    if not source.key:
        raise RegistryError(
            f"{source.name} has no usable key (replica identity {source.identity}): its updates "
            "and deletes cannot be mirrored",
            hint=f"give it a primary key, or: alter table {source.name.sql} replica identity using "
            "index ...; or mirror its inserts alone with `insert_only = true`",
        )
    if source.generated_key is not None:
        raise RegistryError(
            f'"{source.generated_key}" is part of the key of {source.name}, and generated: it is '
            "not sent, and rows cannot be told apart",
            hint=f"give it a key of other columns: alter table {source.name.sql} replica identity "
            "using index ...",
        )
    lost = [name for name in source.key if name in settings.exclude or name in settings.mask]
    if lost:
        raise RegistryError(
            f'{source.name}: "{lost[0]}" is part of the key and can be neither excluded nor masked'
        )


def _require_names(settings: MirrorSettings, source: SourceTable) -> None:
    known = {column.name for column in source.columns}
    patterned = TableName.parse(settings.source).is_pattern
    for name in () if patterned else (*settings.exclude, *settings.rename, *settings.mask):
        if name not in known:
            raise RegistryError(f'{source.name} has no column "{name}" to exclude, rename or mask')


def _read_table(settings: MirrorSettings, source: SourceTable, metadata: sa.MetaData) -> sa.Table:
    name = settings.target or source.name.table
    if name in metadata.tables:
        raise RegistryError(
            f"two mirrors write the read table {name}; the second is of {source.name}",
            hint="give one of them another `target`",
        )
    excluded = settings.exclude | {column.name for column in source.columns if column.generated}
    kept = [column for column in source.columns if column.name not in excluded]
    _require_distinct([settings.rename.get(c.name, c.name) for c in kept], source)
    keys = () if settings.insert_only else source.key
    return sa.Table(name, metadata, *(_read_column(column, settings, keys) for column in kept))


def _require_distinct(names: list[str], source: SourceTable) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise RegistryError(f'the mirror of {source.name} has two columns named "{name}"')


def _read_column(
    column: SourceColumn, settings: MirrorSettings, keys: tuple[str, ...]
) -> "sa.Column[Any]":
    stored_as = "text" if settings.mask.get(column.name) == "hash" else column.stored_as
    return sa.Column(
        settings.rename.get(column.name, column.name),
        PostgresType(stored_as),
        primary_key=column.name in keys,
        autoincrement=False,
    )

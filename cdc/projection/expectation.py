"""What operations lead to, as rows that the read tables can be compared with."""

from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from cdc.operation import Delete, Operation, Shape, Update, Upsert
from cdc.projection.batch import NetEffect
from cdc.projection.check import Expected, Kind


def expected_of(operations: Iterable[Operation], *, partial: bool = False) -> list[Expected]:
    """Give what operations come to; `partial`: of rows that exist and are not wholly known."""
    effect = NetEffect()
    for operation in operations:
        effect.add(operation)
    found: list[Expected] = []
    later: dict[sa.Table, set[Any]] = {}
    for segment in reversed(effect.segments):
        for table, effects in segment.items():
            done = later.setdefault(table, set())
            writes = [w for key, w in effects.writes.items() if key not in done]
            found += _grouped(writes, partial=partial)
            kept = effects.writes.keys() | done
            found += _grouped([d for key, d in effects.deletes.items() if key not in kept])
            done |= effects.writes.keys() | effects.deletes.keys()
    return found


def _grouped(
    operations: Iterable[Upsert | Update | Delete], *, partial: bool = False
) -> Iterator[Expected]:
    rows: dict[tuple[Kind, Shape], list[tuple[Any, ...]]] = {}
    for operation in operations:
        rows.setdefault((type(operation), operation.shape), []).append(operation.values)
    for (kind, shape), of_shape in rows.items():
        yield Expected(kind, shape, of_shape, exists=kind is Upsert or (partial and kind is Update))

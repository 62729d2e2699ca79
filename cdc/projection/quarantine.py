"""Quarantine: the keys whose changes are set aside, one failing for a reason that will not pass."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple, cast

from cdc.assemble import Transaction
from cdc.change import Change, Column, Deleted, Inserted, Relation, Truncated, Updated
from cdc.copy_state import Unit
from cdc.names import TableName
from cdc.projection.mirror import Masked, Mirror
from cdc.projection.projector import Projector
from cdc.values import UNCHANGED, Text

Key = tuple[str | None, ...]
"""A source row's key as text; of a row without one, a digest of the row."""

Chains = Mapping[Unit, Mapping[Key, int]]

_UNCHANGED: Final = False  # in JSON, beside texts and null


@dataclass(frozen=True, eq=False)
class Held:
    """The keys in quarantine at one time. Unchanging: another one tells that something changed.

    Each key is in a chain, by whose number it is called: keys that a row had one after the other
    are in one. `isolates` tells whether a key whose change fails is to join them.
    """

    chains: Chains = field(default_factory=dict)
    isolates: bool = False

    def __bool__(self) -> bool:
        return bool(self.chains)

    def of(self, unit: Unit) -> Mapping[Key, int]:
        """Give a unit's keys."""
        return self.chains.get(unit, {})

    def chains_of(self, unit: Unit, keys: Iterable[Key]) -> list[int]:
        """Give the chains that hold any of the keys, in order."""
        held = self.of(unit)
        return sorted({held[key] for key in keys if key in held})

    def counts(self) -> Counter[str]:
        """Count the keys by projector."""
        counts: Counter[str] = Counter()
        for unit, keys in self.chains.items():
            counts[unit.projector] += len(keys)
        return counts

    def with_(self, unit: Unit, keys: Mapping[Key, int]) -> "Held":
        """Give it with these as the unit's keys."""
        others = {other: of for other, of in self.chains.items() if other != unit}
        return Held(others | ({unit: dict(keys)} if keys else {}), self.isolates)

    def without(self, chains: Iterable[int]) -> "Held":
        """Give it without the keys of chains."""
        gone = set(chains)
        kept = {
            unit: {key: chain for key, chain in keys.items() if chain not in gone}
            for unit, keys in self.chains.items()
        }
        return Held({unit: keys for unit, keys in kept.items() if keys}, self.isolates)


NOTHING: Final = Held()


class SetAside(NamedTuple):
    """A change that goes into the quarantine, and what failed; None where its key was there."""

    unit: Unit
    transaction: Transaction
    change: Change
    keys: tuple[Key, ...]
    error: str | None = None


def set_aside(
    projector: Projector, change: Change, transaction: Transaction, error: str | None = None
) -> SetAside:
    """Set a change aside; of a mirror, without what it does not carry into the read database."""
    unit, keys = Unit(projector.name, change.relation.name), keys_of(projector, change)
    if isinstance(projector, Mirror):
        change = projector.veiled(change)
    return SetAside(unit, transaction, change, keys, error)


def keys_of(projector: Projector, change: Change) -> tuple[Key, ...]:
    """Give a change's key; where it changed the key, the old one too."""
    if isinstance(change, Truncated):
        return ()
    if not change.relation.key:
        return (_digest(projector, change),)
    if isinstance(change, Deleted):
        return (_as_key(change.key_values),)
    key = _as_key(change.relation.key_of(change.values))
    if isinstance(change, Updated) and change.old_key_values is not None:
        return (key, _as_key(change.old_key_values))
    return (key,)


def _as_key(values: tuple[Text, ...]) -> Key:
    return cast("Key", values)  # a key is always sent


def _digest(projector: Projector, change: Change) -> Key:
    """Tell rows without a key apart without showing them, or what a mirror masks of them."""
    if isinstance(projector, Mirror):
        change = projector.veiled(change)
    values = () if isinstance(change, Deleted | Truncated) else change.values
    return (sha256(repr(values).encode()).hexdigest(),)


# A change as JSON: all that a projector may look at.


def to_json(change: Change) -> str:
    """Write a change down."""
    relation = change.relation
    columns = [[c.name, c.type_oid, c.decoded_as, c.typmod] for c in relation.columns]
    described = {
        "kind": type(change).__name__,
        "relation": {"name": relation.name, "columns": columns, "key": relation.key},
    }
    return json.dumps(described | {name: _plain(getattr(change, name)) for name in _fields(change)})


def from_json(text: str, *, gone: Callable[[Relation], frozenset[str]]) -> Change:
    """Read a change that was written down; `gone` names columns the source has lost since."""
    found = json.loads(text)
    described = found.pop("relation")
    relation = Relation(
        TableName(*described["name"]),
        tuple(Column(*column) for column in described["columns"]),
        tuple(described["key"]),
    )
    relation = Relation(relation.name, relation.columns, relation.key, gone=gone(relation))
    kind = _KINDS[found.pop("kind")]
    change: Change = kind(relation, **{name: _unplain(value) for name, value in found.items()})
    return change


_KINDS: Final[dict[str, Any]] = {kind.__name__: kind for kind in (Inserted, Updated, Deleted)}


def _fields(change: Change) -> tuple[str, ...]:
    return tuple(name for name in change.__struct_fields__ if name != "relation")


def _plain(value: Any) -> Any:
    return list(map(_plain_text, value)) if isinstance(value, tuple) else value


def _plain_text(text: Text) -> Any:
    if isinstance(text, Masked):
        return [str(text)]
    return _UNCHANGED if text is UNCHANGED else text


def _unplain(value: Any) -> Any:
    return tuple(map(_unplain_text, value)) if isinstance(value, list) else value


def _unplain_text(plain: Any) -> Text:
    if isinstance(plain, list):
        return Masked(plain[0])
    return UNCHANGED if plain is _UNCHANGED else plain

"""What failed: where, and for which reason, from closed sets."""

from collections.abc import Mapping
from itertools import product
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from cdc.errors import (
    CatalogOutdated,
    CdcError,
    CheckpointMoved,
    ProjectionError,
    ProtocolError,
    QuarantineFull,
    ReadLocked,
    ReadRefused,
    ReadTableMismatch,
    ReadTransactionLost,
    ReadUnavailable,
    SchemaChanged,
    SlotActive,
    SlotBlocked,
    SourceNotReady,
    SourceRefused,
    SourceUnavailable,
    StartRefused,
    WriteRefused,
)

STAGES: Final = ("start", "receive", "project", "write", "copy", "verify")
"""The start of a session, and the threads of the pipeline."""

TARGETS: Final = ("source", "read")
RETRIED: Final = ("unavailable", "active", "locked", "transaction_lost")
STANDING_BY: Final = (ReadLocked, SlotActive)
"""What is waited for, and is no failure."""

OTHER: Final = "other"
_GROUPS: Final = (
    SourceUnavailable,
    SourceRefused,
    SourceNotReady,
    SlotBlocked,
    ReadUnavailable,
    ReadTransactionLost,
    ReadRefused,
    ReadTableMismatch,
    WriteRefused,
    ProjectionError,
    ProtocolError,
    SchemaChanged,
    CatalogOutdated,
    StartRefused,
    CheckpointMoved,
    QuarantineFull,
)
REASONS: Final = (*(kind.__name__ for kind in _GROUPS), OTHER)


def reason(kind: type[BaseException]) -> str:
    """Name an error as docs/errors.md does: its class, or the one above that has a name here."""
    return next((parent.__name__ for parent in kind.__mro__ if parent in _GROUPS), OTHER)


class Failures:
    """Counts errors, retries and reconnects."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._errors = Counter(
            "cdc_errors",
            "Errors by where they arose and their class; of changes set aside one for each key.",
            ("stage", "reason"),
            registry=registry,
        )
        self._retries = Counter(
            "cdc_retries",
            "Attempts that failed in a way that passes.",
            ("target", "reason"),
            registry=registry,
        )
        self._reconnects = Counter(
            "cdc_reconnects",
            "Databases that were there again after they had failed.",
            ("target",),
            registry=registry,
        )
        for stage, name in product(STAGES, REASONS):
            self._errors.labels(stage, name)
        for target, name in product(TARGETS, RETRIED):
            self._retries.labels(target, name)
        for target in TARGETS:
            self._reconnects.labels(target)
        self._set_aside: dict[type[CdcError], int] = {}
        self._lost: set[str] = set()

    def failed(self, error: BaseException, *, stage: str) -> None:
        """Count an error."""
        if not isinstance(error, STANDING_BY):
            self._errors.labels(stage, reason(type(error))).inc()

    def set_aside(self, keys: Mapping[type[CdcError], int]) -> None:
        """Count keys set aside since the start, by the class of what failed."""
        for kind, count in keys.items():
            stage = "project" if issubclass(kind, ProjectionError) else "write"
            self._errors.labels(stage, reason(kind)).inc(count - self._set_aside.get(kind, 0))
        self._set_aside = dict(keys)

    def retried(self, target: str, reason: str, *, lost: bool) -> None:
        """Count an attempt that failed; `lost` tells that the database did."""
        self._retries.labels(target, reason).inc()
        if lost:
            self._lost.add(target)

    def recovered(self) -> None:
        """Count what had failed: it is there again."""
        for target in self._lost:
            self._reconnects.labels(target).inc()
        self._lost.clear()

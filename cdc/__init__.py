"""The public door: what projectors and applications may use. Nothing else is public."""

from cdc.change import Change, Deleted, Inserted, Row, Truncated, Updated
from cdc.operation import Delete, Operation, Truncate, Update, Upsert
from cdc.projection.projector import projector
from cdc.values import UNCHANGED
from cdc.wait import wait_for, wait_for_async

__all__ = [
    "UNCHANGED",
    "Change",
    "Delete",
    "Deleted",
    "Inserted",
    "Operation",
    "Row",
    "Truncate",
    "Truncated",
    "Update",
    "Updated",
    "Upsert",
    "projector",
    "wait_for",
    "wait_for_async",
]

"""How much WAL the write database keeps for the slot, and what it means when that ends."""

import logging
from typing import Final

from cdc.source.slot import Sample

log = logging.getLogger(__name__)

_MEANING: Final = {
    "extended": "more WAL is kept for it than max_wal_size: the daemon is far behind, or was away",
    "unreserved": "more WAL is kept for it than max_slot_wal_keep_size: the next checkpoint of the "
    "write database may remove it, and then changes are lost (`cdc resync`)",
}
REMEDY: Final = (
    "see what the daemon waits for (/status), or raise max_slot_wal_keep_size; select "
    "pg_reload_conf()"
)


def threat(wal_status: str | None) -> str | None:
    """Say what a slot's wal_status means for it; None where all is well, or lost already."""
    return _MEANING.get(wal_status or "")


class Budget:
    """The slot's WAL as last seen; says once that it is about to be removed."""

    def __init__(self, slot: str) -> None:
        self._slot = slot
        self.wal_status: str | None = None
        self.safe_wal_bytes: int | None = None
        self.retained_wal_bytes: int | None = None

    def look(self, found: Sample) -> None:
        """Take what was seen."""
        before, self.wal_status = self.wal_status, found.wal_status
        self.safe_wal_bytes, self.retained_wal_bytes = found.safe_wal_size, found.retained
        if found.wal_status == "unreserved" != before:
            because = threat(found.wal_status)
            fields = {"slot": self._slot, "because": because, "hint": REMEDY}
            log.warning("slot in danger", extra=fields)
        elif before == "unreserved" and found.wal_status in {"reserved", "extended"}:
            log.info("slot out of danger", extra={"slot": self._slot})

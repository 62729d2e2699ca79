"""What an examination finds: what it is, why it matters, and what mends it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, Self

Where = Literal["write", "read", "configuration"]
"""Where it is mended: in one of the databases, or in what the operator wrote."""

NAMES: Final = {
    # The write database's server.
    "write_version": "the write database's version is too old",
    "write_standby": "the write database is a standby",
    "write_settings": "the sessions' settings do not arrive at the write database: a pooler",
    "wal_level": "`wal_level` is not `logical`",
    "write_encoding": "wal2json would send another encoding than UTF-8",
    "slot_wal_unlimited": "`max_slot_wal_keep_size` is unlimited: the disk may fill",
    "slot_wal_small": "`max_slot_wal_keep_size` is small: the slot may be lost",
    "wal_sender_timeout": "`wal_sender_timeout` is off, very long or very short",
    # What streaming takes.
    "replication_attribute": "the role may not replicate",
    "walsenders": "no walsender is free",
    "replication_slots": "no replication slot is free",
    "output_plugin_libraries": "the server does not allow the plugin",
    "plugin": "the plugin cannot be used",
    "slot_behind": "more WAL than `max_wal_size` is kept for the slot",
    "slot_budget": "the slot is about to be lost",
    # The source tables.
    "source_table": "a table that is wanted is not there",
    "replica_identity": "a table has no usable key",
    "partition_identity": "a partition's replica identity lacks the key",
    "generated_columns": "generated columns are left out",
    "publication_missing": "the publication is not there, or lacks tables",
    "publication_narrow": "the publication leaves out what is wanted",
    "numbers_held": "there are numbers that wal2json 2.5 cannot send",
    "numbers_looked_up": "wal2json 2.5 has rows looked up",
    "schema_usage": "the role may not use a table's schema",
    "table_select": "the role may not read a table",
    "row_security": "row-level security hides rows from the role",
    "emit_message": "the role may not write messages into the WAL",
    # The read database.
    "read_version": "the read database's version is too old",
    "read_standby": "the read database takes no writes",
    "read_settings": "the sessions' settings do not arrive at the read database: a pooler",
    "read_encoding": "the read database's encoding is not UTF-8",
    "read_durability": "the read database may lose what it has committed",
    "read_synchronous_commit": "commits do not wait for the read database's standby",
    "read_binlog_format": "the binary log cannot hold the daemon's transactions",
    "read_packet": "`max_allowed_packet` is small",
    "read_schema": "no schema of the search path exists",
    "read_create": "the role may not create read tables",
    "read_temporary": "the role may not create temporary tables",
    "read_write": "the role may not write read tables",
    "read_folder": "SQLite's file or its folder may not be written to",
    "read_lock": "a session holds the slot's lock and does not stream",
    "read_table": "a read table does not fit",
}
"""The names of what is looked for, each with what it says. Other findings have an error's name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding. `blocks`: it stops the daemon. `sql` is what mends it, statement by statement.

    Where there is SQL, `remedy` begins with it. `name` never changes: scripts may rely on it.
    """

    name: str
    what: str
    why: str
    remedy: str
    blocks: bool = True
    where: Where = "configuration"
    sql: tuple[str, ...] = ()

    @classmethod
    def by_sql(  # noqa: PLR0913  the fields of a finding
        cls,
        name: str,
        what: str,
        why: str,
        *sql: str,
        where: Where,
        then: str = "",
        blocks: bool = True,
    ) -> Self:
        """Make one that SQL mends; `then` says what else there is to do."""
        written = " ".join(f"{statement};" for statement in sql)
        remedy = f"{written} {then}".strip()
        return cls(name, what, why, remedy, blocks, where, sql)

    def __post_init__(self) -> None:
        if self.name not in NAMES and self.name.islower():
            raise ValueError(f"{self.name} is no name of a finding")


Findings = Iterator[Finding]

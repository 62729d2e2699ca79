"""Two fresh clusters: databases, rows carried over beforehand, and the check of the results."""

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from benchmarks.errors import BenchError, Unequal
from cdc.servers import Installation, Server

SOURCE_DB: Final = "bench"
TEMPLATE_DB: Final = "bench_template"
# The last transaction of a backlog inserts a row here: all contestants mirror it, and a contestant
# is done when a reader of the read database sees it.
END_TABLE: Final = "bench_end"

SETTINGS: Final[Mapping[str, str | int | bool]] = {
    "fsync": True,
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "max_replication_slots": 100,
    "max_wal_senders": 20,
    "max_worker_processes": 16,
    "autovacuum": True,
}
_GENERATOR: Final = "-c synchronous_commit=off"  # quicker to prepare; the WAL's content is the same
_ENVIRONMENT: Final[dict[str, str]] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
_LEAVE_SECONDS: Final = 60.0

Counts = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Arena:
    """The source and the read server; the source's data lies in one database."""

    source: Server
    read: Server

    @property
    def installation(self) -> Installation:
        return self.source.installation

    def connect_source(self) -> psycopg.Connection[Any]:
        """Connect as whoever prepares the backlog."""
        return psycopg.connect(self.source.dsn(SOURCE_DB), autocommit=True, options=_GENERATOR)

    def pgbench(
        self,
        *arguments: str,
        server: Server | None = None,
        dbname: str = SOURCE_DB,
        durable: bool = False,
    ) -> str:
        """Run pgbench, by default at the source; give what it printed."""
        dsn = (server or self.source).dsn(dbname)
        command = [self._pgbench, *arguments, dsn]
        environment = _ENVIRONMENT | ({} if durable else {"PGOPTIONS": _GENERATOR})
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if ran.returncode != 0:
            raise BenchError(f"pgbench failed: {ran.stderr.strip()[-500:]}")
        return ran.stdout

    @contextmanager
    def pgbench_meanwhile(self, *arguments: str) -> Iterator[None]:
        """Run pgbench at the source until the block ends; raise BenchError if it ended before."""
        command = [self._pgbench, *arguments, self.source.dsn(SOURCE_DB)]
        running = subprocess.Popen(
            command, env=_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
            if running.poll() is not None:
                raise BenchError(f"pgbench ended with {running.returncode}")
        finally:
            running.terminate()
            running.wait()

    @property
    def _pgbench(self) -> str:
        return str(self.installation.bin / "pgbench")

    def settle(self) -> None:
        """Bring both servers to the same state before a measurement."""
        for server in (self.source, self.read):
            server.psql("checkpoint")

    def fill_template(self, tables: Sequence[str]) -> None:
        """Carry the source's rows over to the template that all contestants' databases copy."""
        with (
            self.source.connect(SOURCE_DB) as source,
            self.read.connect(TEMPLATE_DB) as read,
        ):
            for table in tables:
                _pipe(source, read, table)

    def vacuum_template(self) -> None:
        self.read.psql("vacuum analyze", TEMPLATE_DB)

    def create_read_database(self, name: str) -> None:
        statement = sql.SQL("create database {} template {}")
        with self.read.connect() as connection:
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(TEMPLATE_DB)))

    def drop_read_database(self, name: str) -> None:
        with self.read.connect() as connection:
            connection.execute(
                sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
            )

    def drop_slot(self, name: str) -> None:
        """Drop the slot as soon as its walsender has noticed that its client left."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while time.monotonic() < deadline:
            found = self.source.psql(
                f"select active from pg_replication_slots where slot_name = '{name}'"
            )
            if not found:
                return
            if not found[0][0]:
                self.source.psql(f"select pg_drop_replication_slot('{name}')", SOURCE_DB)
            time.sleep(0.05)
        raise BenchError(f"slot {name} is still in use")

    def fingerprints(self, tables: Sequence[str]) -> Counts:
        """Fingerprint the source's tables."""
        return _fingerprints(self.source, SOURCE_DB, self._columns(tables))

    def verify(self, dbname: str, expected: Counts) -> None:
        """Compare a read database with the source's fingerprints; raise Unequal."""
        found = _fingerprints(self.read, dbname, self._columns(list(expected)))
        different = [
            f"{table} ({found[table][0]} rows, source {expected[table][0]})"
            for table in expected
            if found[table] != expected[table]
        ]
        if different:
            raise Unequal("differs from the source: " + ", ".join(different))

    def _columns(self, tables: Sequence[str]) -> dict[str, list[str]]:
        with self.source.connect(SOURCE_DB) as connection:
            return {table: columns_of(connection, table) for table in tables}


def columns_of(connection: psycopg.Connection[Any], table: str) -> list[str]:
    rows = connection.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 "
        "and not attisdropped order by attnum",
        [table],
    )
    return [name for (name,) in rows]


def _fingerprints(server: Server, dbname: str, columns: Mapping[str, Sequence[str]]) -> Counts:
    """Count rows and add up a hash of all their columns: the order does not matter."""
    with server.connect(dbname) as connection:
        connection.execute("set timezone = 'UTC'")
        return {table: _fingerprint(connection, table, names) for table, names in columns.items()}


def _fingerprint(
    connection: psycopg.Connection[Any], table: str, columns: Sequence[str]
) -> tuple[int, str]:
    statement = sql.SQL(
        "select count(*), coalesce(sum(hashtextextended(row({})::text, 0)::numeric), 0)::text "
        "from {}"
    ).format(sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table))
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0], row[1]


def _pipe(source: psycopg.Connection[Any], read: psycopg.Connection[Any], table: str) -> None:
    name = sql.Identifier(table)
    with (
        source.cursor().copy(sql.SQL("copy {} to stdout").format(name)) as rows,
        read.cursor().copy(sql.SQL("copy {} from stdin").format(name)) as into,
    ):
        for block in rows:
            into.write(block)


@contextmanager
def fresh(installation: Installation) -> Iterator[Arena]:
    """Start both servers with the same settings; remove them afterwards."""
    with Server(installation, SETTINGS) as source, Server(installation, SETTINGS) as read:
        source.create_database(SOURCE_DB)
        read.create_database(TEMPLATE_DB)
        for server, dbname in ((source, SOURCE_DB), (read, TEMPLATE_DB)):
            server.psql(f"create table {END_TABLE} (id int primary key)", dbname)
        yield Arena(source, read)

"""What is read from the socket is what libpq reads from it."""

import os
import select
import socket
from contextlib import closing

import psycopg
import pytest
from psycopg.errors import Diagnostic

from cdc.lsn import Lsn
from cdc.source.connection import Connection, connect_replication
from cdc.source.frame import HEADER_BYTES, position, status
from cdc.source.plain_wire import PlainWire
from cdc.source.wire import EncryptedWire, Wire, wire_of
from tests.conftest import Database

WIRES = (PlainWire, EncryptedWire)
LARGE = 5_000_000


@pytest.fixture
def slots(write: Database) -> list[str]:
    """A slot for each kind of wire."""
    names = [f"{kind.__name__.lower()}_{write.name}" for kind in WIRES]
    write.run(
        "create table rows (id int primary key, text text)",
        "create publication rows for table rows",
        *(f"select pg_create_logical_replication_slot('{name}', 'pgoutput')" for name in names),
    )
    return names


def statement(slot: str, **options: str) -> str:
    listed = {"proto_version": "1", "publication_names": "rows", "messages": "true", **options}
    pairs = ", ".join(f"{name} '{value}'" for name, value in listed.items())
    return f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({pairs})"


def read_up_to(wire: Wire, connection: Connection, end: Lsn) -> list[bytes]:
    """Give what the plugin sent, without the header, in which the time is."""
    frames: list[bytes] = []
    passed = False
    while not passed:
        arrived = wire.read()
        assert not arrived.ended
        frames += [bytes(frame[HEADER_BYTES:]) for frame in arrived.frames]
        passed = any(position(frame) >= end for frame in arrived.frames)
        if not len(arrived.frames) and arrived.other is None:
            select.select([connection.pgconn.socket], [], [], 1)
    return frames


@pytest.mark.parametrize("first", ["few", "many"])
def test_both_wires_carry_the_same_frames(write: Database, slots: list[str], first: str) -> None:
    rows = 10 if first == "few" else 20_000
    write.run(
        f"insert into rows select i, repeat('d', i % 300) from generate_series(1, {rows}) i",
        f"insert into rows values (0, repeat('x', {LARGE}))",
        "update rows set text = 'w' where id < 100",
    )
    end = write.run("select pg_logical_emit_message(true, 'end', '')")
    write.run("select pg_logical_emit_message(true, 'end', '')")
    found = []
    for kind, slot in zip(WIRES, slots, strict=True):
        with closing(connect_replication(write.dsn)) as connection:
            wire = kind(connection, lambda _: None)
            wire.start(statement(slot))
            found.append(read_up_to(wire, connection, end))
            wire.finish(seconds=1)

    plain, encrypted = found

    assert plain == encrypted
    assert len(plain) > rows
    assert max(map(len, plain)) > LARGE


@pytest.mark.parametrize("kind", WIRES)
def test_a_refused_start_may_be_tried_otherwise_and_an_end_is_told(
    write: Database, slots: list[str], kind: type[PlainWire | EncryptedWire]
) -> None:
    notices: list[Diagnostic] = []
    with closing(connect_replication(write.dsn)) as connection:
        wire = kind(connection, notices.append)
        with pytest.raises(psycopg.Error, match="unrecognized pgoutput option") as refused:
            wire.start(statement(slots[0], nonsense="1"))
        assert refused.value.sqlstate == refused.value.diag.sqlstate
        wire.start(statement(slots[WIRES.index(kind)]))
        wire.send(status(written=Lsn(0), flushed=Lsn(0), ask=True), seconds=1)
        while wire.read().other is None:
            select.select([connection.pgconn.socket], [], [], 1)
        write.run(f"select pg_terminate_backend({connection.info.backend_pid})")
        while not wire.read().ended:
            select.select([connection.pgconn.socket], [], [], 1)

        error = wire.ended()

    assert error is not None
    assert (error.sqlstate, error.diag.severity_nonlocalized) == ("57P01", "FATAL")
    assert wire.read().ended


def test_a_connection_that_is_cut_is_told(write: Database, slots: list[str]) -> None:
    with closing(connect_replication(write.dsn)) as connection:
        wire = wire_of(connection, lambda _: None)
        wire.start(statement(slots[0]))
        descriptor = connection.pgconn.socket
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
        while not wire.read().ended:
            select.select([descriptor], [], [], 1)

        error = wire.ended()

    assert isinstance(wire, PlainWire)
    assert error is not None
    assert error.sqlstate is None

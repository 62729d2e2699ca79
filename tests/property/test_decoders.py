"""Frames of a real server, mutated: a decoder reads them or says that it cannot, and soon."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.assemble import Assembler
from cdc.change import Inserted, Updated
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.reader import Reader
from cdc.schema import Schema
from cdc.snapshot import Snapshot
from cdc.source import pgoutput, wal2json, wal2json_rows
from cdc.source.catalog import describe
from cdc.source.connection import connect
from cdc.source.frame import HEADER_BYTES, Stretch
from cdc.source.relations import Relations
from cdc.values import UNCHANGED
from tests.conftest import Database, require

Decoder = wal2json.Wal2Json | pgoutput.PgOutput
DECODERS: dict[str, type[Decoder]] = {
    "wal2json": wal2json.Wal2Json,
    "pgoutput": pgoutput.PgOutput,
}
TABLES = ["t", "whole", 'Odd "Name"', "p"]
SCHEMA = (
    "create table t (id int, k text, n numeric, f float8, b bytea, t text, a text[], "
    "g int generated always as (id * 2) stored, primary key (k, id))",
    "create table whole (id int primary key, v text)",
    "alter table whole replica identity full",
    'create table "Odd ""Name""" ("a ""b"".c" int primary key, "ü" text)',
    "create table p (id int primary key) partition by range (id)",
    "create table p1 partition of p for values from (0) to (100)",
    "alter table t alter t set storage external",
    "alter table whole alter v set storage external",
)
WRITES = (
    "insert into t values (1, 'k', 1.50, -0.0, '\\x00ff', repeat('x', 3000), '{a,NULL}')",
    "insert into t values (2, E'\\t\"\\\\', 'NaN', 1e300, null, 'é🐘', null)",
    "update t set n = 12345678901234567890.5, f = 0 where id = 1",
    "update t set id = 3, k = 'l' where id = 1",
    "delete from t where id = 2",
    "insert into whole values (1, repeat('y', 3000)), (2, null)",
    "update whole set id = id + 10",
    "delete from whole",
    'insert into "Odd ""Name""" values (1, \'x\')',
    'update "Odd ""Name""" set "ü" = null',
    "insert into p select generate_series(1, 3)",
    "truncate t, whole",
    "truncate p",
    "alter table whole add column w int default 7",
    "insert into whole values (5, 'z', 6)",
    "alter table whole alter w type bigint",
    "insert into whole values (6, 'z', 6)",
    "select pg_logical_emit_message(true, 'cdc', 'x')",
)


class Corpus:
    """What each plugin sent for the same writes, and the catalog from before them."""

    def __init__(self, write: Database) -> None:
        require(write.server.installation.wal2json, "wal2json")
        write.run(*SCHEMA)
        slots = {plugin: f"corpus_{plugin}" for plugin in DECODERS}
        with closing(connect(write.dsn)) as source:
            self.schema: Schema = describe(source, [TableName("public", name) for name in TABLES])
        write.run("create publication corpus for all tables with (publish_via_partition_root)")
        for plugin, slot in slots.items():
            write.rows("select pg_create_logical_replication_slot(%s, %s)", slot, plugin)
        write.run(*WRITES)
        write.commit(*WRITES[:8])
        options = [part for pair in wal2json.options(None).items() for part in pair]
        self.frames = {
            "wal2json": [
                text.encode()
                for (text,) in write.rows(
                    "select data from pg_logical_slot_peek_changes(%s, null, null, variadic %s)",
                    slots["wal2json"],
                    options,
                )
            ],
            "pgoutput": [
                bytes(data)
                for (data,) in write.rows(
                    "select data from pg_logical_slot_peek_binary_changes(%s, null, null, "
                    "'proto_version', '1', 'publication_names', 'corpus', 'messages', 'true')",
                    slots["pgoutput"],
                )
            ],
        }

    def decoder(self, plugin: str, seen: int | None) -> Decoder:
        snapshot = None if seen is None else Snapshot(seen)
        return DECODERS[plugin](Relations(self.schema, snapshot))


@pytest.fixture(scope="module")
def corpus(write_server: Any) -> Iterator[Corpus]:
    database = Database(write_server)
    try:
        yield Corpus(database)
    finally:
        database.close()


MUTATE_BYTES = st.tuples(
    st.sampled_from(["cut", "set", "insert", "drop", "repeat", "fill"]),
    st.integers(0, 2**16),
    st.integers(1, 8),
    st.sampled_from([*b'"{}[],:\\0-9tfnuKONIUDRTBCM', 0, 1, 127, 128, 255, 237])
    | st.integers(0, 255),
)
MUTATE_FRAMES = st.tuples(
    st.sampled_from(["drop", "repeat", "swap", "splice", "nest"]),
    st.integers(0, 2**16),
    st.integers(0, 2**16),
)
MUTATIONS = st.lists(st.tuples(st.integers(0, 2**16), MUTATE_BYTES), max_size=4)


def mutated(frame: bytes, kind: str, at: int, length: int, byte: int) -> bytes:
    data = bytearray(frame)
    at %= len(data) + 1
    match kind:
        case "cut":
            del data[at:]
        case "drop":
            del data[at : at + length]
        case "insert":
            data[at:at] = bytes([byte]) * length
        case "repeat":
            data[at:at] = data[max(0, at - length) : at] * length
        case _:  # lengths and counts are of two to eight bytes
            data[at : at + length] = bytes([byte]) * (length if kind == "fill" else 1)
    return bytes(data)


def rearranged(frames: list[bytes], kind: str, one: int, other: int) -> None:
    one, other = one % len(frames), other % len(frames)
    match kind:
        case "drop":
            del frames[one : one + 3]
        case "repeat":
            frames.insert(other, frames[one])
        case "swap":
            frames[one], frames[other] = frames[other], frames[one]
        case "splice":
            middle = len(frames[one]) // 2
            frames[one] = frames[one][:middle] + frames[other][middle:]
        case "nest":
            frames[one] = frames[one].replace(b'"value":', b'"value":' + b"[" * (other + 1), 1)


def read(decoder: Decoder, frames: Sequence[bytes]) -> None:
    """Feed frames on, until one cannot be read; hold what comes out to what is promised."""
    assembler = Assembler(Lsn(0), piece_bytes=2**20)
    for frame in frames:
        for message in decoder.decode(memoryview(frame)):
            if isinstance(message, Inserted | Updated):
                assert len(message.values) == len(message.relation.columns)
                assert all(v is None or v is UNCHANGED or type(v) is str for v in message.values)
                assert len(message.key) == len(message.relation.key)
            assembler.feed(message, len(frame))


@pytest.mark.parametrize("plugin", DECODERS)
@pytest.mark.parametrize("seen", [0, 2**31 - 1])
@pytest.mark.parametrize("at_once", [2, 3, 4, 5])
@pytest.mark.parametrize("together", [False, True])
def test_many_frames_are_read_as_each_by_itself(
    corpus: Corpus,
    plugin: str,
    seen: int,
    at_once: int,
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real values, NaN and -0 among them, of a table with a generated column, and of odd names."""
    if together:
        monkeypatch.setattr(wal2json_rows, "_FIRST_TEMPLATES", 0)
    frames = [memoryview(b"w" + bytes(HEADER_BYTES - 1) + frame) for frame in corpus.frames[plugin]]
    parts = [frames[i : i + at_once] for i in range(0, len(frames), at_once)]
    decoder = corpus.decoder(plugin, seen)
    in_place, left = [], decoder.set_apart

    def noted(stretch: Stretch) -> Any:
        rows, rest = left(stretch)
        in_place.extend(one for one in rest if not isinstance(one, memoryview))
        return rows, rest

    decoder.set_apart = noted  # type: ignore[method-assign]
    found = [
        [
            (transaction.xid, transaction.end_lsn, transaction.changes)
            for part in parts
            for transaction in reader.read(Stretch(part))
        ]
        for reader in (reading(decoder, 2), reading(corpus.decoder(plugin, seen), 10**9))
    ]
    assert found[0] == found[1]
    assert in_place


def reading(decoder: Decoder, bulk_frames: int) -> Reader:
    assembler = Assembler(Lsn(0), piece_bytes=2**20)
    return Reader(decoder, assembler, piece_bytes=2**20, bulk_frames=bulk_frames)


@pytest.mark.parametrize("plugin", DECODERS)
def test_the_frames_as_they_came_are_read(corpus: Corpus, plugin: str) -> None:
    for seen in (None, 0, 2**31 - 1):
        read(corpus.decoder(plugin, seen), corpus.frames[plugin])
    assert len(corpus.frames[plugin]) > 40


@pytest.mark.parametrize("plugin", DECODERS)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(st.lists(MUTATE_FRAMES, max_size=3), MUTATIONS, st.integers(0, 3))
def test_mutated_frames_are_read_or_a_protocol_error(
    corpus: Corpus,
    plugin: str,
    order: list[tuple[str, int, int]],
    mutations: list[tuple[int, tuple[str, int, int, int]]],
    seen: int,
) -> None:
    frames = list(corpus.frames[plugin])
    for change in order:
        rearranged(frames, *change)
    for at, mutation in mutations:
        frames[at % len(frames)] = mutated(frames[at % len(frames)], *mutation)
    began = time.process_time()
    with suppress(ProtocolError):
        read(corpus.decoder(plugin, [None, 0, 740, 2**31 - 1][seen]), frames)
    # Some ten microseconds a frame are usual; a decoder that a length or a count leads astray
    # takes seconds, or gigabytes.
    assert time.process_time() - began < 2


@pytest.mark.parametrize("plugin", DECODERS)
@pytest.mark.parametrize(
    "huge",
    [
        b'{"action":"I","schema":"public","table":"t","columns":[{"name":"id","typeoid":23,"value":'
        + b"[" * 100_000,
        b"[" * 1_000_000,
        b'{"action":"B","xid":' + b"9" * 100_000 + b',"timestamp":"2024-01-01 00:00:00+00"}',
        b'{"action":"B","xid":-1,"timestamp":"99999-01-01 00:00:00+00","lsn":"0/1"}',
        b'{"action":"I","schema":"public","table":"whole","columns":'
        b'[{"name":"id","typeoid":23,"value":1e999999999}]}',
        b'{"action":"T","schema":"\\ud800","table":"t"}',
        b"T" + b"\x7f\xff\xff\xff" + b"\0" * 20,
        b"T" + b"\xff\xff\xff\xff" + b"\0" * 20,
        b"R\0\0\0\1public\0whole\0d\x7f\xff" + b"\1a\0" + b"\0" * 8,
        b"R\0\0\0\1public\0whole\0d\xff\xff",
        b"M\0" + b"\0" * 8 + b"cdc\0\xff\xff\xff\xff",
        b"B" + b"\x7f" + b"\xff" * 19,
    ],
)
def test_absurd_lengths_counts_and_depths_end_soon(
    corpus: Corpus, plugin: str, huge: bytes
) -> None:
    began = time.process_time()
    try:
        corpus.decoder(plugin, 0).decode(huge)
    except ProtocolError:
        pass
    assert time.process_time() - began < 2

"""`cdc check`: every finding is provoked on a real server, mended by its own words, and gone."""

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from cdc.finding import Finding
from cdc.operate.check import check, examination
from cdc.operate.setup import set_up
from cdc.servers import Server, find_wheel
from cdc.sink import server_settings
from cdc.sink.dialects import sink_of
from cdc.sink.engine import create_engine
from cdc.source import server_settings as source_settings
from tests import roles
from tests.conftest import Configuration, Database, require, tells_not_numbers, until
from tests.mariadb import MariaDB
from tests.proxy import Fault, Proxy

Configure = Callable[..., Configuration]


def look(configuration: Configuration) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(configuration.settings())}


def mend(database: Database, found: dict[str, Finding], *names: str) -> None:
    """Execute what the findings say, statement by statement."""
    for name in names:
        assert found[name].sql, found[name]
        assert all(statement in found[name].remedy for statement in found[name].sql)
        database.run(*found[name].sql)


# A server of its own, which is as it should not be.


@pytest.fixture(scope="module")
def ill() -> Iterator[Server]:
    wheel = find_wheel()
    require(wheel, "the wheel's Postgres server")
    settings = {
        "fsync": False,
        "max_replication_slots": 1,
        "max_slot_wal_keep_size": -1,
        "max_wal_senders": 1,
        "output_plugin_libraries": None,
        "synchronous_commit": "local",
        "synchronous_standby_names": "nobody",
        "wal_level": "replica",
        "wal_sender_timeout": 0,
    }
    with Server(wheel, settings) as server:
        server.psql("create role reader login; create role app")
        yield server


@pytest.fixture
def own(ill: Server) -> Iterator[Database]:
    database = Database(ill)
    database.run("create table public.t (id int primary key)")
    yield database
    database.close()


def restart(database: Database) -> None:
    database.connection.close()
    database.server.restart()
    database.connection = database.server.connect(database.name)


def test_a_server_that_is_set_wrongly_is_mended_by_the_sql_that_is_told(
    own: Database, tmp_path: Path, slot_name: str
) -> None:
    server = own.server
    configuration = Configuration(
        tmp_path,
        {
            "source": {"dsn": server.dsn(own.name, "reader"), "slot": slot_name},
            "read": {"url": server.url(own.name, "reader")},
            "projection": {"mirrors": [{"source": "public.t", "target": "u"}]},
        },
    )
    own.run("grant select on t to reader")
    server.psql("select pg_create_physical_replication_slot('somebody')")
    other = psycopg.connect(server.dsn(), replication="true", autocommit=True)  # type: ignore[arg-type]
    found = look(configuration)
    other.close()
    blocking = {
        *("wal_level", "replication_attribute", "walsenders", "replication_slots", "read_create"),
    }
    advice = {
        *("slot_wal_unlimited", "wal_sender_timeout"),
        *("read_durability", "read_synchronous_commit"),
    }
    assert {name for name in found if found[name].blocks} == blocking
    assert set(found) - blocking == advice
    mend(own, found, *blocking, *advice)
    restart(own)
    found = look(configuration)
    assert set(found) == {"output_plugin_libraries"}  # which the role may not see
    mend(own, found, "output_plugin_libraries")
    until(lambda: "output_plugin_libraries" not in look(configuration))
    (plugin,) = look(configuration).values()  # the wheel has no wal2json
    assert plugin.name == "plugin"
    assert 'set plugin = "pgoutput"' in plugin.remedy
    pgoutput = configuration.with_(source={"plugin": "pgoutput"})
    found = look(pgoutput)
    assert set(found) == {"publication_missing"}
    mend(own, found, "publication_missing")
    assert look(pgoutput) == {}
    for lines, name in (
        ("alter system set max_slot_wal_keep_size = '64MB'", "slot_wal_small"),
        ("alter role reader set wal_sender_timeout = '2s'", "wal_sender_timeout"),
        ("alter role reader set wal_sender_timeout = '1h'", "wal_sender_timeout"),
    ):
        own.run(lines, "select pg_reload_conf()")
        until(lambda name=name: set(look(pgoutput)) == {name})
        mend(own, look(pgoutput), name)
        until(lambda: look(pgoutput) == {})
    own.run("alter system set synchronous_standby_names = ''", "select pg_reload_conf()")
    set_up(pgoutput.settings())
    _fall_behind(own, pgoutput)
    _be_a_standby(own, pgoutput)


def _fall_behind(own: Database, configuration: Configuration) -> None:
    """Have more WAL kept for the slot than its limits."""
    own.run("alter system set max_slot_wal_keep_size = '48MB'", "select pg_reload_conf()")
    for _ in range(6):
        own.run("select pg_logical_emit_message(true, 'x', 'x')", "select pg_switch_wal()")
    until(lambda: "slot_budget" in look(configuration))
    mend(own, look(configuration), "slot_budget")
    until(lambda: look(configuration) == {})
    own.run("alter system set max_wal_size = '32MB'", "select pg_reload_conf()")
    until(lambda: set(look(configuration)) == {"slot_behind"})
    own.run("alter system reset max_wal_size", "select pg_reload_conf()")
    until(lambda: look(configuration) == {})


def _be_a_standby(own: Database, configuration: Configuration) -> None:
    own.server.stop()
    (own.server.folder / "data" / "standby.signal").touch()
    own.server.start()
    own.connection.close()
    found = look(configuration)
    assert found["write_standby"].blocks
    assert found["read_standby"].blocks
    assert "target_session_attrs=read-write" in found["write_standby"].remedy
    own.server.psql("select pg_promote()")
    own.connection = own.server.connect(own.name)
    assert not {"write_standby", "read_standby"} & set(look(configuration))


# The write database.


def test_tables_whose_rows_cannot_be_told_apart_are_given_a_key_by_the_sql_that_is_told(
    write: Database, configuration: Configure
) -> None:
    write.run(
        'create schema "S.x"',
        'create table "S.x"."No key" (id text, v text)',
        'create table "S.x".uniq (a int not null, b int not null, v text, unique (a, b))',
        'create table "S.x".off (id int primary key)',
        'alter table "S.x".off replica identity nothing',
        'create table "S.x".fine (id int primary key)',
        "create table parted (id int primary key, v text) partition by range (id)",
        "create table part partition of parted for values from (0) to (10)",
        "alter table part replica identity nothing",
        'create table "Part 2" partition of parted for values from (10) to (20)',
        'alter table "Part 2" replica identity full',
    )
    wanted = configuration(mirrors=[{"source": '"S.x".*'}, {"source": "public.parted"}])
    told = [f for f in check(wanted.settings()) if f.blocks]
    assert {(f.name, f.what.partition(" has")[0]) for f in told} == {
        ("replica_identity", '"S.x".No key'),
        ("replica_identity", '"S.x".uniq'),
        ("replica_identity", '"S.x".off'),
        ("partition_identity", "partition public.part"),
    }
    for finding in told:
        write.run(*finding.sql)
    assert [f for f in check(wanted.settings()) if f.blocks] == []
    assert (
        write.value(
            "select count(*) from pg_attribute where attrelid = '\"S.x\".\"No key\"'::regclass and attname = 'row_id'"
        )
        == 1
    )


def test_what_is_missing_or_left_out_is_told_beside_all_else(
    write: Database, configuration: Configure
) -> None:
    write.run(
        'create table t (id int primary key, "A b" int generated always as (id + 1) stored)',
        "create table nokey (v text)",
    )
    mirrors = [{"source": "public.t"}, {"source": "public.nokey"}, {"source": "public.gone"}]
    found = look(configuration(mirrors=mirrors))
    assert {"source_table", "replica_identity", "generated_columns"} <= set(found)
    assert 'exclude = ["A b"]' in found["generated_columns"].remedy
    write.run("create table gone (id int primary key)")
    mirrors = [
        {"source": "public.t", "exclude": ["A b"]},
        {"source": "public.nokey", "insert_only": True},
        {"source": "public.gone"},
    ]
    assert {n for n, f in look(configuration(mirrors=mirrors)).items() if f.blocks} == set()
    assert "generated_columns" not in look(configuration(mirrors=mirrors))


def test_a_publication_that_the_role_cannot_make_is_made_by_the_sql_that_is_told(
    write: Database, configuration: Configure
) -> None:
    write.run("create table t (id int primary key, v text)")
    mirrored = configuration(mirrors=[{"source": "public.t"}])
    assert not look(mirrored)["publication_missing"].blocks  # its role owns the tables
    dsn = write.server.dsn(write.name, roles.DAEMON)
    reader = mirrored.with_(source={"dsn": dsn})
    found = look(reader)
    assert found["publication_missing"].blocks
    mend(write, found, "publication_missing")
    assert "publication_missing" not in look(reader)
    publication = mirrored.slot
    write.run(
        f"alter publication {publication} set table t (id)",
        f"alter publication {publication} set (publish = 'insert')",
    )
    found = look(reader)
    assert found["publication_narrow"].blocks
    for finding in check(reader.settings()):
        if finding.name == "publication_narrow":
            write.run(*finding.sql)
    assert "publication_narrow" not in look(reader)


def test_a_publication_is_widened_statement_by_statement_whatever_a_table_is_called(
    write: Database, configuration: Configure
) -> None:
    write.run('create table "t; u" (id int primary key, v text)')
    mirrored = configuration(mirrors=[{"source": 'public."t; u"'}])
    write.run(f'create publication {mirrored.slot} for table "t; u" (id)')
    (narrow,) = [f for f in check(mirrored.settings()) if f.name == "publication_narrow"]
    assert len(narrow.sql) == 2
    write.run(*narrow.sql)
    assert "publication_narrow" not in look(mirrored)


def test_a_slot_without_a_checkpoint_is_dropped_by_the_sql_that_is_told(
    write: Database, configuration: Configure
) -> None:
    write.run("create table t (id int primary key)")
    mirrored = configuration(mirrors=[{"source": "public.t"}])
    write.run(f"select pg_create_logical_replication_slot('{mirrored.slot}', 'pgoutput')")
    found = look(mirrored)
    assert found["SlotWithoutCheckpoint"].blocks
    mend_it = found["SlotWithoutCheckpoint"].sql
    assert mend_it
    write.run(*mend_it)
    assert "SlotWithoutCheckpoint" not in look(mirrored)


def test_another_encoding_than_utf8_is_told_on_either_side(
    write_server: Server, read_server: Server, configuration: Configure
) -> None:
    for server in (write_server, read_server):
        server.psql("drop database if exists latin")
        server.psql("create database latin encoding 'LATIN1' locale 'C' template template0")
        server.psql(
            "create role cdc login replication" if not roles.has(server, "cdc") else "select"
        )
    read_server.psql("create schema cdc authorization cdc", "latin")
    dsn, url = write_server.dsn("latin", "cdc"), read_server.url("latin", "cdc")
    wrong = configuration(mirrors=[{"source": "public.*"}]).with_(
        source={"dsn": dsn, "plugin": "wal2json"}, read={"url": url}
    )
    found = look(wrong)
    assert found["write_encoding"].remedy == 'set source.plugin = "pgoutput"'
    assert "write_encoding" not in look(wrong.with_(source={"plugin": "pgoutput"}))
    assert not found["read_encoding"].blocks
    read_server.psql(found["read_encoding"].sql[0])
    mended = wrong.with_(read={"url": read_server.url("latin_utf8", "cdc")})
    assert "read_encoding" not in look(mended)
    for server, name in (
        (write_server, "latin"),
        (read_server, "latin"),
        (read_server, "latin_utf8"),
    ):
        server.psql(f"drop database {name} with (force)")


@pytest.mark.wal2json
def test_numbers_that_wal2json_cannot_send_are_told(
    write: Database, configuration: Configure
) -> None:
    require(write.server.installation.wal2json, "wal2json")
    if tells_not_numbers(write, "wal2json"):
        return  # 2.6 sends them
    write.run("create table t (id int primary key, n float, r float not null)")
    mirrored = configuration("wal2json", mirrors=[{"source": "public.t"}])
    assert "numbers_looked_up" in look(mirrored)
    write.run("insert into t values (1, 'NaN', 0)")
    assert look(mirrored)["numbers_held"].blocks
    assert not {"numbers_held", "numbers_looked_up"} & set(
        look(mirrored.with_(source={"plugin": "pgoutput"}))
    )


# The read database.


def test_what_the_role_lacks_in_postgres_is_mended_by_the_sql_that_is_told(
    write: Database, read: Database, configuration: Configure
) -> None:
    write.run("create table t (id int primary key, v text)")
    mirrored = configuration(mirrors=[{"source": "public.t", "target": "T.x"}])
    assert {n for n, f in look(mirrored).items() if f.blocks} == set()
    role, name = roles.DAEMON, read.name
    for provoke, finding in (
        ("alter schema cdc owner to postgres", "read_create"),
        (f"revoke temporary on database {name} from {role}, public", "read_temporary"),
        (f"alter role {role} in database {name} set search_path = nowhere", "read_schema"),
        (
            f"alter role {role} in database {name} set default_transaction_read_only = on",
            "read_standby",
        ),
    ):
        read.run(provoke)
        found = look(mirrored)
        assert found[finding].blocks, provoke
        mend(read, found, finding)
        assert {n for n, f in look(mirrored).items() if f.blocks} == set(), provoke
    set_up(mirrored.settings())
    read.run('alter table "T.x" owner to postgres', 'alter table "T.x" drop column v')
    found = look(mirrored)
    assert {n for n, f in found.items() if f.blocks} == {"read_write", "read_table"}
    mend(read, found, "read_write", "read_table")
    assert {n for n, f in look(mirrored).items() if f.blocks} == set()


def test_a_lock_that_somebody_holds_without_streaming_is_freed_by_what_is_told(
    write: Database, read: Database, configuration: Configure
) -> None:
    write.run("create table t (id int primary key)")
    mirrored = configuration(mirrors=[{"source": "public.t"}])
    holder = create_engine(read.url).connect()
    assert sink_of(holder).lock(mirrored.slot)
    found = look(mirrored)
    assert not found["read_lock"].blocks
    mend(read, found, "read_lock")
    until(lambda: "read_lock" not in look(mirrored))
    holder.invalidate()
    holder.close()


def test_a_pooler_that_drops_settings_is_told(
    write: Database, read: Database, configuration: Configure
) -> None:
    write.run("create table t (id int primary key)")
    mirrored = configuration(mirrors=[{"source": "public.t"}])
    with _dropping_options(write.server.port) as one, _dropping_options(read.server.port) as two:
        dsn = mirrored.sections["source"]["dsn"].replace(f":{write.server.port}/", f":{one}/")
        url = mirrored.sections["read"]["url"].replace(f":{read.server.port}/", f":{two}/")
        pooled = mirrored.with_(
            source={"dsn": f"{dsn}?sslmode=disable&gssencmode=disable"},
            read={"url": f"{url}?sslmode=disable&gssencmode=disable"},
        )
        found = look(pooled)
    assert found["write_settings"].blocks
    assert found["read_settings"].blocks
    assert not {"write_settings", "read_settings"} & set(look(mirrored))


@contextmanager
def _dropping_options(port: int) -> Iterator[int]:
    """Serve as a pooler does that ignores the start packet's `options`; give the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def pump(one: socket.socket, two: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                two.sendall(data)
        except OSError:
            pass
        for end in (one, two):
            end.close()

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            (length,) = struct.unpack("!i", client.recv(4, socket.MSG_WAITALL))
            packet = client.recv(length - 4, socket.MSG_WAITALL)
            parts = packet[4:].rstrip(b"\0").split(b"\0")
            kept = b"".join(
                key + b"\0" + value + b"\0"
                for key, value in zip(parts[::2], parts[1::2], strict=True)
                if key != b"options"
            )
            packet = packet[:4] + kept + b"\0"
            server.sendall(struct.pack("!i", len(packet) + 4) + packet)
            for pair in ((client, server), (server, client)):
                threads.append(threading.Thread(target=pump, args=pair, daemon=True))
                threads[-1].start()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for thread in (serving, *threads):
            thread.join(10)


def test_a_mariadb_server_that_is_set_wrongly_is_mended_by_the_sql_that_is_told(
    write: Database, configuration: Configure
) -> None:
    write.run("create table t (id int primary key)")
    wrong = {
        "innodb_flush_log_at_trx_commit": 2,
        "log_bin": "log",
        "server_id": 1,
        "binlog_format": "STATEMENT",
        "max_allowed_packet": "1M",
    }
    with MariaDB(wrong) as server:
        name = server.create_database()
        server.query(f"revoke create, delete on {name}.* from 'cdc'@'%'")
        server.query("set global read_only = 1")
        mirrored = configuration(mirrors=[{"source": "public.t"}]).with_(
            read={"url": server.url(name, "cdc")}
        )
        with closing(sa.create_engine(server.url(name, "cdc")).connect()) as holder:
            assert sink_of(holder).lock(mirrored.slot)
            found = look(mirrored)
            names = {
                *("read_standby", "read_durability", "read_binlog_format"),
                *("read_packet", "read_write", "read_lock"),
            }
            assert {n for n in found if n.startswith("read_")} == names
            assert {n for n in names if not found[n].blocks} == {"read_packet", "read_lock"}
            for finding in (found[n] for n in names):
                for statement in finding.sql:
                    server.query(statement)
            until(lambda: not [n for n in look(mirrored) if n.startswith("read_")])
            holder.invalidate()


def test_a_folder_that_is_missing_and_a_lock_file_that_is_held_are_told_of_sqlite(
    write: Database, configuration: Configure, tmp_path: Path
) -> None:
    write.run("create table t (id int primary key)")
    file = tmp_path / "models" / "read.db"
    mirrored = configuration(mirrors=[{"source": "public.t"}]).with_(
        read={"url": f"sqlite:///{file}"}
    )
    assert look(mirrored)["read_folder"].blocks
    file.parent.mkdir()
    assert {n for n in look(mirrored) if n.startswith("read_")} == set()
    holding = (
        "import sys, time; from cdc.sink.engine import create_engine; from cdc.sink.dialects import sink_of\n"
        "c = create_engine(sys.argv[1]).connect(); print(sink_of(c).lock(sys.argv[2]), flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, f"sqlite:///{file}", mirrored.slot]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        found = look(mirrored)
        assert found["read_lock"].remedy == f"kill {holder.pid}"
        subprocess.run(["sh", "-c", found["read_lock"].remedy], check=True)
    assert "read_lock" not in look(mirrored)


@pytest.mark.parametrize("product", server_settings.OLDEST)
def test_a_version_that_is_too_old_is_told(product: str) -> None:
    oldest = server_settings.OLDEST[product]
    assert list(server_settings.too_old(product, oldest)) == []
    (found,) = server_settings.too_old(product, (oldest[0] - 1, 99))
    assert (found.name, found.blocks) == ("read_version", True)
    (found,) = source_settings.too_old(source_settings.OLDEST - 1)
    assert (found.name, found.blocks) == ("write_version", True)


# What does not answer.


def test_a_database_that_does_not_answer_does_not_keep_the_other_from_being_examined(
    write: Database, read: Database, configuration: Configure
) -> None:
    write.run("create table nokey (v text)")
    mirrored = configuration(mirrors=[{"source": "public.nokey"}])
    no_read = look(mirrored.with_(read={"url": "postgresql+psycopg://cdc@127.0.0.1:1/none"}))
    assert {"ReadUnavailable", "replica_identity"} <= set(no_read)
    assert "the rest of it was not looked at" in no_read["ReadUnavailable"].why
    read.run("alter schema cdc owner to postgres")
    no_write = look(mirrored.with_(source={"dsn": "postgresql://cdc@127.0.0.1:1/none"}))
    assert {"SourceUnavailable", "read_create"} <= set(no_write)


def test_a_database_that_stops_answering_is_given_up(
    write: Database, configuration: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    write.run("create table t (id int primary key)")
    mirrored = configuration(mirrors=[{"source": "public.t"}])
    monkeypatch.setattr(examination, "_SECONDS", 1.0)
    fault = Fault("stall", when=lambda passage: b"pg_replication_slots" in passage.data)
    with Proxy(write.server.port) as proxy:
        proxy.inject(fault)
        dsn = mirrored.sections["source"]["dsn"].replace(
            f":{write.server.port}/", f":{proxy.port}/"
        )
        began = time.monotonic()
        found = look(mirrored.with_(source={"dsn": dsn}))
    assert "SourceUnavailable" in found
    assert "ReadUnavailable" not in found
    assert time.monotonic() - began < 10


def test_a_table_that_somebody_has_locked_is_told(
    write: Database, read: Database, configuration: Configure
) -> None:
    write.run("create table t (id int primary key)")
    mirrored = configuration(mirrors=[{"source": "public.t"}])
    set_up(mirrored.settings())
    with read.connect(autocommit=False) as other:
        other.execute("lock table cdc.cdc_checkpoint in access exclusive mode")
        found = look(mirrored)
        other.rollback()
    assert "lock timeout" in found["ReadUnavailable"].what

"""Creating the slot behind transactions that write: said, given up, and nothing is left behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from cdc.errors import SlotBlocked, SourceError, SourceUnavailable
from cdc.operate import setup
from cdc.source.connection import Connection, connect, connect_replication
from cdc.source.slot import read_slot
from cdc.source.slot_creation import create_slot
from tests import roles
from tests.conftest import Configuration, Database, RunningDaemon, environment, until

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
MIRROR = {"source": "public.t"}
SAYS = "creating the slot waits for transactions that write"


@pytest.fixture(autouse=True)
def _tables(write: Database) -> None:
    write.run("create table t (id int primary key, v text)")


@pytest.fixture
def sees_ages(write: Database) -> Iterator[None]:
    """Let the daemon's roles see since when others' transactions run."""
    granted = f"pg_read_all_stats {{}} {roles.DAEMON}, {roles.PUBLISHER}"
    write.run("grant " + granted.format("to"))
    yield
    write.run("revoke " + granted.format("from"))


@pytest.fixture
def writing(write: Database) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that has written, and stays open."""
    connection = write.connect(autocommit=False)
    connection.execute("insert into t values (1, 's3cr3t')")
    yield connection
    connection.close()


def waiting(write: Database) -> bool:
    """Tell whether a walsender waits for a transaction to create a slot here."""
    return bool(
        write.rows(
            "select from pg_locks l join pg_stat_activity a using (pid) "
            "where not l.granted and l.locktype = 'transactionid' "
            "and a.backend_type = 'walsender' and a.datname = %s",
            write.name,
        )
    )


def made(write: Database, slot: str) -> bool:
    """Tell whether a slot has its position."""
    state = read_slot(write.connection, slot)
    return state is not None and state.confirmed_flush is not None


def intents(read: Database) -> list[tuple[Any, ...]]:
    if not read.value("select to_regclass('cdc_checkpoint') is not null"):
        return []
    return read.rows("select slot, lsn from cdc_checkpoint")


@pytest.mark.usefixtures("sees_ages")
def test_a_set_up_that_waits_too_long_names_who_is_writing_and_leaves_nothing_behind(
    write: Database,
    read: Database,
    configuration: Configure,
    writing: psycopg.Connection[Any],
    plugin: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = configuration(plugin, mirrors=[MIRROR]).with_(source={"slot_wait_seconds": 1})
    with pytest.raises(SlotBlocked) as caught:
        setup.set_up(wanted.settings())
    pid = writing.info.backend_pid
    assert f"process {pid} (" in str(caught.value)
    assert f"pg_terminate_backend({pid})" in str(caught.value.hint)
    assert "source.slot_wait_seconds" in str(caught.value.hint)
    assert caught.value.exit_code == 3
    assert not caught.value.transient
    assert write.slots() == []
    assert intents(read) == []
    (said,) = [record for record in caplog.records if record.message == SAYS]
    assert said.__dict__["pids"] == str(pid)
    assert said.__dict__["oldest_seconds"] >= 1
    assert said.__dict__["limit_seconds"] == 1
    writing.commit()
    lsn = setup.set_up(wanted.settings())
    assert intents(read) == [(wanted.slot, lsn)]


def test_a_prepared_transaction_is_named_by_its_gid(
    write: Database, configuration: Configure
) -> None:
    settings = configuration(mirrors=[MIRROR]).with_(source={"slot_wait_seconds": 1}).settings()
    gid = f"forgotten {write.name}"
    with write.connect(autocommit=False) as preparing:
        preparing.execute("insert into t values (1, 'a')")
        preparing.execute(f"prepare transaction '{gid}'".encode())
    try:
        with pytest.raises(SlotBlocked) as caught:
            setup.set_up(settings)
    finally:
        write.run(f"rollback prepared '{gid}'")
    assert f'prepared transaction "{gid}" (' in str(caught.value)
    assert f"rollback prepared '{gid}'" in str(caught.value.hint)
    assert write.slots() == []


def test_only_transactions_that_are_waited_for_are_named(
    write: Database, configuration: Configure, writing: psycopg.Connection[Any]
) -> None:
    settings = configuration(mirrors=[MIRROR]).with_(source={"slot_wait_seconds": 1}).settings()
    late = write.connect(autocommit=False)
    reader = write.connect(autocommit=False)
    reader.execute("select * from t")

    def begin_late() -> None:
        until(lambda: waiting(write))
        late.execute("insert into t values (2, 'b')")

    beginning = threading.Thread(target=begin_late)
    beginning.start()
    try:
        with pytest.raises(SlotBlocked) as caught:
            setup.set_up(settings)
    finally:
        beginning.join()
        late.close()
        reader.close()
    told = re.findall(r"process (\d+)", str(caught.value))
    assert told == [str(writing.info.backend_pid)]


def test_a_role_that_may_not_see_ages_still_names_the_processes(
    write: Database, writing: psycopg.Connection[Any]
) -> None:
    role = f"role_{write.name}"
    write.run(f"create role {role} login replication")
    dsn = write.server.dsn(write.name, role)
    try:
        with closing(connect(dsn)) as source, closing(connect_replication(dsn)) as replication:
            with pytest.raises(SlotBlocked) as caught:
                create_slot(replication, role, "pgoutput", source=source, seconds=0.2)
    finally:
        write.run(f"drop role {role}")
    assert str(caught.value).endswith(f"process {writing.info.backend_pid}")
    assert "grant pg_read_all_stats" in str(caught.value.hint)
    assert write.slots() == []


def test_a_slot_that_is_made_in_time_is_made(
    write: Database, read: Database, configuration: Configure, writing: psycopg.Connection[Any]
) -> None:
    wanted = configuration(mirrors=[MIRROR]).with_(source={"slot_wait_seconds": 0})

    def end() -> None:
        until(lambda: waiting(write))
        writing.commit()

    ending = threading.Thread(target=end)
    ending.start()
    lsn = setup.set_up(wanted.settings())
    ending.join()
    assert intents(read) == [(wanted.slot, lsn)]


class Looking:
    """A connection to look through, which does something before each look but the first."""

    def __init__(self, connection: Connection, before: Callable[[], object]) -> None:
        self._connection = connection
        self._before = before
        self._looks = 0

    def cursor(self, **arguments: Any) -> Any:
        self._looks += 1
        if self._looks > 1:
            self._before()
        return self._connection.cursor(**arguments)


@pytest.fixture
def walsender(write: Database) -> Iterator[Connection]:
    with closing(connect_replication(write.dsn)) as connection:
        yield connection


@pytest.fixture
def source(write: Database) -> Iterator[Connection]:
    with closing(connect(write.dsn)) as connection:
        yield connection


def test_a_slot_that_is_made_at_the_last_moment_is_kept(
    write: Database, walsender: Connection, source: Connection, writing: psycopg.Connection[Any]
) -> None:
    def end() -> None:
        writing.commit()
        until(lambda: made(write, f"s_{write.name}"))

    lsn = create_slot(
        walsender, f"s_{write.name}", "pgoutput", source=Looking(source, end), seconds=0.2
    )
    assert write.slots() == [f"s_{write.name}"]
    assert lsn
    assert walsender.execute("show lock_timeout").fetchone() == ("0",)
    assert walsender.execute("show client_connection_check_interval").fetchone() == ("0",)


@pytest.mark.usefixtures("writing")
def test_a_look_that_fails_ends_the_creation(
    write: Database, walsender: Connection, source: Connection
) -> None:
    with pytest.raises(SourceUnavailable):
        create_slot(
            walsender, "ended", "pgoutput", source=Looking(source, source.close), seconds=0.2
        )
    assert write.slots() == []
    assert not walsender.closed


@pytest.mark.usefixtures("writing")
def test_an_interrupt_from_the_keyboard_ends_the_creation(
    write: Database, walsender: Connection, source: Connection
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_slot(walsender, "ended", "pgoutput", source=Looking(source, interrupt), seconds=0.2)
    assert write.slots() == []


@pytest.mark.usefixtures("writing")
@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_walsender_that_is_ended_leaves_no_slot(
    write: Database,
    walsender: Connection,
    source: Connection,
    how: str,
) -> None:
    def end() -> None:
        until(lambda: waiting(write))
        write.rows(f"select {how}(%s)", walsender.info.backend_pid)

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(SourceError) as caught:
        create_slot(walsender, "ended", "pgoutput", source=source, seconds=0)
    ending.join()
    assert caught.value.transient
    until(lambda: write.slots() == [])


def test_a_connection_that_breaks_meanwhile_leaves_the_intent_for_the_slot_that_may_come(
    read: Database,
    write: Database,
    configuration: Configure,
    writing: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_it(connection: Connection) -> None:
        until(lambda: waiting(write))
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RD)  # the server does not see it

    def opened(dsn: str) -> Connection:
        connection = connect_replication(dsn)
        threading.Thread(target=break_it, args=[connection]).start()
        return connection

    wanted = configuration(mirrors=[MIRROR])
    with monkeypatch.context() as patched:
        patched.setattr(setup, "connect_replication", opened)
        with pytest.raises(SourceUnavailable):
            setup.set_up(wanted.settings())
    assert intents(read) == [(wanted.slot, None)]
    writing.commit()
    until(lambda: not read_slot(write.connection, wanted.slot) or made(write, wanted.slot))
    lsn = setup.set_up(wanted.settings())
    assert intents(read) == [(wanted.slot, lsn)]


# The daemon.


@pytest.mark.usefixtures("sees_ages")
def test_a_daemon_that_waits_too_long_ends_with_the_error(
    write: Database,
    read: Database,
    configuration: Configure,
    writing: psycopg.Connection[Any],
    cdc_start: Start,
) -> None:
    wanted = configuration(mirrors=[MIRROR]).with_(source={"slot_wait_seconds": 1})
    daemon = cdc_start(wanted, "--log-format", "json")
    assert daemon.ends() == 3
    pid = writing.info.backend_pid
    *lines, error, hint = daemon.log.splitlines()
    (said,) = [line for line in map(json.loads, lines) if line["message"] == SAYS]
    assert said["pids"] == str(pid)
    assert f"process {pid} (" in error
    assert f"pg_terminate_backend({pid})" in hint
    assert "s3cr3t" not in daemon.log
    assert "insert into" not in daemon.log
    assert write.slots() == []
    assert intents(read) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("writing")
def test_a_signal_while_it_waits_ends_it_at_once_with_nothing_left(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    number: signal.Signals,
) -> None:
    daemon = cdc_start(configuration(mirrors=[MIRROR]))
    daemon.wait_until(lambda: waiting(write))
    assert daemon.stop(number) == 0
    until(lambda: write.slots() == [])
    assert intents(read) == []


@pytest.mark.usefixtures("sees_ages")
def test_where_the_daemon_is_held_up_the_server_gives_up_by_itself(
    write: Database,
    read: Database,
    configuration: Configure,
    writing: psycopg.Connection[Any],
    cdc_start: Start,
) -> None:
    daemon = cdc_start(configuration(mirrors=[MIRROR]).with_(source={"slot_wait_seconds": 2}))
    daemon.wait_until(lambda: waiting(write))
    daemon.process.send_signal(signal.SIGSTOP)
    until(lambda: write.slots() == [])
    daemon.process.send_signal(signal.SIGCONT)
    assert daemon.ends() == 3
    assert f"process {writing.info.backend_pid} (" in daemon.log
    assert intents(read) == []


def test_a_daemon_that_was_killed_while_it_waited_begins_anew(
    write: Database,
    read: Database,
    configuration: Configure,
    writing: psycopg.Connection[Any],
    cdc_start: Start,
) -> None:
    wanted = configuration(mirrors=[MIRROR])
    daemon = cdc_start(wanted)
    daemon.wait_until(lambda: waiting(write))
    daemon.kill()
    assert intents(read) == [(wanted.slot, None)]
    again = cdc_start(wanted)  # while the server may still be at it
    again.wait_until(lambda: SAYS in again.log)
    writing.commit()
    again.wait_started()
    write.run("insert into t values (2, 'b')")
    again.wait_until(lambda: (2, "b") in read.rows("select id, v from t"))
    assert write.slots() == [wanted.slot]


@pytest.mark.usefixtures("writing")
def test_the_server_notices_a_daemon_that_was_killed_and_takes_the_slot_away(
    write: Database,
    configuration: Configure,
    cdc_start: Start,
) -> None:
    daemon = cdc_start(configuration(mirrors=[MIRROR]))
    daemon.wait_until(lambda: waiting(write))
    daemon.kill()
    until(lambda: write.slots() == [])


def test_a_set_up_that_is_interrupted_leaves_no_slot_and_goes_on_later(
    write: Database,
    read: Database,
    configuration: Configure,
    writing: psycopg.Connection[Any],
) -> None:
    wanted = configuration(mirrors=[MIRROR])
    command = [sys.executable, "-m", "cdc", "setup", "--config", str(wanted.file())]
    process = subprocess.Popen(
        command, cwd=wanted.folder, env=environment(), stderr=subprocess.PIPE
    )
    until(lambda: waiting(write))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    until(lambda: write.slots() == [])
    writing.commit()
    lsn = setup.set_up(wanted.settings())
    assert intents(read) == [(wanted.slot, lsn)]

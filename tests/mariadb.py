"""A MariaDB server of our own, started as our child in a folder that goes with it.

As under its service unit (Restart=on-abnormal) it is started again where it crashes by itself: 10.11
has done so as a client vanished in the midst of a query (in ha_maria::drop_table), of which nothing
may be lost either. Standard error tells.
"""

import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from cdc.servers import process
from cdc.servers.server import _free_port

CONFIG = Path(__file__).parents[1] / "config"
# Where a server's binaries are that are not on everybody's PATH.
PLACES = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
# innodb_flush_log_at_trx_commit and sync_binlog stay as they must be; the disk is not waited for.
DEFAULTS: Mapping[str, object] = {
    "bind_address": "127.0.0.1",
    "character_set_server": "latin1",
    "innodb_buffer_pool_size": "64M",
    "innodb_flush_method": "nosync",
    "innodb_log_file_size": "64M",
    "max_allowed_packet": "16M",
    "performance_schema": 0,
    "skip_name_resolve": 1,
}


_CUT_OFF = (2003, 2006, 2013)


def find() -> str | None:
    """Give the server's program; None where there is none."""
    return shutil.which("mariadbd", path=PLACES) or shutil.which("mysqld", path=PLACES)


class MariaDB:
    """A throwaway server; a context manager that starts it and removes all of it."""

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self.settings = dict(DEFAULTS) | dict(settings or {})
        self.port = _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="cdc-maria-"))
        self._account = process.server_account()
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._spawning = threading.Lock()
        self._answers = threading.Event()
        self._engines: dict[str, sa.Engine] = {}  # what they learn of the server is learnt once

    def __enter__(self) -> Self:
        try:
            self._install()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server and return when it answers."""
        self._start()
        self._wanted = True
        threading.Thread(target=self._attend, args=(self._process,), daemon=True).start()

    def _start(self) -> None:
        program = find()
        assert program is not None
        self._spawn(program, *self._options())
        deadline = time.monotonic() + 60
        while True:
            with suppress(sa.exc.DBAPIError):
                self._query("select 1", "")
                self._answers.set()
                return
            assert self.running, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def _attend(self, process: subprocess.Popen[bytes] | None) -> None:
        """Start the server again for as long as it crashes and nobody wanted that."""
        while process is not None:
            code = process.wait()
            self._answers.clear()
            with self._spawning:
                if not self._wanted or process is not self._process:
                    return
                self._start()
            print(f"MariaDB ended with {code} by itself", file=sys.__stderr__)
            process = self._process

    def kill(self) -> None:
        """SIGKILL the server, as a power cut would; keep its files."""
        self._wanted = False
        with self._spawning:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def url(self, database: str = "", user: str = "test") -> str:
        return f"mysql+pymysql://{user}:pw@127.0.0.1:{self.port}/{database}"

    def query(self, statement: str, database: str = "") -> list[tuple[Any, ...]]:
        """Execute a statement in autocommit mode as an administrator; give its rows."""
        serving = self._process
        try:
            return self._query(statement, database)
        except sa.exc.OperationalError as error:
            if error.orig.args[0] not in _CUT_OFF or not self._is_back_after(serving):
                raise
        return self._query(statement, database)

    def _is_back_after(self, serving: subprocess.Popen[bytes] | None) -> bool:
        """Wait for the server where it has crashed; tell whether it had."""
        deadline = time.monotonic() + 1
        while self._wanted and time.monotonic() < deadline:
            if self._process is not serving or not self.running or not self._answers.is_set():
                time.sleep(0.05)  # until `_attend` has seen it
                return self._answers.wait(60)
            time.sleep(0.01)
        return False

    def _query(self, statement: str, database: str) -> list[tuple[Any, ...]]:
        if database not in self._engines:
            url = self.url(database)
            self._engines[database] = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with (
            self._engines[database]
            .connect()
            .execution_options(isolation_level="AUTOCOMMIT") as connection
        ):
            result = connection.exec_driver_sql(statement.replace("%", "%%"))
            return [tuple(row) for row in result] if result.returns_rows else []

    def create_database(self) -> str:
        name = f"test_{secrets.token_hex(5)}"
        self.query(f"create database {name}")
        shipped = (CONFIG / "mariadb" / "read-role.sql").read_text()
        for statement in re.sub("--.*", "", shipped).replace("shop_read", name).split(";"):
            if statement.strip():
                self.query(statement)
        self.query("set password for 'cdc'@'%' = password('pw')")
        return name

    def _options(self) -> list[str]:
        given = [f"--{name.replace('_', '-')}={value}" for name, value in self.settings.items()]
        return [
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--port={self.port}",
            f"--init-file={self.folder / 'init.sql'}",
            *given,
        ]

    def _install(self) -> None:
        (self.folder / "data").mkdir()
        (self.folder / "log").touch()
        (self.folder / "init.sql").write_text(
            "create user if not exists test@'%' identified by 'pw';\n"
            "grant all on *.* to test@'%' with grant option;\n"
        )
        process.own(self.folder, self._account)
        install = shutil.which("mariadb-install-db", path=PLACES)
        assert install is not None
        folder = f"--datadir={self.folder / 'data'}"
        auth = "--auth-root-authentication-method=normal"
        self._spawn(install, "--no-defaults", folder, auth, "--skip-test-db", "--skip-name-resolve")
        assert self._process is not None
        assert self._process.wait() == 0, self.log

    def _spawn(self, *command: str) -> None:
        log = self.folder / "log"
        self._process = process.spawn(list(command), self._account, folder=self.folder, log=log)

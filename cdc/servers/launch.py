"""Become another program that has no privileges and does not outlive the process that asked.

Run as a script: `python -I -S launch.py PARENT UID GID PROGRAM [ARGUMENT...]`. It is no
preexec_fn: that is unsafe, and warned of, in a process with threads. It imports nothing of
ours: it starts as root, and what it needs may lie where the other user cannot read.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, uid: int, gid: int, command: list[str]) -> None:
    """Drop to the user (when root), tie the life to the parent's, execute the command."""
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        _drop_to(uid, gid)
    if sys.platform == "linux":
        _die_with(parent, libc)
    os.execv(command[0], command)  # noqa: S606 - no shell is what we want


def _drop_to(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    # After setuid, which clears it. SIGQUIT is Postgres's immediate shutdown: a fast one would
    # wait, perhaps for ever, for a replication client that does not confirm the last WAL.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that asked for the server is gone")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])

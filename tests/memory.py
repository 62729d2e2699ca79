"""Where what the tests write lies: in memory, if the machine has plenty of it.

A test's databases are some 600 small files, made and removed again: on a disk that costs ten times
as much as all else they take. What the tests say does not depend on it: none cuts the power.
"""

import os
import re
import tempfile
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108  Linux's folder in memory
GIGABYTE = 1 << 30
NEEDED = 12 * GIGABYTE
"""Free in the folder, and of the memory as a whole: about twice of what the tests take."""


def settle() -> None:
    """Have temporary files made in memory, unless TMPDIR says where; child processes take it on."""
    if "TMPDIR" not in os.environ and _is_roomy():
        os.environ["TMPDIR"] = tempfile.tempdir = str(FOLDER)


def _is_roomy() -> bool:
    if not os.access(FOLDER, os.W_OK):
        return False
    folder = os.statvfs(FOLDER)
    return min(folder.f_bavail * folder.f_frsize, _available()) >= NEEDED


def _available() -> int:
    """Give the bytes of memory that are free or can be freed."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0

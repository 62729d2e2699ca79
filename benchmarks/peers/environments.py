"""The peers' virtual environments, beside the repository's files and ignored by git."""

from pathlib import Path
from typing import Final

from benchmarks.errors import BenchError

_FOLDER: Final = Path(__file__).parents[2] / ".peers"


def program(environment: str, name: str) -> str:
    """Give the path of a program in an environment; raise BenchError where it is not installed."""
    path = _FOLDER / environment / "bin" / name
    if not path.exists():
        raise BenchError(f"{environment} is not installed: run `make bench-peers`")
    return str(path)

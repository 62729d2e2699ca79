"""One contestant, from its start until the last row is visible."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.arena import Arena
from benchmarks.contestants import Contestant
from benchmarks.errors import BenchError
from benchmarks.workloads import Backlog
from cdc.servers import Server

_POLL_SECONDS: Final = 0.01
_LONGEST_SECONDS: Final = 1800.0


@dataclass
class Result:
    """What one contestant did in one round. `void` says why its figures do not count."""

    contestant: str
    workload: str
    round: int
    changes: int = 0
    seconds: float = 0.0
    startup_seconds: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    threads: list[tuple[int, float]] = field(default_factory=list)
    peak_bytes: int | None = None
    void: str | None = None

    @property
    def rate(self) -> float:
        return self.changes / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"changes_per_second": round(self.rate)}


class Cpu:
    """CPU seconds of both servers' processes, from here on."""

    def __init__(self, arena: Arena) -> None:
        self._servers = {"source others": arena.source, "read others": arena.read}
        self._totals = {name: _total(server) for name, server in self._servers.items()}
        self._before = {
            pid: _cpu_seconds(pid) for server in self._servers.values() for pid in _family(server)
        }

    def since(self, roles: Mapping[str, int]) -> dict[str, float]:
        """Give the seconds by role, and of each server what no role accounts for."""
        spent = {role: self._spent(pid) for role, pid in roles.items() if pid}
        for name, server in self._servers.items():
            family = _family(server)
            known = sum(self._spent(pid) for pid in set(roles.values()) if pid in family)
            spent[name] = _total(server) - self._totals[name] - known
        return {role: round(seconds, 2) for role, seconds in spent.items()}

    def _spent(self, pid: int) -> float:
        return _cpu_seconds(pid) - self._before.get(pid, 0.0)


def _family(server: Server) -> list[int]:
    """Give the server's processes, also those that have ended and wait to be counted by it."""
    return [child.pid for child in psutil.Process(server.pid).children()]


def _total(server: Server) -> float:
    """Give the seconds of a server's processes, also of those that have ended."""
    while True:
        ended = _ended_seconds(server)
        total = ended + sum(map(_cpu_seconds, (server.pid, *_family(server))))
        if _ended_seconds(server) == ended:  # else one ended meanwhile, and may be left out
            return total


def _ended_seconds(server: Server) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return float(times.children_user + times.children_system)


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def peak_bytes(pid: int) -> int | None:
    """Give the most memory the process has had resident; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def measure(contestant: Contestant, backlog: Backlog, number: int) -> Result:
    """Run one contestant over the backlog, check what it made, and remove it."""
    result = Result(contestant.name, backlog.workload.name, number, backlog.total)
    try:
        _run(contestant, backlog, result)
        contestant.verify(backlog)
    except BenchError as error:
        result.void = str(error)
    finally:
        contestant.remove()
    return result


def _run(contestant: Contestant, backlog: Backlog, result: Result) -> None:
    arena = contestant.arena
    arena.settle()
    with arena.source.connect() as source:
        cpu, begin = Cpu(arena), time.monotonic()
        contestant.start(backlog)
        try:
            walsender = _streaming(source, contestant, begin) if contestant.streams else 0
            result.startup_seconds = time.monotonic() - begin if walsender else 0.0
            _wait(contestant, begin)
            result.seconds = time.monotonic() - begin
            _sample(contestant, cpu, walsender, result)
        finally:
            contestant.stop()


def _streaming(source: Any, contestant: Contestant, begin: float) -> int:
    """Wait until the slot is in use; give the walsender's pid."""
    statement = "select active_pid from pg_replication_slots where slot_name = %s and active"
    while time.monotonic() < begin + _LONGEST_SECONDS:
        row = source.execute(statement, [contestant.key]).fetchone()
        if row is not None and row[0] is not None:
            return int(row[0])
        contestant.require_alive()
        time.sleep(_POLL_SECONDS)
    raise BenchError("it never started to stream")


def _wait(contestant: Contestant, begin: float) -> None:
    while not contestant.done():
        if time.monotonic() > begin + _LONGEST_SECONDS:
            raise BenchError(f"it was not done after {_LONGEST_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _sample(contestant: Contestant, cpu: Cpu, walsender: int, result: Result) -> None:
    roles = {"walsender": walsender, **contestant.pids()}
    result.cpu_seconds = cpu.since(roles)
    result.cpu_seconds.pop("watcher", None)
    result.cpu_seconds |= contestant.ended_seconds()
    if (pid := roles.get("daemon")) is not None:
        result.peak_bytes = peak_bytes(pid)
        threads = psutil.Process(pid).threads()
        result.threads = [(t.id, round(t.user_time + t.system_time, 2)) for t in threads]

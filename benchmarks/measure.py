"""One contestant, from its start until the last row is visible."""

import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Final

import psutil

from benchmarks.arena import Arena
from benchmarks.contestants import Contestant, wait_for_stream
from benchmarks.errors import BenchError
from benchmarks.figures import Result
from benchmarks.workloads import Backlog
from cdc.servers import Server

_POLL_SECONDS: Final = 0.01
_LONGEST_SECONDS: Final = 1800.0


class Cpu:
    """CPU seconds of both servers' processes, from here on, and of others that run already."""

    def __init__(self, arena: Arena, *others: int) -> None:
        self._servers = {"source others": arena.source, "read others": arena.read}
        self._totals = {name: _total(server) for name, server in self._servers.items()}
        self._before = {
            pid: _cpu_seconds(pid) for pid in chain(others, *map(_family, self._servers.values()))
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
    result = Result(contestant.name, number, backlog.workload.name, backlog.total)
    result.wal_bytes = backlog.wal_bytes
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
    cpu, begin = Cpu(arena), time.monotonic()
    contestant.start(backlog)
    try:
        walsender = _walsender(contestant) if contestant.streams else 0
        if walsender:
            result.startup_seconds = time.monotonic() - begin
            daemon = contestant.pids().get("daemon")
            result.startup_cpu_seconds = _cpu_seconds(daemon) if daemon else 0.0
        _wait(contestant, begin)
        result.seconds = time.monotonic() - begin
        _sample(contestant, cpu, walsender, result)
    finally:
        contestant.stop()


def _walsender(contestant: Contestant) -> int:
    seconds = {"seconds": _LONGEST_SECONDS, "poll_seconds": _POLL_SECONDS}
    return wait_for_stream(contestant.arena, contestant, **seconds)


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
    result.stream_bytes = contestant.stream_bytes()
    if (pid := roles.get("daemon")) is not None:
        result.peak_bytes = peak_bytes(pid)
        threads = psutil.Process(pid).threads()
        result.threads = [(t.id, round(t.user_time + t.system_time, 2)) for t in threads]

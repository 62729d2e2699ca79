"""What a pipeline costs while nothing is written: heartbeats, its own looks, a Prometheus."""

import re
import time
from typing import Final
from urllib.request import urlopen

from benchmarks import report
from benchmarks.arena import END_TABLE, SOURCE_DB, fresh
from benchmarks.contestants import publish, wait_for_stream
from benchmarks.errors import BenchError
from benchmarks.figures import Idle
from benchmarks.measure import Cpu
from benchmarks.ours import Ours
from benchmarks.run import Run
from benchmarks.start import Few
from benchmarks.workloads import Backlog

SECONDS: Final = 30
_SCRAPE_SECONDS: Final = 5
_SETTLE_SECONDS: Final = 3
_LISTENING: Final = re.compile(r"listening.*?(http://[^\s\"]+)")
_PIPELINE: Final = ("daemon", "walsender", "read")


def compare(run: Run) -> list[Idle]:
    """Let each plugin's daemon stand idle for a while."""
    seconds = max(2 * _SCRAPE_SECONDS, round(SECONDS * run.scale))
    found = []
    with fresh(run.installation) as place:
        workload = Few()
        workload.prepare(place)
        publish(place, workload.tables)
        for number in run.numbers:
            for plugin in run.plugins:
                daemon = Ours(place, workload, f"r{number}", plugin)
                daemon.prepare()
                found.append(_idle(daemon, number, seconds))
                daemon.remove()
                run.say(f"idle, round {number}: {daemon.name}: {found[-1].core_share:.2%}")
    report.print_idle(run.console, found)
    return found


def _idle(daemon: Ours, number: int, seconds: int) -> Idle:
    found = Idle(daemon.name, number)
    daemon.start(Backlog(daemon.workload, 0, 0, {}))
    try:
        walsender = wait_for_stream(daemon.arena, daemon)
        url = _url(daemon)
        time.sleep(_SETTLE_SECONDS)
        _watch(daemon, found, url, seconds=seconds, walsender=walsender)
        _require_streaming(daemon)
    except BenchError as error:
        found.void = str(error)
    finally:
        daemon.stop()
    return found


def _watch(daemon: Ours, found: Idle, url: str, *, seconds: int, walsender: int) -> None:
    cpu, begun = Cpu(daemon.arena, daemon.pid), time.monotonic()
    while time.monotonic() < begun + seconds:
        time.sleep(_SCRAPE_SECONDS)
        for path in ("metrics", "status"):
            with urlopen(f"{url}/{path}") as answer:  # noqa: S310  the daemon's own address
                answer.read()
        found.scrapes += 1
    found.seconds = time.monotonic() - begun
    spent = cpu.since({"walsender": walsender, **daemon.pids()})
    spent.pop("watcher")
    found.cpu_shares = {role: round(used / found.seconds, 5) for role, used in spent.items()}
    found.core_share = round(sum(found.cpu_shares[role] for role in _PIPELINE), 5)


def _url(daemon: Ours) -> str:
    """Find where it listens: the last line that says so, for the first is of an earlier start."""
    said = _LISTENING.findall(daemon.log_path.read_text())
    if not said:
        raise BenchError("it did not say where it listens")
    return str(said[-1]).rstrip("/")


def _require_streaming(daemon: Ours) -> None:
    """See that what is written now still arrives."""
    place = daemon.arena
    place.source.psql(f"truncate {END_TABLE}; insert into {END_TABLE} values (1)", SOURCE_DB)
    deadline = time.monotonic() + _SETTLE_SECONDS
    while not daemon.done():
        if time.monotonic() > deadline:
            raise BenchError("it was idle, and what was written then did not arrive")
        time.sleep(0.05)

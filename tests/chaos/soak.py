"""`make soak`: a daemon for minutes, with faults, DDL, large transactions and poison mixed.

What it does to the daemon comes by chance, one thing after the other; in the end the read database
must hold what the source says, and the daemon no more memory and files than in the beginning.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from cdc.servers import Server
from tests.chaos.evolving import Evolving
from tests.chaos.poisoned import MENDED
from tests.conftest import FAST, environment, installation, toml

_PATIENCE_SECONDS = 120.0
_FAULT_SECONDS = (2.0, 6.0)
_LOCKED_SECONDS = 3.0
_SAMPLE_SECONDS = 1.0
_WARM_SECONDS = 60.0
_SOME_KILOBYTES = 16 * 1024
_SOME_FILES = 3
_LONG_LIFE = 180
_FAR_BEHIND_BYTES = 8 * 1024**2
_TOO_SHORT = (
    f"no life of the daemon was longer than {_WARM_SECONDS + _LONG_LIFE:.0f} s: whether memory and "
    "files are flat is not known"
)


class Samples:
    """The memory and the open files of one life of the daemon, second by second."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        self._began = time.monotonic()
        self.taken: list[tuple[int, int]] = []

    def take(self) -> None:
        """Look, once it is warm."""
        if time.monotonic() - self._began < _WARM_SECONDS:
            return
        with suppress(FileNotFoundError, ProcessLookupError, StopIteration):
            lines = (self._process / "status").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
            self.taken.append((kilobytes, len(list((self._process / "fd").iterdir()))))

    def thirds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Give the medians of memory and files in the first and the last third."""
        third = len(self.taken) // 3
        first, last = self.taken[:third], self.taken[-third:]
        return _medians(first), _medians(last)

    @property
    def flat(self) -> bool:
        (memory, files), (memory_then, files_then) = self.thirds()
        grown = memory_then > memory + _SOME_KILOBYTES or files_then > files + _SOME_FILES
        return not grown

    def __str__(self) -> str:
        (memory, files), (memory_then, files_then) = self.thirds()
        grown = "flat" if self.flat else "GROWING"
        return (
            f"a life of {len(self.taken) + _WARM_SECONDS:.0f} s: {memory / 1024:.0f} MB and "
            f"{files:.0f} files in its first third, {memory_then / 1024:.0f} MB and "
            f"{files_then:.0f} in its last: {grown}"
        )


def _medians(samples: list[tuple[int, int]]) -> tuple[float, float]:
    return median(memory for memory, _ in samples), median(files for _, files in samples)


@dataclass
class Outcome:
    """What was done, and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    wrote: Counter[str] = field(default_factory=Counter)
    lives: list[Samples] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    doubled: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def long_lives(self) -> list[Samples]:
        return [life for life in self.lives if len(life.taken) >= _LONG_LIFE]

    @property
    def clean(self) -> bool:
        wrong = self.lost or self.doubled or self.failures
        return not wrong and bool(self.long_lives) and all(life.flat for life in self.long_lives)

    def __str__(self) -> str:
        lines = [
            "faults: " + _counted(self.faults),
            "written: " + _counted(self.wrote),
            *(map(str, self.long_lives) if self.long_lives else [_TOO_SHORT]),
            f"{self.lost.total()} rows lost, {self.doubled.total()} doubled or wrong",
        ]
        lines += [f"  lost from {name}: {count}" for name, count in self.lost.items()]
        lines += [f"  too many in {name}: {count}" for name, count in self.doubled.items()]
        return "\n".join(lines + self.failures)


def _counted(what: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(what.items())) or "none"


class Soak:
    """A daemon between two servers, an application, and what befalls them."""

    def __init__(self, write: Server, read: Server, plugin: str, *, seed: int) -> None:
        self._write, self._read = write, read
        self._name = f"soak_{plugin}"
        for server in (write, read):
            server.create_database(self._name)
        self._folder = Path(tempfile.mkdtemp(prefix="cdc-soak-"))
        self._config = self._folder / "cdc.toml"
        self._config.write_text(self._configuration(plugin))
        self._chance = random.Random(seed)
        self._workload = Evolving(write.dsn(self._name), seed=seed)
        self._workload.create()
        self.outcome = Outcome()
        self._daemon = self._start()

    def _configuration(self, plugin: str) -> str:
        sections: dict[str, dict[str, Any]] = {
            "source": {
                "dsn": self._write.dsn(self._name),
                "slot": self._name,
                "plugin": plugin,
                "publication": self._name,
                "queue_bytes": 1024**2,  # full soon: memory is compared where it cannot grow
            },
            "read": {"url": self._read.url(self._name), "batch_bytes": 64 * 1024},
            "projection": {
                "mirrors": Evolving.MIRRORS,
                "modules": Evolving.MODULES,
                "follow_schema": True,
                "quarantine_limit": 10_000,
            },
            "copy": {"chunk_bytes": 64 * 1024},
            "http": {"listen": "127.0.0.1:0"},
        }
        lines = []
        for section, keys in sections.items():
            lines += [f"[{section}]", *(f"{name} = {toml(value)}" for name, value in keys.items())]
        return "\n".join(lines)

    # The daemon.

    def _start(self, **variables: str) -> subprocess.Popen[bytes]:
        with (self._folder / "daemon.log").open("ab") as log:
            daemon = subprocess.Popen(
                self._command("run"), stdout=log, stderr=log, env=environment() | variables
            )
        self.outcome.lives.append(Samples(daemon.pid))
        return daemon

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cdc", *arguments, "--config", str(self._config)]

    def _still_runs(self) -> bool:
        if self._daemon.poll() is None:
            return True
        log = self._folder / "daemon.log"
        self.outcome.failures.append(
            f"the daemon ended with {self._daemon.returncode}: see {log}\n"
            + "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        )
        return False

    def _replace_daemon(self, **variables: str) -> None:
        self._daemon = self._start(**variables)

    # What befalls them.

    def _faults(self) -> list[Callable[[], None]]:
        often = [self._cut_source, self._cut_read, self._lock_a_table] * 4
        return [*often, self._restart_write, self._restart_read, self._crash_read]

    def _cut_source(self) -> None:
        self._cut(self._write)

    def _cut_read(self) -> None:
        self._cut(self._read)

    def _cut(self, server: Server) -> None:
        server.psql(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            f"where application_name = 'cdc' and datname = '{self._name}'"
        )

    def _lock_a_table(self) -> None:
        """Hold the read database's writer up, while the application goes on."""
        table = self._chance.choice(["account", "journal", "large", "summary"])
        with psycopg.connect(self._read.dsn(self._name)) as reader:
            reader.execute(f"lock table {table} in access exclusive mode".encode())
            self._write_for(_LOCKED_SECONDS)

    def _restart_write(self) -> None:
        self._workload.disconnect()
        self._write.restart(self._chance.choice(["fast", "immediate"]))
        self._workload.connect()

    def _restart_read(self) -> None:
        self._read.restart("fast")

    def _crash_read(self) -> None:
        self._read.kill()
        self._read.start()

    def _kill(self) -> None:
        self._daemon.kill()
        self._daemon.wait()
        self._replace_daemon()

    def run(self, seconds: float) -> Outcome:
        """Go on for so long; then mend what was poisoned, replay, and compare."""
        self._wait(self._copied, "the first copy")
        began = time.monotonic()
        kills_at = [began + seconds * part for part in (0.1, 0.9)]
        while time.monotonic() - began < seconds and self._still_runs():
            self._write_for(self._chance.uniform(*_FAULT_SECONDS))
            if kills_at and time.monotonic() > kills_at[0]:
                del kills_at[0]
                fault: Callable[[], None] = self._kill
            else:
                fault = self._chance.choice(self._faults())
            fault()
            self.outcome.faults[fault.__name__.strip("_").replace("_", " ")] += 1
        self._conclude()
        return self.outcome

    def _write_for(self, seconds: float) -> None:
        """Let the application write; not faster than a busy machine lets the daemon follow."""
        ends, sample_at, behind = time.monotonic() + seconds, 0.0, 0
        while (now := time.monotonic()) < ends and self._daemon.poll() is None:
            if behind < _FAR_BEHIND_BYTES:
                self._workload.step()
            time.sleep(0.005)  # the application's pace
            if now >= sample_at:
                self.outcome.lives[-1].take()
                behind = self._bytes_behind()
                sample_at = now + _SAMPLE_SECONDS

    def _bytes_behind(self) -> int:
        query = "select pg_current_wal_lsn() - confirmed_flush_lsn from pg_replication_slots"
        return int(self._write.psql(f"{query} where slot_name = '{self._name}'", self._name)[0][0])

    def _conclude(self) -> None:
        if self.outcome.failures:
            return
        self._workload.settle()
        if self._wait(self._caught_up(), "the end of the stream"):
            self._compare_quarantine()
            self._daemon.terminate()
            if (code := self._daemon.wait(_PATIENCE_SECONDS)) != 0:
                self.outcome.failures.append(f"the daemon drained and ended with {code}")
            self._replace_daemon(**{MENDED: "yes"})
            self._wait(self._streaming, "the mended daemon")
            self._replay()
            self._compare()

    def _wait(self, fact: Callable[[], object], what: str) -> bool:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not fact():
            if not self._still_runs():
                return False
            if time.monotonic() > deadline:
                self.outcome.failures.append(f"{what} did not come")
                return False
            time.sleep(0.1)
        return True

    def _ask_read(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._read.psql(query, self._name)
        except psycopg.Error:  # the table is not there yet
            return []

    def _copied(self) -> bool:
        states = {state for (state,) in self._ask_read("select state from cdc_copy")}
        return bool(states) and states <= {"done", "skipped"}

    def _streaming(self) -> bool:
        active = f"select 1 from pg_replication_slots where slot_name = '{self._name}' and active"
        return bool(self._write.psql(active, self._name))

    def _caught_up(self) -> Callable[[], bool]:
        mark = "select pg_logical_emit_message(true, 'cdc', 'mark') - '0/0'::pg_lsn"
        lsn = int(self._write.psql(mark, self._name)[0][0])
        return lambda: bool(self._ask_read(f"select 1 from cdc_checkpoint where lsn >= {lsn}"))

    def _replay(self) -> None:
        done = subprocess.run(
            self._command("quarantine", "replay", "--all"),
            capture_output=True,
            text=True,
            env=environment(),
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            self.outcome.failures.append(f"the replay failed: {done.stderr}")
        none_held = "select 1 where not exists (select from cdc_quarantine)"
        self._wait(lambda: self._ask_read(none_held), "the end of the quarantine")

    # The oracle.

    def _compare_quarantine(self) -> None:
        """What is set aside must be what was poisoned, and all of it."""
        held = {key for (key,) in self._ask_read("select row_key from cdc_quarantine")}
        keys = {int("".join(filter(str.isdigit, key))) for key in held}
        if keys != self._workload.poisoned:
            self.outcome.failures.append(
                f"{len(keys)} keys are in quarantine, {len(self._workload.poisoned)} were poisoned"
            )

    def _compare(self) -> None:
        for table, query in self._workload.queries().items():
            found, expected = Counter(self._ask_read(query)), self._workload.expected(table)
            if lost := (expected - found).total():
                self.outcome.lost[table] = lost
            if doubled := (found - expected).total():
                self.outcome.doubled[table] = doubled
        self.outcome.wrote = self._workload.counted

    def close(self) -> None:
        self._workload.disconnect()
        if self._daemon.poll() is None:
            self._daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._daemon.wait(10)
            self._daemon.kill()
        self._daemon.wait()


@contextmanager
def soak(plugin: str, *, seed: int) -> Iterator[Soak]:
    """Start servers and a soak between them."""
    settings = {**FAST, "wal_sender_timeout": "10s"}
    with Server(installation(), settings) as write, Server(installation(), FAST) as read:
        begun = Soak(write, read, plugin, seed=seed)
        try:
            yield begun
        finally:
            begun.close()


def main() -> None:
    """Soak, print what was done and what came of it, and exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for how long")
    parser.add_argument("--plugin", choices=["pgoutput", "wal2json"], default="pgoutput")
    parser.add_argument("--seed", type=int, default=1, help="another one mixes otherwise")
    given = parser.parse_args()
    os.chdir(Path(__file__).parents[2])
    with soak(given.plugin, seed=given.seed) as running:
        outcome = running.run(given.seconds)
    print(outcome)
    sys.exit(0 if outcome.clean else 1)


if __name__ == "__main__":
    main()

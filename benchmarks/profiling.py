"""Our daemon under py-spy: where its threads spend CPU, and who holds the interpreter's lock.

A profiled run is a run of its own: its speed counts for nothing. Three files come of it: the
collapsed stacks (`.raw`), the same for https://www.speedscope.app (`.speedscope.json`), and
a text of what takes the most, thread by thread (`.txt`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.errors import BenchError
from benchmarks.ours import Ours
from benchmarks.workloads import Backlog

Mode = Literal["cpu", "gil"]
_RATE: Final = 250
_WRITE_SECONDS: Final = 60
_TOP: Final = 30
_MEANING: Final[Mapping[str, str]] = {
    "cpu": "samples in which the thread was running, with or without the interpreter's lock",
    "gil": "samples in which the thread held the interpreter's lock",
}

Stack = tuple[str, ...]
Stacks = Mapping[Stack, int]
"""How often each stack was seen; its first frame is the thread."""


def py_spy() -> str:
    """Find the profiler; raise BenchError where there is none."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise BenchError("py-spy is not installed: pip install py-spy")
    return found


@dataclass
class Profiled(Ours):
    """This daemon with the profiler attached, from when it streams to its end."""

    mode: Mode
    folder: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name += f"-profile-{self.mode}"
        self._profiler: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.workload.name}-{self.plugin}-{self.mode}"

    def start(self, backlog: Backlog) -> None:
        super().start(backlog)
        options = ["--pid", str(self.pid), "--rate", str(_RATE), "--threads"]
        output = ["--format", "raw", "--output", str(self.path.with_suffix(".raw"))]
        with self.path.with_suffix(".log").open("wb") as log:
            self._profiler = subprocess.Popen(
                [py_spy(), "record", *options, *output, *(["--gil"] if self.mode == "gil" else [])],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        """Let the profiler write first: it must not see the daemon wait for its end."""
        if self._profiler is not None and self._profiler.poll() is None:
            self._profiler.send_signal(signal.SIGINT)
            self._profiler.wait(_WRITE_SECONDS)
        threads = _thread_seconds(self.pid)
        super().stop()
        raw = self.path.with_suffix(".raw")
        if not raw.exists():
            raise BenchError(self.path.with_suffix(".log").read_text().strip()[-500:])
        stacks = parse(raw.read_text().splitlines())
        title = f"{self.workload.name}, {self.plugin}: {_MEANING[self.mode]}"
        text = f"{title}\nthreads' CPU seconds, oldest thread first: {threads}\n\n{top(stacks)}"
        self.path.with_suffix(".txt").write_text(text)
        document = json.dumps(speedscope(stacks, title))
        self.path.with_suffix(".speedscope.json").write_text(document)
        self.path.with_suffix(".log").unlink()


def _thread_seconds(pid: int) -> list[float]:
    tick = os.sysconf("SC_CLK_TCK")
    seconds = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda path: int(path.name)):
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        seconds.append((int(fields[11]) + int(fields[12])) / tick)
    return seconds


def parse(lines: Iterable[str]) -> dict[Stack, int]:
    """Read collapsed stacks: frames joined by semicolons, a blank, how often."""
    stacks: Counter[Stack] = Counter()
    for line in lines:
        frames, _, count = line.rpartition(" ")
        stacks[tuple(_without_address(frame) for frame in frames.split(";"))] += int(count)
    return dict(stacks)


def _without_address(frame: str) -> str:
    """Name a thread by its name alone."""
    return frame.partition(": ")[2].strip('"') or frame if frame.startswith("thread (") else frame


def top(stacks: Stacks) -> str:
    """List, thread by thread, the lines and functions that take the most."""
    total = sum(stacks.values())
    by_thread: dict[str, dict[Stack, int]] = defaultdict(dict)
    for stack, count in stacks.items():
        by_thread[stack[0]][stack[1:]] = count
    busiest = sorted(by_thread.items(), key=lambda item: -sum(item[1].values()))
    return "\n".join(_thread_top(name, seen, total) for name, seen in busiest)


def _thread_top(thread: str, stacks: Stacks, total: int) -> str:
    own, functions, under = Counter[str](), Counter[str](), Counter[str]()
    for stack, count in stacks.items():
        if stack:
            own[stack[-1]] += count
            functions[_function(stack[-1])] += count
        for function in {_function(frame) for frame in stack}:
            under[function] += count
    share = sum(stacks.values())
    return "\n".join(
        [
            f"== {thread}: {share} of {total} samples, {share / total:.1%}",
            *_listed("functions, with what they call", under, total),
            *_listed("functions, themselves", functions, total),
            *_listed("lines, themselves", own, total),
            "",
        ]
    )


def _function(frame: str) -> str:
    """Drop the line's number: `decode (cdc/source/wal2json.py:94)`."""
    return frame.rpartition(":")[0] + ")" if ":" in frame else frame


def _listed(title: str, counts: Counter[str], total: int) -> Sequence[str]:
    lines = [f"{count / total:7.1%} {count:7}  {name}" for name, count in counts.most_common(_TOP)]
    return [f"-- {title}", *lines]


def speedscope(stacks: Stacks, title: str) -> dict[str, object]:
    """Make a document for speedscope, with a profile for each thread."""
    names = sorted({frame for stack in stacks for frame in stack[1:]})
    index = {name: position for position, name in enumerate(names)}
    by_thread: dict[str, list[tuple[list[int], int]]] = defaultdict(list)
    for stack, count in sorted(stacks.items()):
        by_thread[stack[0]].append(([index[frame] for frame in stack[1:]], count))
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": title,
        "shared": {"frames": [{"name": name} for name in names]},
        "profiles": [_profile(thread, samples) for thread, samples in by_thread.items()],
    }


def _profile(thread: str, samples: Sequence[tuple[list[int], int]]) -> dict[str, object]:
    return {
        "type": "sampled",
        "name": thread,
        "unit": "seconds",
        "startValue": 0,
        "endValue": sum(count for _, count in samples) / _RATE,
        "samples": [stack for stack, _ in samples],
        "weights": [count / _RATE for _, count in samples],
    }

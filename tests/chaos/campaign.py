"""Lives that end at failpoints and by chance, one after the other, while the application writes."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cdc.sink import copies
from cdc.sink.engine import create_engine
from tests.chaos.failpoints import AT_BEGIN, COMMIT_SENT, IN_COPIES, ON_THE_WAY
from tests.chaos.lives import Life
from tests.chaos.prefix import state, wrong
from tests.chaos.workload import COPIED, MIRRORS, MODULE, ORACLE, Workload

AT_RANDOM = "at random"
_PATIENCE_SECONDS = 20.0
_TURN_SECONDS = 0.02


@dataclass
class Outcome:
    """What a campaign did, and what was wrong afterwards: nothing, it is to be hoped."""

    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    states: int = 0  # of the read database, looked at between two lives
    transactions: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    doubled: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.failures)

    def add(self, other: "Outcome") -> None:
        """Take in what another campaign found."""
        for mine, theirs in (
            (self.kills, other.kills),
            (self.missed, other.missed),
            (self.lost, other.lost),
            (self.doubled, other.doubled),
        ):
            mine.update(theirs)
        self.lives += other.lives
        self.states += other.states
        self.transactions += other.transactions
        self.failures += other.failures

    def __str__(self) -> str:
        at_random = self.kills[AT_RANDOM]
        named = self.kills.total() - at_random
        points = len([name for name in self.kills if name != AT_RANDOM])
        lines = [
            f"{self.kills.total()} kills in {self.lives} lives: {named} at {points} failpoints, "
            f"{at_random} at random",
            f"{self.transactions} transactions written",
            f"{self.states} times the read database was looked at between two lives",
            f"{self.lost.total()} rows lost, {self.doubled.total()} doubled or wrong",
        ]
        lines += [f"  lost from {name}: {count}" for name, count in self.lost.items()]
        lines += [f"  too many in {name}: {count}" for name, count in self.doubled.items()]
        return "\n".join(lines + self.failures)


class Campaign:
    """One write database, one read database, one slot, and one life after the other."""

    def __init__(
        self, sections: dict[str, dict[str, Any]], folder: Path, *, application: str, seed: int
    ) -> None:
        """Take [source] and [read], the daemon's; `application` is the address of who writes."""
        self._folder = folder
        self._chance = random.Random(seed)
        self._config = folder / "cdc.toml"
        self._slot = sections["source"]["slot"]
        self._url = sections["read"]["url"]
        self._config.write_text(_toml(sections))
        self._log = folder / "lives.log"
        self.workload = Workload(application, seed=seed)
        self.workload.create()
        self.outcome = Outcome()
        on_the_way = [*ON_THE_WAY, COMMIT_SENT] if self._is_postgres else ON_THE_WAY
        self._points = cycle([*IN_COPIES, *self._mixed([*on_the_way, *[AT_RANDOM] * 6])])

    @property
    def _is_postgres(self) -> bool:
        return str(self._url).startswith("postgres")

    def _mixed(self, points: Sequence[str]) -> list[str]:
        return self._chance.sample(points, len(points))

    def run(self, *, kills: int = 0, seconds: float = 0) -> Outcome:
        """Kill so often and for so long, then let one life finish, and compare.

        While the slot is created the application pauses: creation waits for open transactions.
        """
        deadline = time.monotonic() + seconds
        for point in AT_BEGIN:
            self._life(point, hit=1, writes=False)
        for _ in IN_COPIES:
            self._next_life()
        self._live_to_the_end("the life that finishes the first copies")
        while self.outcome.kills.total() < kills or time.monotonic() < deadline:
            self._next_life()
            if self.outcome.failures:
                break
        self._finish()
        self._compare()
        return self.outcome

    def _next_life(self) -> None:
        point = next(self._points)
        if point.endswith(tuple(f" {name}" for name in ("chunk read", "copy progress"))):
            self._ask_for_copies()
        self._life(point, hit=self._chance.choice([1, 1, 2, 3, 5]))

    def _start(self, *arguments: str, at: str | None = None, hit: int = 1) -> Life:
        self.outcome.lives += 1
        command = ["run", "--config", str(self._config), *arguments]
        return Life(command, self._log, at=at, hit=hit)

    def _life(self, point: str, *, hit: int, writes: bool = True) -> None:
        """Let one life run into its end, while the application writes."""
        named = None if point == AT_RANDOM else point
        life = self._start(at=named, hit=hit)
        moment = self._chance.uniform(0, 0.3)
        before_streaming = self._chance.random() < 0.3
        began, ends = time.monotonic(), float("inf")
        while not life.ended(_TURN_SECONDS):
            if writes:
                self.workload.step()
            now = time.monotonic()
            if named is None and ends == float("inf") and (before_streaming or life.streaming):
                ends = now + moment
            if now >= min(ends, began + _PATIENCE_SECONDS):
                break
        self._account_for(life, point, by_itself=life.ended(0))
        self._look_between()

    def _account_for(self, life: Life, point: str, *, by_itself: bool) -> None:
        life.kill()
        killed = life.close() < 0
        if not killed or (by_itself and point == AT_RANDOM):
            self.outcome.failures.append(f"a life ended by itself, {point}: see {self._log}")
        elif point == AT_RANDOM or by_itself:
            self.outcome.kills[point] += 1
        else:
            self.outcome.missed[point] += 1

    def _look_between(self) -> None:
        """Hold what a killed life left to what the source was once."""
        engine = create_engine(self._url)
        with engine.connect() as connection:
            found = state(connection, self._slot)
        engine.dispose()
        if found is None:
            return
        self.outcome.states += 1
        if (fault := wrong(found, self.workload.commits)) is not None:
            self.outcome.failures.append(f"killed at {found.checkpoint}: {fault}")

    def _ask_for_copies(self) -> None:
        """Have one table copied once more, while it is written.

        The others never: a copy would mend what is lost or doubled in them.
        """
        engine = create_engine(self._url)
        with engine.begin() as connection:
            for unit, copy in (copies.load(connection, self._slot) or {}).items():
                if unit.source == COPIED and not copy.due:
                    copies.ask(connection, self._slot, unit, purpose="again")
        engine.dispose()

    def _finish(self) -> None:
        self.workload.settle()
        self._live_to_the_end("the last life")

    def _live_to_the_end(self, what: str) -> None:
        """Let a life end by itself, once the rows from before and those of until now are there."""
        life = self._start("--until", "now")
        if not life.ended(10 * _PATIENCE_SECONDS):
            self.outcome.failures.append(f"{what} did not come to its end")
            life.kill()
        elif (code := life.close()) != 0:
            self.outcome.failures.append(f"{what} ended with {code}: see {self._log}")

    def _compare(self) -> None:
        engine = create_engine(self._url)
        with engine.connect() as connection:
            for table, (_, query) in ORACLE.items():
                found = Counter(map(tuple, connection.execute(sa.text(query))))
                expected = self.workload.expected(table)
                self._note(table, expected, found)
        engine.dispose()

    def _note(self, table: str, expected: Counter[Any], found: Counter[Any]) -> None:
        if table == "journal":
            self.outcome.transactions = len({number for number, _ in expected})
        if lost := (expected - found).total():
            self.outcome.lost[table] = lost
        if doubled := (found - expected).total():
            self.outcome.doubled[table] = doubled

    def close(self) -> None:
        self.workload.close()


def _toml(sections: dict[str, dict[str, Any]]) -> str:
    from tests.conftest import toml

    ours = {
        "projection": {"mirrors": MIRRORS, "modules": [MODULE]},
        "copy": {"chunk_bytes": 64 * 1024},
        "http": {"listen": "127.0.0.1:0"},
    }
    small = {"batch_bytes": 64 * 1024}
    merged = {**sections, "read": {**sections["read"], **small}, **ours}
    lines = []
    for section, keys in merged.items():
        lines += [f"[{section}]", *(f"{name} = {toml(value)}" for name, value in keys.items())]
    return "\n".join(lines)

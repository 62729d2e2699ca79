"""Two daemons for one slot: one streams, the other stands by and takes over."""

import json
import re
import signal
from collections.abc import Callable
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from psycopg.conninfo import make_conninfo

from tests.conftest import Configuration, Database, RunningDaemon

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
OURS = "from pg_stat_activity where application_name = 'cdc' and datname = current_database()"


def ready(daemon: RunningDaemon) -> tuple[int, str]:
    """Ask a daemon whether it is ready; give the status and the state that it tells."""
    daemon.wait_until(lambda: "listening" in daemon.log)
    url = re.findall(r"url=(\S+)", daemon.log)[0]
    try:
        with urlopen(f"{url}/ready") as answer:
            return answer.status, json.load(answer)["state"]
    except HTTPError as error:
        with error:
            return error.code, json.load(error)["state"]


def lag_seconds(daemon: RunningDaemon) -> float:
    """Ask a daemon how far the read database is behind."""
    url = re.findall(r"url=(\S+)", daemon.log)[0]
    with urlopen(f"{url}/status") as answer:
        return float(json.load(answer)["lag_seconds"])


class Two:
    """A daemon that streams and one that stands by; walsenders give a silent one up soon."""

    def __init__(
        self,
        write: Database,
        read: Database,
        start: Start,
        *,
        wanted: Configuration,
        reads_as: str | None = None,
    ) -> None:
        self.write, self.read = write, read
        write.run("create table t (id int primary key)")
        url = read.server.url(read.name, reads_as) if reads_as else read.url
        self.first = start(wanted.with_(read={"url": url}))
        self.first.wait_for(write.run("insert into t values (1)"))
        self.second = start(wanted)
        self.second.wait_until(lambda: ready(self.second) == (503, "standby"))

    def cut_off(self) -> None:
        """End the first one's sessions in both databases, which it does not notice."""
        self.first.process.send_signal(signal.SIGSTOP)
        for database in (self.write, self.read):
            database.rows(f"select pg_terminate_backend(pid) {OURS}")

    def takes_over(self) -> None:
        """Wait until the second one has written what is committed now, and is ready."""
        self.second.wait_for(self.write.run("insert into t select max(id) + 1 from t"))
        self.second.wait_until(lambda: ready(self.second) == (200, "streaming"))

    def wake(self) -> None:
        self.first.process.send_signal(signal.SIGCONT)

    def nothing_is_lost_or_doubled(self) -> None:
        self.second.wait_for(self.write.run("insert into t select max(id) + 1 from t"))
        assert self.read.texts("t") == self.write.texts("t")


Make = Callable[..., Two]


@pytest.fixture
def make(write: Database, read: Database, configuration: Configure, cdc_start: Start) -> Make:
    def make_two(
        plugin: str = "pgoutput", *, milliseconds: int = 2000, reads_as: str | None = None
    ) -> Two:
        dsn = write.daemon_dsn(plugin)
        impatient = make_conninfo(dsn, options=f"-c wal_sender_timeout={milliseconds}")
        wanted = configuration(plugin, mirrors=[{"source": "public.*"}])
        wanted = wanted.with_(source={"dsn": impatient}, read={"takeover_seconds": 1})
        return Two(write, read, cdc_start, wanted=wanted, reads_as=reads_as)

    return make_two


def test_where_the_first_is_killed_the_second_takes_over(make: Make, plugin: str) -> None:
    two = make(plugin)
    two.first.kill()
    two.takes_over()
    two.nothing_is_lost_or_doubled()
    assert two.second.stop() == 0


def test_one_that_is_cut_off_is_replaced_and_stands_by_when_it_finds_out(make: Make) -> None:
    two = make()
    two.cut_off()
    two.takes_over()
    two.wake()
    two.first.wait_until(lambda: ready(two.first) == (503, "standby"))
    two.nothing_is_lost_or_doubled()
    assert "another daemon serves slot" in two.first.log
    assert "Traceback" not in two.first.log + two.second.log


def test_one_that_is_paused_in_a_batch_is_replaced_and_stops_when_it_wakes(make: Make) -> None:
    two = make()
    with two.read.connection.transaction():
        two.read.connection.execute("lock table t in exclusive mode")
        two.write.run("insert into t values (2)")
        waits = f"select 1 {OURS} and wait_event_type = 'Lock'"
        with two.read.connect() as other:
            two.first.wait_until(lambda: other.execute(waits.encode()).fetchone())
        two.first.process.send_signal(signal.SIGSTOP)
    two.takes_over()
    assert "ended another daemon that neither streams nor speaks" in two.second.log
    two.wake()
    assert two.first.ends() == 16
    assert "another daemon wrote" in two.first.log
    assert "Traceback" not in two.first.log + two.second.log
    two.nothing_is_lost_or_doubled()


def test_one_that_is_cut_off_from_the_read_database_alone_is_replaced(
    make: Make, write: Database, read: Database
) -> None:
    role = f"r_{read.name}"
    read.run(f"create role {role} login in role cdc", f"alter role {role} set search_path = cdc")
    try:
        two = make(milliseconds=60_000, reads_as=role)
        read.run(f"alter role {role} connection limit 0")
        read.rows(f"select pg_terminate_backend(pid) {OURS} and usename = '{role}'")
        write.run("insert into t values (2)")
        two.first.wait_until(lambda: ready(two.first) == (503, "retrying"))
        two.takes_over()
        assert "ended another daemon's stream" in two.second.log
        assert ready(two.first)[0] == 503
        read.run(f"alter role {role} connection limit -1")
        two.nothing_is_lost_or_doubled()
        # It tries to write and finds what the other has written, or that its own stream has ended.
        stands_by = "because=another daemon serves slot"
        two.first.wait_until(lambda: stands_by in two.first.log or two.first.process.poll())
        if stands_by in two.first.log:
            two.first.wait_until(lambda: lag_seconds(two.first) == 0)
        else:
            assert two.first.ends() == 16
            assert "another daemon wrote" in two.first.log
    finally:
        read.run(f"drop owned by {role}", f"drop role {role}")


def test_a_holder_that_is_at_work_is_left_alone(make: Make) -> None:
    """It streams, and waits for the read database for longer than a silent one would be left."""
    two = make(milliseconds=60_000)
    with two.read.connection.transaction():
        two.read.connection.execute("lock table t in exclusive mode")
        written = two.write.run("insert into t values (2)")
        waits = (
            f"select 1 {OURS} and wait_event_type = 'Lock' "
            "and state_change < clock_timestamp() - interval '3 s'"
        )
        with two.read.connect() as other:
            two.first.wait_until(lambda: other.execute(waits.encode()).fetchone())
        assert ready(two.second) == (503, "standby")
    two.first.wait_for(written)
    assert ready(two.first) == (200, "streaming")
    assert "ended another" not in two.second.log

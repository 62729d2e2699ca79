"""Whatever the network does between the daemon and a database, each transaction takes effect once."""

import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import psycopg
import pytest
import sqlalchemy as sa

from tests.acceptance.conftest import SECONDS, Pipeline, until
from tests.conftest import require
from tests.mariadb import MariaDB
from tests.mariadb import find as mariadb_program
from tests.proxy import Fault, Passage, Proxy

When = Callable[[Passage], bool]

COPY_BOTH = b"W"  # what answers START_REPLICATION
LOCK = b"pg_try_advisory_lock"  # only the writer's connection takes it


class Network(NamedTuple):
    """A pipeline whose daemon reaches both databases through proxies."""

    pipeline: Pipeline
    write: Proxy
    read: Proxy

    def start(self, **environment: str):
        pipeline = self.pipeline
        through = {
            "CDC_SOURCE__DSN": self.write.through(pipeline.write.dsn(pipeline.name)),
            "CDC_READ__URL": self.read.through(pipeline.read.url(pipeline.name)),
            "CDC_SOURCE__SILENCE_SECONDS": "1",
            "CDC_READ__SILENCE_SECONDS": "1",
        }
        return pipeline.start(**{**through, **environment})

    def proxy(self, side: str) -> Proxy:
        return self.write if side == "write" else self.read

    def equal(self) -> bool:
        """Tell whether nothing is lost, and nothing came twice: audit is appended to."""
        return self.pipeline.same("t") and self.pipeline.same("audit")


@pytest.fixture
def network(one_pipeline) -> Iterator[Network]:
    with Proxy(one_pipeline.write.port) as write, Proxy(one_pipeline.read.port) as read:
        one_pipeline.source(
            "create table t (id int primary key, n int); create table audit (id int, n int)"
        )
        one_pipeline.mirror("public.t", insert_only="public.audit")
        yield Network(one_pipeline, write, read)
        for process in one_pipeline.processes:
            process.kill()


def change(pipeline: Pipeline, number: int) -> None:
    """Write transactions that show whether they took effect, and whether they did twice."""
    pipeline.source(
        f"insert into t values ({number}, 0); insert into audit values ({number}, 0);"
        "update t set n = n + 1"
    )
    pipeline.source(
        f"begin; insert into audit select {number}, g from generate_series(1, 200) g;"
        "update t set n = n + 1; commit"
    )


def streams(passage: Passage) -> bool:
    return b"START_REPLICATION" in passage.sent


def says(text: bytes, *, of: bytes = b"") -> Callable[[Passage], bool]:
    """Tell when a client says something, on a connection where it has said something else."""

    def when(passage: Passage) -> bool:
        to_server = passage.direction == "to server"
        return to_server and text in passage.data and of in passage.sent + passage.data

    return when


def break_all(network: Network, kind: str, stages: list[tuple[str, When]], *, first: int) -> None:
    """Break a connection at each stage, with changes before and after it."""
    for number, (side, when) in enumerate(stages, start=first):
        proxy = network.proxy(side)
        fault = proxy.inject(Fault(kind, when))
        change(network.pipeline, 2 * number)
        if not fault.done.wait(0.2):  # the stage comes when connections are made anew
            network.write.reset_all()
            network.read.reset_all()
        fault.wait()
        change(network.pipeline, 2 * number + 1)
        network.pipeline.caught_up()
        proxy.heal()
        assert network.equal(), (kind, number)


CONNECTING: list[tuple[str, When]] = [
    ("write", lambda passage: not passage.sent),
    ("write", says(b"START_REPLICATION")),
    ("write", lambda passage: passage.data[:1] == COPY_BOTH and streams(passage)),
    ("read", lambda passage: not passage.sent),
    ("read", says(LOCK)),
]
STREAMING: list[tuple[str, When]] = [
    ("write", lambda passage: passage.direction == "to client" and streams(passage)),
    ("write", lambda passage: passage.direction == "to server" and streams(passage)),
    ("read", lambda passage: passage.direction == "to server" and LOCK in passage.sent),
    ("read", lambda passage: passage.direction == "to client" and LOCK in passage.sent),
]


@pytest.mark.parametrize(
    ("stages", "kinds"),
    [
        (CONNECTING, ["reset", "half", "stall"]),
        (STREAMING, ["reset", "end", "half", "stall", "delay", "trickle"]),
    ],
    ids=["connecting", "streaming"],
)
def test_a_connection_that_breaks_is_made_again_and_nothing_is_lost(network, stages, kinds):
    process = network.start()
    network.pipeline.caught_up()
    for number, kind in enumerate(kinds):
        break_all(network, kind, stages, first=10 * number)
    assert process.poll() is None
    assert "Traceback" not in network.pipeline.log(process)


def test_a_commit_whose_answer_was_lost_is_found_out(network):
    """Both where it took effect and where it never arrived; by the checkpoint, and not by chance."""
    pipeline = network.pipeline
    process = network.start()
    pipeline.caught_up()
    for number, (kind, committed) in enumerate(
        product(["reset", "end", "half", "stall"], [True, False])
    ):
        fault = network.read.inject(Fault(kind, says(b"COMMIT", of=LOCK), first_pass=committed))
        pipeline.source(f"insert into audit select {number}, g from generate_series(1, 100) g")
        fault.wait()
        change(pipeline, number)
        pipeline.caught_up()
        network.read.heal()
        assert network.equal(), (kind, committed)
    assert process.poll() is None


def test_a_database_that_accepts_and_never_answers_is_noticed_and_holds_up_no_end(network):
    pipeline = network.pipeline
    process = network.start()
    pipeline.caught_up()
    for number, side in enumerate(["read", "write"]):
        proxy = network.proxy(side)
        proxy.stall_all()
        change(pipeline, number)
        until(lambda: gave_up(pipeline, process, side), what="the silence is noticed")  # noqa: B023
        proxy.heal()
        pipeline.caught_up()
        assert network.equal()
    network.read.stall_all()
    change(pipeline, 2)
    process.terminate()
    assert process.wait(SECONDS) == 0
    process = network.start()  # it never gets as far as streaming
    pipeline.url(process)
    process.terminate()
    assert process.wait(SECONDS) == 0
    network.read.heal()
    network.start()
    pipeline.caught_up()
    assert network.equal()


def gave_up(pipeline: Pipeline, process: subprocess.Popen[str], side: str) -> bool:
    """Tell whether a connection was given up because nothing was answered."""
    known_as = {"read": "from=read", "write": "from=source"}[side]
    return any("no answer" in line and known_as in line for line in lines_of(pipeline, process))


def lines_of(pipeline: Pipeline, process: subprocess.Popen[str]) -> list[str]:
    return pipeline.log(process).splitlines()


def test_a_server_that_is_at_work_for_long_is_left_in_peace(network):
    """While it decodes a large transaction of which nothing is sent, and while it waits for a lock.

    wal2json 2.5 lets the server say nothing meanwhile: no keepalive, and no answer to a question.
    """
    pipeline = network.pipeline
    pipeline.source("create table other (id int, v text)")
    process = network.start()
    pipeline.caught_up()
    network.write.longest_silence = 0.0
    for doublings in range(6):
        rows = 500_000 * 2**doublings
        pipeline.source(f"insert into other select g, 'text' from generate_series(1, {rows}) g")
        change(pipeline, doublings)
        pipeline.caught_up()
        if network.write.longest_silence > 1.5:
            break
    if pipeline.plugin == "wal2json":
        assert network.write.longest_silence > 1.5
    with psycopg.connect(pipeline.read.dsn(pipeline.name)) as reader:
        reader.execute("lock table t in access exclusive mode")
        change(pipeline, 10)
        until(lambda: waited(pipeline) > 3.0, what="the write waits for the lock")
    pipeline.caught_up()
    assert network.equal()
    assert "no answer" not in pipeline.log(process)
    assert "retrying" not in pipeline.log(process)


def waited(pipeline: Pipeline) -> float:
    """Tell for how many seconds the daemon has waited for a lock."""
    return pipeline.target(
        "select coalesce(max(extract(epoch from clock_timestamp() - query_start)), 0)::float "
        "from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )[0][0]


def test_a_copy_goes_on_whatever_breaks_while_chunks_are_read_and_written(network):
    pipeline = network.pipeline
    pipeline.source("insert into t select g, 0 from generate_series(1000, 40000) g")
    pipeline.source("insert into audit select g, 0 from generate_series(1, 2000) g")
    kinds = ["reset", "half", "stall"]
    read, written = ("write", says(b"copy (")), ("read", says(b"COMMIT", of=LOCK))
    process = network.start(CDC_COPY__CHUNK_BYTES="16384", CDC_COPY__MAX_ROWS_PER_SECOND="5000")
    for number, ((side, said), kind) in enumerate(product([read, written], kinds)):
        network.proxy(side).inject(Fault(kind, said)).wait()
        change(pipeline, number)
    network.write.heal()
    network.read.heal()
    pipeline.caught_up()
    assert network.equal()
    assert process.poll() is None


def test_a_commit_to_mariadb_whose_answer_was_lost_is_found_out(one_pipeline):
    require(mariadb_program(), "a MariaDB server")
    pipeline = one_pipeline
    pipeline.source("create table audit (id int, n int)")
    pipeline.mirror(insert_only="public.audit")
    with MariaDB() as server, Proxy(server.port) as proxy:
        name = server.create_database()
        seconds = {"CDC_SOURCE__SILENCE_SECONDS": "1", "CDC_READ__SILENCE_SECONDS": "1"}
        process = pipeline.start(CDC_READ__URL=proxy.through(server.url(name)), **seconds)

        def rows(*_: object) -> int:
            try:
                return int(server.query("select count(*) from audit", name)[0][0])
            except sa.exc.DBAPIError:  # it has not been made yet
                return -1

        until(lambda: rows() == 0, what="it has begun")
        faults = list(product(["reset", "half", "stall"], [True, False]))
        for number, (kind, committed) in enumerate(faults, start=1):
            said = says(b"COMMIT", of=b"get_lock")
            fault = proxy.inject(Fault(kind, said, first_pass=committed))
            pipeline.source(f"insert into audit select {number}, g from generate_series(1, 100) g")
            fault.wait()
            until(lambda: rows() >= 100 * number, what=f"{kind}, {committed}")  # noqa: B023
            proxy.heal()
            assert rows() == 100 * number
        proxy.stall_all()
        pipeline.source("insert into audit values (0, 0)")
        process.terminate()
        assert process.wait(SECONDS) == 0
        proxy.heal()
        process = pipeline.start(CDC_READ__URL=server.url(name), **seconds)
        until(lambda: rows() == 100 * len(faults) + 1, what="the last one has come")
        assert server.query("select count(distinct id, n) from audit", name) == [(rows(),)]
        process.kill()
        process.wait()

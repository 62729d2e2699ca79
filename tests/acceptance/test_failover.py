"""Servers that stop, restart, crash, and are replaced by a standby."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdc.servers import Server, find_installed, find_wheel
from tests import roles
from tests.acceptance.conftest import FAST, SECONDS, Pipeline, until
from tests.conftest import require

MODES = ["fast", "immediate", "kill"]


def change(pipeline: Pipeline, number: int) -> None:
    pipeline.source(
        f"begin; insert into audit select {number}, g from generate_series(1, 200) g;"
        f"insert into t values ({number}, 0); update t set n = n + 1; commit"
    )


def same(pipeline: Pipeline) -> bool:
    """Tell whether nothing is lost, and nothing came twice: audit is appended to."""
    return pipeline.same("t") and pipeline.same("audit")


@contextmanager
def pipeline_of(write: Server, read: Server, folder: Path) -> Iterator[Pipeline]:
    """Give a pipeline with its tables; its processes end with the block."""
    pipeline = Pipeline(write, read, folder, "pgoutput")
    create(pipeline)
    try:
        yield pipeline
    finally:
        for process in pipeline.processes:
            process.kill()
            process.wait()


def create(pipeline: Pipeline) -> None:
    pipeline.source(
        "create table t (id int primary key, n int); create table audit (id int, n int)"
    )
    pipeline.mirror("public.t", insert_only="public.audit")


def test_either_server_restarts_or_crashes_and_nothing_is_lost(tmp_path):
    require(find_installed(), "a Postgres server")
    with (
        Server(find_installed(), FAST) as write,
        Server(find_installed(), FAST) as read,
    ):
        roles.prepare_write(write)
        roles.prepare_read(read)
        restarted(write, read, tmp_path)


def restarted(write: Server, read: Server, folder: Path) -> None:
    with pipeline_of(write, read, folder) as pipeline:
        process = pipeline.start()
        pipeline.caught_up()
        for number, (server, mode) in enumerate((s, m) for s in (write, read) for m in MODES):
            change(pipeline, 2 * number)
            server.kill() if mode == "kill" else server.stop(mode)
            if server is read:
                change(pipeline, 100 + number)
            server.start()
            change(pipeline, 2 * number + 1)
            pipeline.caught_up()
            assert same(pipeline), (server is write, mode)
        assert process.poll() is None
        assert "Traceback" not in pipeline.log(process)
        process.terminate()
        assert process.wait(SECONDS) == 0


# Standbys.


class Standby(Server):
    """A physical standby of another server."""

    def __init__(self, primary: Server, **settings: object) -> None:
        super().__init__(primary.installation, primary.settings | settings)
        self._primary = primary

    def _initdb(self) -> None:
        data = self.folder / "data"
        dsn = f"{self._primary.dsn()}?application_name=standby"
        tool = self._primary._bin / "pg_basebackup"
        self._spawn(str(tool.name), "-D", str(data), "-d", dsn, "-c", "fast", "--no-sync")
        assert self._process is not None
        assert self._process.wait() == 0, self.log()
        conf = data / "postgresql.conf"
        conf.write_text(conf.read_text().replace("include 'cdc.conf'\n", ""))
        (data / "standby.signal").touch()
        shutil.chown(data / "standby.signal", self._account.pw_uid, self._account.pw_gid)

    def has(self, position: int) -> bool:
        rows = self.psql("select pg_last_wal_replay_lsn() - '0/0'::pg_lsn")
        return bool(rows[0][0] >= position)

    def promote(self) -> None:
        self.psql("select pg_promote()")
        until(lambda: self.psql("select pg_is_in_recovery()") == [(False,)], what="it is promoted")


def standby_of(primary: Server, name: str) -> Standby:
    primary.psql(f"select pg_create_physical_replication_slot('{name}')")
    return Standby(
        primary,
        primary_conninfo=f"{primary.dsn()}?application_name=standby",
        primary_slot_name=name,
        hot_standby_feedback=True,
    )


def at(pipeline: Pipeline, server: Server) -> dict[str, str]:
    """Have the daemon reach another write database."""
    return {"CDC_SOURCE__DSN": server.dsn(pipeline.name, roles.write_role(pipeline.plugin))}


def position(server: Server) -> int:
    return int(server.psql("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0])


def test_a_promoted_standby_without_the_slot_is_refused_and_resync_heals_it(tmp_path, read):
    require(find_installed(), "a Postgres server")
    with Server(find_installed(), FAST) as primary:
        roles.prepare_write(primary)
        standby = standby_of(primary, "physical")
        with pipeline_of(primary, read, tmp_path) as pipeline, standby:
            process = pipeline.start()
            pipeline.caught_up()
            change(pipeline, 1)
            pipeline.caught_up()
            process.terminate()
            assert process.wait(SECONDS) == 0
            waiting = pipeline.start(**at(pipeline, standby))
            until(
                lambda: "has not been promoted" in pipeline.log(waiting), what="it is told to wait"
            )
            until(lambda: standby.has(position(primary)), what="the standby has all")
            primary.kill()
            standby.promote()
            assert waiting.wait(SECONDS) == 13
            assert "cdc resync" in pipeline.log(waiting)
            pipeline.write = standby
            change(pipeline, 2)
            resynced = pipeline.cdc("resync", "--yes", **at(pipeline, standby))
            assert resynced.returncode == 0, resynced.stderr
            pipeline.start(**at(pipeline, standby))
            change(pipeline, 3)
            pipeline.caught_up()
            assert same(pipeline)


def synced(pipeline: Pipeline, standby: Server) -> bool:
    """Have the standby take over the slots; tell whether it has ours, for good."""
    pipeline.write.psql("select pg_log_standby_snapshot()")  # what the slot has to get past
    standby.psql("select pg_sync_replication_slots()")
    query = f"select 1 from pg_replication_slots where slot_name = '{pipeline.name}' and synced"
    return bool(standby.psql(f"{query} and not temporary and invalidation_reason is null"))


def test_a_failover_slot_goes_on_unless_the_standby_lacks_what_was_read(tmp_path, read):
    """The first standby that is promoted has all that the read database has, the second has not."""
    require(find_wheel(), "a Postgres server of version 17 or newer")
    with Server(find_wheel(), {**FAST, "synchronized_standby_slots": "physical"}) as primary:
        roles.prepare_write(primary)
        second = standby_of(primary, "physical")
        with pipeline_of(primary, read, tmp_path) as pipeline, second:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{second.port}"
            dsn = second.dsn(pipeline.name, roles.write_role(pipeline.plugin)).replace(
                f"127.0.0.1:{second.port}", hosts
            )
            both = {
                "CDC_SOURCE__DSN": f"{dsn}?target_session_attrs=read-write",
                "CDC_SOURCE__FAILOVER": "true",
            }
            process = pipeline.start(**both)
            pipeline.caught_up()
            change(pipeline, 1)
            pipeline.caught_up()
            until(lambda: synced(pipeline, second), what="the standby has the slot")
            primary.kill()
            second.promote()
            pipeline.write = second
            change(pipeline, 2)
            until(
                lambda: '"synchronized_standby_slots" does not exist' in pipeline.log(process),
                what="the daemon tells what the new primary waits for",
            )
            second.configure({"synchronized_standby_slots": None})
            pipeline.caught_up()
            assert same(pipeline)
            with standby_of(second, "other") as third:
                until(lambda: synced(pipeline, third), what="the next standby has the slot")
                third.stop("immediate")
                change(pipeline, 3)
                pipeline.caught_up()
                assert same(pipeline)
                process.terminate()
                assert process.wait(SECONDS) == 0
                second.kill()
                third.start()
                third.promote()
                pipeline.write = third
                while position(third) <= pipeline.checkpoint():
                    change(pipeline, position(third) % 1_000_000)
                refused = pipeline.start(**{**both, **at(pipeline, third)})
                assert refused.wait(SECONDS) == 11
                assert "lacks changes" in pipeline.log(refused)
                assert "cdc resync" in pipeline.log(refused)


def test_a_failover_slot_is_refused_where_the_server_cannot(one_pipeline):
    if one_pipeline.write.installation.version >= (17, 0):
        return
    create(one_pipeline)
    done = one_pipeline.cdc("run", CDC_SOURCE__FAILOVER="true")
    assert done.returncode == 3
    assert "source.failover is set" in done.stderr
    assert not one_pipeline.source(
        "select 1 from pg_replication_slots where database = current_database()"
    )

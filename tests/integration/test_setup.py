"""Set-up: the slot, the checkpoint, the publications; and being killed between any two of them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

from cdc.copy_state import Copy, Unit
from cdc.errors import (
    CdcError,
    ChangesConsumedElsewhere,
    ReadTableMismatch,
    RegistryError,
    SlotActive,
    SlotMismatch,
    SlotMissing,
    SlotWithoutCheckpoint,
    SourceError,
    SourceNotReady,
    SourceRefused,
    SourceReplaced,
    SourceUnavailable,
)
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.operate import setup
from cdc.operate.drop import drop
from cdc.sink import checkpoint, copies
from cdc.sink.engine import create_engine
from cdc.sink.writer import Writer
from cdc.source.connection import connect, connect_replication
from cdc.source.slot import drop_slot, identify, read_slot
from cdc.source.slot_creation import create_slot
from tests.conftest import Configuration, Database, RunningDaemon, until

Configure = Callable[..., Configuration]
MIRROR = {"source": "public.t"}


@pytest.fixture(autouse=True)
def _tables(write: Database) -> None:
    write.run(
        "create table t (id int primary key, v text)",
        "create table u (id int primary key)",
        "create table log (what text)",
    )


def checkpoints(read: Database) -> list[tuple[Any, ...]]:
    return read.rows("select slot, plugin, lsn from cdc_checkpoint")


def published(write: Database, name: str) -> set[str]:
    rows = write.rows("select tablename from pg_publication_tables where pubname = %s", name)
    return {table for (table,) in rows}


def test_the_first_set_up_makes_all_and_the_next_ones_nothing(
    write: Database, read: Database, configuration: Configure, plugin: str
) -> None:
    wanted = configuration(plugin, mirrors=[MIRROR])
    lsn = setup.set_up(wanted.settings())
    assert write.slots() == [wanted.slot]
    assert checkpoints(read) == [(wanted.slot, plugin, lsn)]
    assert read.rows("select * from t") == []
    write.run("insert into t values (1, 'a')")
    assert setup.set_up(wanted.settings()) == lsn
    assert write.slots() == [wanted.slot]


def test_the_write_database_is_left_alone_but_for_slot_and_publication(
    write: Database, configuration: Configure, plugin: str
) -> None:
    query = (
        "select 'class', relname::text from pg_class union all "
        "select 'trigger', tgname from pg_trigger union all "
        "select 'event', evtname from pg_event_trigger union all "
        "select 'identity', relname || relreplident::text from pg_class union all "
        "select 'function', proname from pg_proc union all select 'role', rolname from pg_roles"
    )
    before = write.rows(query)
    setup.set_up(configuration(plugin, mirrors=[MIRROR]).settings())
    assert write.rows(query) == before


def test_dropping_forgets_all_bookkeeping_of_the_slot(
    write: Database, read: Database, configuration: Configure
) -> None:
    settings = configuration(mirrors=[MIRROR]).settings()
    setup.set_up(settings)
    unit = Copy(Unit("mirror:public.t", TableName("public", "t")))
    engine = create_engine(read.url)
    with engine.begin() as connection:
        for slot in (settings.source.slot, "another"):
            copies.forget(connection, slot)
            copies.add(connection, slot, [unit])
    engine.dispose()
    assert list(drop(settings))
    assert write.slots() == []
    assert (
        read.rows("select slot from cdc_checkpoint union select slot from cdc_source_column") == []
    )
    assert read.rows("select slot from cdc_copy") == [("another",)]


# Publications.


def test_publications_list_the_tables_wanted_and_lose_none_that_another_may_want(
    write: Database, configuration: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    log = {"source": "public.log", "insert_only": True}
    first = configuration(mirrors=[MIRROR, log])
    name = first.slot
    setup.set_up(first.settings())
    assert "earlier changes" not in caplog.text  # there are none
    assert published(write, name) == {"t"}
    assert published(write, f"{name}_insert") == {"log"}
    write.run("update log set what = 'x'", "insert into log values ('a')", "delete from log")
    setup.set_up(configuration(mirrors=[MIRROR, log, {"source": "public.u"}]).settings())
    assert "earlier changes" in caplog.text
    assert published(write, name) == {"t", "u"}
    setup.set_up(configuration(mirrors=[log, {"source": "public.u"}]).settings())
    assert published(write, name) == {"t", "u"}
    flags = "pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables"
    rows = write.rows(f"select {flags} from pg_publication order by pubname")
    assert rows == [(True, True, True, True, True, False), (True, False, False, True, True, False)]


@pytest.mark.parametrize(
    "statement",
    [
        "create publication {} for table t with (publish = 'insert')",
        "create publication {} for table t where (id > 5)",
        "create publication {} for table t (id)",
        "create publication {} for all tables",
    ],
)
def test_a_publication_that_leaves_changes_out_is_refused_and_not_changed(
    write: Database, configuration: Configure, statement: str
) -> None:
    wanted = configuration(mirrors=[MIRROR])
    write.run(statement.format(wanted.slot))
    everything = (
        "select p::text, r::text from pg_publication p left join pg_publication_rel r on true"
    )
    before = write.rows(everything)
    with pytest.raises(SourceNotReady) as caught:
        setup.set_up(wanted.settings())
    assert caught.value.hint
    assert write.rows(everything) == before
    assert write.rows(f"select 1 from pg_replication_slots where slot_name = '{wanted.slot}'") == []


@pytest.mark.parametrize("altered", ["drop table t", "set (publish = 'insert')"])
def test_a_publication_that_is_altered_stops_the_daemon(
    write: Database,
    configuration: Configure,
    cdc_start: Callable[..., RunningDaemon],
    altered: str,
) -> None:
    """What it leaves out then is not streamed, and nothing tells it."""
    wanted = configuration(mirrors=[MIRROR])
    daemon = cdc_start(wanted)
    daemon.wait_started()
    write.run(f"alter publication {wanted.slot} {altered}")
    assert daemon.ends() == 3
    assert "a publication was altered" in daemon.log
    assert "cdc verify --repair" in daemon.log


def test_a_start_that_is_refused_changes_no_publication(
    write: Database, configuration: Configure
) -> None:
    wanted = configuration(mirrors=[MIRROR])
    write.run(f"create publication {wanted.slot} for table u")
    write.run(f"select pg_create_logical_replication_slot('{wanted.slot}', 'pgoutput')")
    with pytest.raises(SlotWithoutCheckpoint):
        setup.set_up(wanted.settings())
    assert published(write, wanted.slot) == {"u"}


def test_a_publication_of_tables_that_are_not_ours_is_refused_with_the_sql(
    write: Database, configuration: Configure
) -> None:
    role = f"role_{write.name}"
    write.run(
        f"create role {role} login replication",
        f"grant create on database {write.name} to {role}",
    )
    try:
        wanted = configuration(mirrors=[MIRROR])
        as_role = wanted.with_(source={"dsn": write.server.dsn(write.name, role)})
        with pytest.raises(SourceNotReady) as caught:
            setup.set_up(as_role.settings())
        hint = str(caught.value.hint)
        write.run(hint[hint.index("create publication") :])
        setup.set_up(as_role.settings())
    finally:
        write.run(f"drop owned by {role}", f"drop role {role}")


# Being killed between the steps.


class Halfway:
    """A set-up whose steps are taken one by one."""

    def __init__(self, configuration: Configuration) -> None:
        self.settings = configuration.settings()
        self.slot = configuration.slot
        self.dsn = self.settings.source.dsn.get_secret_value()
        self.source = connect(self.dsn)
        self.replication = connect_replication(self.dsn)
        self.engine = create_engine(self.settings.read.url.get_secret_value())
        self.read = self.engine.connect()
        setup.prepare_read_side(self.read, setup.plan(self.settings, self.source).registry)
        system = identify(self.replication)
        plugin = self.settings.source.plugin
        self.identity = checkpoint.Identity(self.slot, plugin, system.identifier, system.timeline)

    def intend(self) -> None:
        with self.read.begin():
            checkpoint.intend(self.read, self.identity)

    def create_slot(self) -> Lsn:
        plugin = self.settings.source.plugin
        return create_slot(self.replication, self.slot, plugin, source=self.source, seconds=0)

    def close(self) -> None:
        self.read.close()
        self.engine.dispose()
        self.source.close()
        self.replication.close()


@pytest.fixture
def halfway(configuration: Configure) -> Iterator[Halfway]:
    begun = Halfway(configuration(mirrors=[MIRROR]))
    yield begun
    begun.close()


def test_an_intent_without_a_slot_makes_it(read: Database, halfway: Halfway) -> None:
    halfway.intend()
    lsn = setup.set_up(halfway.settings)
    assert checkpoints(read) == [(halfway.slot, "pgoutput", lsn)]


def test_an_intent_and_its_slot_are_adopted_at_its_position(
    write: Database, read: Database, halfway: Halfway
) -> None:
    halfway.intend()
    created = halfway.create_slot()
    write.run("insert into t values (1, 'a')")
    assert setup.set_up(halfway.settings) == created
    assert checkpoints(read) == [(halfway.slot, "pgoutput", created)]


def test_an_intent_whose_slot_is_still_being_made_waits_for_it(
    write: Database, read: Database, halfway: Halfway
) -> None:
    halfway.intend()
    with write.connect(autocommit=False) as writing:
        writing.execute("insert into t values (1, 'a')")
        creating = threading.Thread(target=halfway.create_slot)
        creating.start()
        until(lambda: read_slot(halfway.source, halfway.slot))
        with pytest.raises(CdcError) as caught:
            setup.set_up(halfway.settings)
        assert caught.value.transient
    creating.join()
    assert setup.set_up(halfway.settings)
    assert len(checkpoints(read)) == 1


def test_an_intent_for_another_plugin_is_no_leave_to_adopt(
    configuration: Configure, halfway: Halfway
) -> None:
    halfway.intend()
    halfway.create_slot()
    other = configuration("wal2json", mirrors=[MIRROR]).settings()
    with pytest.raises(SlotMismatch):
        setup.set_up(other)


# Refusals.


def test_a_slot_without_a_checkpoint_is_left_alone(
    write: Database, read: Database, halfway: Halfway
) -> None:
    halfway.create_slot()
    with pytest.raises(SlotWithoutCheckpoint):
        setup.set_up(halfway.settings)
    assert write.slots() == [halfway.slot]
    assert checkpoints(read) == []


def test_a_checkpoint_without_its_slot_is_left_alone(
    write: Database, read: Database, configuration: Configure
) -> None:
    settings = configuration(mirrors=[MIRROR]).settings()
    lsn = setup.set_up(settings)
    write.rows("select pg_drop_replication_slot(%s)", settings.source.slot)
    with pytest.raises(SlotMissing):
        setup.set_up(settings)
    assert write.slots() == []
    assert [row[2] for row in checkpoints(read)] == [lsn]


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ("lsn = lsn - 1", ChangesConsumedElsewhere),
        ("lsn = 9000000000000000", SourceReplaced),
        ("system_identifier = '1'", SourceReplaced),
        ("timeline = 99", SourceReplaced),
        ("plugin = 'wal2json'", SlotMismatch),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_slot_is_refused(
    read: Database, configuration: Configure, change: str, refusal: type[CdcError]
) -> None:
    settings = configuration(mirrors=[MIRROR]).settings()
    setup.set_up(settings)
    read.run(f"update cdc_checkpoint set {change}")
    with pytest.raises(refusal):
        setup.set_up(settings)


def test_a_slot_that_was_consumed_elsewhere_is_refused(
    write: Database, configuration: Configure
) -> None:
    settings = configuration(mirrors=[MIRROR]).settings()
    setup.set_up(settings)
    write.run("insert into t values (1, 'a')")
    write.rows("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", settings.source.slot)
    with pytest.raises(ChangesConsumedElsewhere):
        setup.set_up(settings)


def test_a_slot_of_another_plugin_or_database_is_refused(
    write: Database, read: Database, configuration: Configure
) -> None:
    settings = configuration(mirrors=[MIRROR]).settings()
    setup.set_up(settings)
    name = settings.source.slot
    write.rows("select pg_drop_replication_slot(%s)", name)
    write.rows("select pg_create_logical_replication_slot(%s, 'test_decoding')", name)
    position = write.value("select pg_current_wal_lsn() - '0/0'::pg_lsn")
    read.run(f"update cdc_checkpoint set lsn = {position}")
    with pytest.raises(SlotMismatch):
        setup.set_up(settings)
    write.rows("select pg_drop_replication_slot(%s)", name)
    other = Database(write.server)
    try:
        other.rows("select pg_create_logical_replication_slot(%s, 'pgoutput')", name)
        with pytest.raises(SlotMismatch):
            setup.set_up(settings)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("mirror", "said"),
    [
        ({"source": "public.nothing"}, "public.nothing"),
        ({"source": "public.log"}, "public.log"),
        ({"source": "public.t", "exclude": ["id"]}, '"id"'),
    ],
)
def test_what_cannot_be_mirrored_is_refused_before_anything_is_made(
    write: Database, read: Database, configuration: Configure, mirror: dict[str, Any], said: str
) -> None:
    with pytest.raises(RegistryError, match=said):
        setup.set_up(configuration(mirrors=[mirror]).settings())
    assert write.slots() == []
    assert not read.value("select to_regclass('cdc_checkpoint') is not null")
    assert write.rows("select 1 from pg_publication") == []


def test_nothing_to_do_is_refused(configuration: Configure) -> None:
    with pytest.raises(RegistryError, match="nothing to do"):
        setup.set_up(configuration().settings())


def test_a_read_table_that_does_not_fit_is_refused_before_the_slot_is_made(
    write: Database, read: Database, configuration: Configure
) -> None:
    read.run("create table t (id text primary key)")
    with pytest.raises(ReadTableMismatch, match='"id" is text'):
        setup.set_up(configuration(mirrors=[MIRROR]).settings())
    assert write.slots() == []
    assert not read.value("select to_regclass('cdc_checkpoint') is not null")


@pytest.mark.parametrize(
    ("dsn", "refusal", "said"),
    [
        ("postgresql://postgres@127.0.0.1:1/x", SourceUnavailable, "127.0.0.1"),
        ("{server}/nosuchdatabase", SourceRefused, "nosuchdatabase"),
        ("postgresql://nosuchrole@127.0.0.1:{port}/{name}", SourceRefused, "nosuchrole"),
    ],
)
def test_a_write_database_that_refuses_or_does_not_answer(
    write: Database, configuration: Configure, dsn: str, refusal: type[CdcError], said: str
) -> None:
    server = write.server
    base = server.dsn("").rstrip("/")
    actual = dsn.format(server=base, port=server.port, name=write.name)
    settings = configuration(mirrors=[MIRROR]).with_(source={"dsn": actual}).settings()
    with pytest.raises(refusal, match=said) as caught:
        setup.set_up(settings)
    assert caught.value.transient is (refusal is SourceUnavailable)


def test_a_role_without_replication_is_refused_with_the_remedy(
    write: Database, configuration: Configure
) -> None:
    role = f"role_{write.name}"
    write.run(f"create role {role} login")
    try:
        dsn = write.server.dsn(write.name, role)
        settings = configuration("wal2json", mirrors=[MIRROR]).with_(source={"dsn": dsn}).settings()
        with pytest.raises(SourceRefused) as caught:
            setup.set_up(settings)
        assert "replication" in str(caught.value.hint)
    finally:
        write.run(f"drop role {role}")


def test_a_plugin_that_is_not_installed_is_refused_with_the_remedy(write: Database) -> None:
    with (
        closing(connect(write.dsn)) as source,
        closing(connect_replication(write.dsn)) as walsender,
    ):
        with pytest.raises(SourceNotReady) as caught:
            create_slot(walsender, "nothing", "nosuchplugin", source=source, seconds=0)
        assert "nosuchplugin" in str(caught.value)
        assert caught.value.hint


def test_no_free_slot_is_refused_with_the_remedy(write: Database, configuration: Configure) -> None:
    taken = 0
    try:
        with suppress(psycopg.errors.ConfigurationLimitExceeded):
            for taken in range(100):
                write.rows(f"select pg_create_physical_replication_slot('full_{taken}')")
        with pytest.raises(SourceNotReady) as caught:
            setup.set_up(configuration(mirrors=[MIRROR]).settings())
        assert "max_replication_slots" in str(caught.value.hint)
    finally:
        for number in range(taken):
            write.rows(f"select pg_drop_replication_slot('full_{number}')")
    setup.set_up(configuration(mirrors=[MIRROR]).settings())


def test_a_slot_that_is_in_use_is_waited_for(write: Database, halfway: Halfway) -> None:
    lsn = setup.set_up(halfway.settings)
    with closing(connect_replication(write.dsn)) as streaming:
        start = f"START_REPLICATION SLOT {halfway.slot} LOGICAL {lsn} "
        streaming.execute(f"{start} (proto_version '1', publication_names 'x')")
        until(lambda: (state := read_slot(halfway.source, halfway.slot)) and state.active)
        assert setup.set_up(halfway.settings) == lsn
        with pytest.raises(SlotActive):
            drop_slot(halfway.source, halfway.slot)


def test_errors_of_the_write_database_are_source_errors(write: Database) -> None:
    with (
        closing(connect(write.dsn)) as source,
        closing(connect_replication(write.dsn)) as walsender,
    ):
        with pytest.raises(SourceError):
            create_slot(walsender, "Bad Name", "pgoutput", source=source, seconds=0)


def test_a_checkpoint_of_another_slot_is_no_matter(
    read: Database, configuration: Configure
) -> None:
    settings = configuration(mirrors=[MIRROR]).settings()
    setup.set_up(settings)
    other = configuration(mirrors=[MIRROR]).with_(
        source={"slot": f"{settings.source.slot}_b", "publication": f"{settings.source.slot}_b"}
    )
    setup.set_up(other.settings())
    assert len(checkpoints(read)) == 2


def test_a_locked_read_database_is_waited_for(read: Database, configuration: Configure) -> None:
    settings = configuration(mirrors=[MIRROR]).settings()
    engine = create_engine(read.url)
    holder = Writer(engine, settings.source.slot)
    holder.open()
    try:
        with pytest.raises(CdcError) as caught:
            setup.set_up(settings)
        assert caught.value.transient
    finally:
        holder.close()
        engine.dispose()

"""What the write database tells of WAL and slot, while it decodes and while it waits."""

from contextlib import closing

from cdc.source import pgoutput, slot
from cdc.source.connection import connect, connect_replication
from cdc.source.slot_creation import create_slot
from cdc.source.stream import Stream
from tests.conftest import Database, until


def test_a_server_at_work_on_what_it_filters_out_is_told_from_one_that_waits(
    write: Database,
) -> None:
    role = f"sampled_{write.name}"
    write.run(f"create role {role} login replication", "create table other (id int)")
    write.run("create publication none")
    dsn, name = write.server.dsn(write.name, role), f"slot_{write.name}"
    with (
        closing(connect(dsn)) as source,
        connect_replication(dsn) as replication,
    ):
        assert slot.sample(source, name).wal_status is None
        lsn = create_slot(replication, name, "pgoutput", source=source, seconds=0)
        before = slot.sample(source, name)
        assert (before.wal_status, before.decoding, before.wal >= lsn) == ("reserved", False, True)
        assert (before.active, before.confirmed) == (False, lsn)
        assert {type(before.wal), type(before.confirmed), type(before.retained)} == {int}
        write.run("insert into other select generate_series(1, 200000)")
        stream = Stream(replication, slot=name, options=pgoutput.options(["none"]))
        stream.start(lsn)
        until(lambda: slot.sample(source, name).decoding)
        assert slot.sample(source, name).active
        end = slot.sample(source, name).wal

        def sent() -> bool:
            stream.read(seconds=0.01)
            stream.feedback()
            return stream.received >= end

        until(sent)
        until(lambda: not slot.sample(source, name).decoding)
        stream.close()
    write.run(f"drop role {role}")

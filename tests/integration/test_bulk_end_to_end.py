"""Many changes at once, which go in bulk: as exact as one by one, and where it fails, too."""

from collections.abc import Callable
from typing import Any

from tests.conftest import Configuration, Database

Configure = Callable[..., Configuration]
Run = Callable[..., Any]
TYPED = (
    "create table t (id int primary key, v text, b bytea, n numeric, f float8, ok bool, j jsonb)"
)
FILL = """
insert into t select i, case i % 7 when 0 then null when 1 then '' when 2 then E'a\tb\\nc\\\\'
                                   when 3 then E'\x01 "quoted" \\r' when 4 then '\\.'
                                   else 'é' || i end,
                     case i % 3 when 0 then null when 1 then '\\x'::bytea else '\\x00ff' end,
                     i + 0.50, i / 3.0::float8, i % 2 = 0, '{{"a": "\\"x\\\\"}}'
from generate_series({first}, {last}) i
"""


def mirrored(write: Database, read: Database, table: str = "t") -> None:
    assert read.texts(table) == write.texts(table)
    assert write.value(f"select count(*) from {table}") > 0


def test_values_of_every_kind_arrive_as_they_were(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(TYPED)
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}])
    cdc_run(wanted)
    write.run(
        FILL.format(first=1, last=2000),
        "update t set v = v || 'x', n = -n where id % 2 = 0",
        "delete from t where id % 5 = 0",
        "update t set id = -id where id % 11 = 0",
        FILL.format(first=2001, last=3000),
        "update t set v = E'\\\\' where id > 2500",
    )
    cdc_run(wanted)
    mirrored(write, read)


def test_one_column_may_hold_what_ends_a_copy(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run("create table t (v text primary key)")
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}])
    cdc_run(wanted)
    write.run("insert into t select i::text from generate_series(1, 500) i union select '\\.'")
    cdc_run(wanted)
    mirrored(write, read)


def test_rows_that_are_there_already_are_replaced(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    """A read table that was filled by hand before: its rows are not new, whatever the source says."""
    write.run(TYPED)
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}])
    cdc_run(wanted)
    read.run(FILL.format(first=100, last=200), "update t set v = 'stale'")
    write.run(FILL.format(first=1, last=1000))
    write.run("update t set n = 0 where id % 3 = 0", FILL.format(first=1001, last=1500))
    cdc_run(wanted)
    mirrored(write, read)


def test_updates_bring_rows_that_were_never_copied(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(TYPED, FILL.format(first=1, last=1000))
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}])
    cdc_run(wanted)
    write.run("update t set n = n + 1 where id <= 600", "delete from t where id > 400")
    cdc_run(wanted)
    mirrored(write, read)


def test_a_row_that_is_refused_among_many_is_named_and_nothing_of_it_is_lost(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(TYPED)
    stop = {"on_error": "stop"}
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}]).with_(projection=stop)
    cdc_run(wanted)
    read.run("alter table t add constraint no_secret check (n <> 77.50)")
    write.run(FILL.format(first=1, last=70))
    refused = write.run(FILL.format(first=71, last=900))
    ran = cdc_run(wanted, succeeds=False)
    assert ran.returncode == 4
    for said in ("mirror:public.t", "upsert t", "id='77'", "no_secret"):
        assert said in ran.stderr
    assert "77.50" not in ran.stderr
    assert read.value("select lsn from cdc_checkpoint") < refused
    assert read.value("select count(*) from t") in {0, 70}
    read.run("alter table t drop constraint no_secret")
    cdc_run(wanted)
    mirrored(write, read)


def test_a_transaction_that_comes_in_pieces_appears_whole(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(TYPED)
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}]).with_(
        read={"batch_bytes": 2**20, "batch_changes": 2000}
    )
    cdc_run(wanted)
    write.commit(
        FILL.format(first=1, last=30_000),
        "update t set v = 'later' where id % 4 = 0",
        "delete from t where id % 6 = 0",
        "update t set id = 100000 + id where id % 1000 = 0",
    )
    cdc_run(wanted)
    mirrored(write, read)


ODD = """
create table numbers (k numeric primary key, v text);
create table floats (k float8 primary key, v text);
create table padded (k char(5) primary key, v char(3));
create table whole (id int primary key, v text, w text);
alter table whole replica identity full;
create table other_key (id int primary key, u text not null unique, v text);
alter table other_key replica identity using index other_key_u_key;
create table lost (id int, gone text, v text, primary key (id));
alter table lost drop column gone;
create table alone (k text primary key);
create table several (b text, a int, v text, primary key (a, b))
"""
ROWS = """
insert into numbers select i + 0.0, i from generate_series(1, 300) i;
insert into floats select i / 7.0, i from generate_series(1, 300) i;
insert into padded select i, i from generate_series(1, 300) i;
insert into whole select i, i, nullif(i % 3, 0) from generate_series(1, 300) i;
insert into other_key select i, 'u' || i, i from generate_series(1, 300) i;
insert into lost select i, i from generate_series(1, 300) i;
insert into alone select E'a\\n\\\\.\\n' || i from generate_series(1, 300) i;
insert into several select E'\\t' || i, i, '' from generate_series(1, 300) i
"""
AGAIN = """
delete from numbers where k < 100;
insert into numbers select (i || '.000')::numeric, 'again' from generate_series(1, 99) i;
delete from numbers where k < 50;
insert into numbers select i, 'once more' from generate_series(1, 49) i;
insert into floats values ('-0', 'a');
delete from floats where k = 0;
insert into floats values ('0', 'b');
update floats set v = v || 'x';
update padded set v = 'y';
delete from padded where k::int % 2 = 0;
insert into padded select i, '' from generate_series(2, 300, 4) i;
update whole set w = '' where id % 2 = 0;
delete from whole where id % 5 = 0;
update other_key set id = -id;
delete from other_key where id % 5 = 0;
update lost set v = null where id % 2 = 0;
delete from alone where k like '%7';
update several set v = null where a % 2 = 0;
delete from several where a % 3 = 0;
insert into several select E'\\t' || i, i, E'\\x01' from generate_series(3, 300, 6) i
"""


def test_odd_tables_and_keys_of_many_spellings_arrive_as_they_were(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(*ODD.split(";"))
    wanted = configuration(plugin, mirrors=[{"source": "public.*"}])
    cdc_run(wanted)
    write.commit(*ROWS.split(";"))
    cdc_run(wanted)
    write.run(*AGAIN.split(";"))
    cdc_run(wanted)
    write.commit(*(f"delete from {table}" for table in ("numbers", "alone")))
    write.run(*ROWS.split(";")[::6], *AGAIN.split(";")[:4])
    cdc_run(wanted)
    for table in ["numbers", "floats", "padded", "whole", "other_key", "lost", "alone", "several"]:
        mirrored(write, read, table)

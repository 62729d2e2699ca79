"""Truncates: of one table, of many, of what references them, of a partitioned one."""

from collections.abc import Callable
from typing import Any

from tests.conftest import Configuration, Database

Configure = Callable[..., Configuration]
Run = Callable[..., Any]
TABLES = ("a", "b", "c", "p")
FILL = (
    "insert into a select generate_series(1, 30)",
    "insert into b select i, i from generate_series(1, 30) i",
    "insert into c select i, i from generate_series(1, 30) i",
    "insert into p select generate_series(1, 30)",
)


def test_truncates_empty_what_the_source_emptied_and_no_more(
    write: Database, read: Database, configuration: Configure, cdc_run: Run, plugin: str
) -> None:
    write.run(
        "create table a (id int primary key)",
        "create table b (id int primary key, a int references a)",
        "create table c (id int primary key, b int references b)",
        "create table p (id int primary key) partition by range (id)",
        "create table p1 partition of p for values from (0) to (10)",
        "create table p2 partition of p default",
    )
    wanted = configuration(plugin, mirrors=[{"source": f"public.{table}"} for table in TABLES])
    cdc_run(wanted)
    for truncate in (
        "truncate c",
        "truncate b, c, p",
        "truncate a cascade",
        "truncate p",
        "select 1",
    ):
        write.run("delete from c", "delete from b", "delete from a", "delete from p", *FILL)
        write.commit("delete from c where id = 1", truncate, "delete from p where id = 3")
        write.run("insert into p values (100)")
        cdc_run(wanted)
        for table in TABLES:
            assert read.texts(table) == write.texts(table), truncate
    assert read.value("select count(*) from a") == 30

"""Keys, unique values and foreign keys: what was in order at the source is in order here."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Configuration, Database

Configure = Callable[..., Configuration]
Run = Callable[..., Any]


def equal(write: Database, read: Database, table: str = "t") -> None:
    assert read.texts(table) == write.texts(table)


# Each list: statements of one transaction.
MOVES = {
    "swap": [
        "update t set a = 9 where a = 1",
        "update t set a = 1 where a = 2",
        "update t set a = 2 where a = 9",
    ],
    "chain up": ["update t set a = a + 100", "update t set a = a - 99"],
    "round": [
        "update t set a = 0 where a = 5",
        *(f"update t set a = {n + 1} where a = {n}" for n in (4, 3, 2, 1)),
        "update t set a = 1 where a = 0",
    ],
    "there and back": [
        "update t set a = 50 where a = 1",
        "update t set v = 'x' where a = 50",
        "update t set a = 1 where a = 50",
    ],
    "reused after delete": ["delete from t where a = 1", "insert into t values ('new', 1, 'k')"],
    "reused after a move": [
        "update t set a = 60 where a = 1",
        "insert into t values ('new', 1, 'k')",
        "update t set v = 'y' where a = 60",
    ],
    "moved onto a deleted one": ["delete from t where a = 2", "update t set a = 2 where a = 1"],
    "moved, deleted, made again": [
        "update t set a = 70 where a = 3",
        "delete from t where a = 70",
        "insert into t values (null, 70, 'k'), ('b', 3, 'k')",
    ],
    "made and moved": [
        "insert into t values ('n', 80, 'k')",
        "update t set a = 81 where a = 80",
        "update t set v = null where a = 81",
    ],
    "both parts": [
        "update t set a = a + 1000, b = b || 'x' where a < 4",
        "update t set a = a - 1000, b = 'k' where a > 999",
    ],
}


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "batches of one"])
@pytest.mark.parametrize("identity", ["default", "full"])
def test_keys_that_move_swap_and_are_used_again(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_run: Run,
    plugin: str,
    together: bool,
    identity: str,
) -> None:
    """The key (b, a) is declared in another order than the columns; long values are not sent."""
    write.run(
        "create table t (v text, a int, b text, primary key (b, a))",
        "alter table t alter v set storage external",
        f"alter table t replica identity {identity}",
    )
    wanted = configuration(plugin, mirrors=[{"source": "public.t"}])
    wanted = wanted.with_(read={"batch_changes": 20_000 if together else 1})
    cdc_run(wanted)
    five = "insert into t select repeat('v' || i, 2000), i, 'k' from generate_series(1, 5) i"
    for statements in MOVES.values():
        write.run("delete from t where a % 2 = 0", "delete from t", five)
        write.commit(*statements)
    write.run("delete from t", five)
    for statements in MOVES.values():
        write.commit(*statements)
        again = "('w', 1, 'k'), ('w', 2, 'k'), ('w', 3, 'k')"
        write.run(f"insert into t values {again} on conflict do nothing")
    cdc_run(wanted)
    equal(write, read)
    assert write.texts("t")


DEFERRABLE = "deferrable initially immediate"


@pytest.mark.parametrize(
    ("constraint", "swap"),
    [
        (
            "",
            [
                "update t set u = '-' where id = 1",
                "update t set u = 'a' where id = 2",
                "update t set u = 'b' where id = 1",
            ],
        ),
        (
            "",
            [
                "delete from t where id = 1",
                "update t set u = 'a' where id = 2",
                "insert into t values (1, 'b')",
            ],
        ),
        (DEFERRABLE, ["update t set u = case id when 1 then 'b' else 'a' end where id in (1, 2)"]),
        (
            DEFERRABLE,
            [
                "set constraints all deferred",
                "update t set u = 'b' where id = 1",
                "update t set u = 'a' where id = 2",
            ],
        ),
        (
            "deferrable initially deferred",
            ["update t set u = 'b' where id = 1", "update t set u = 'a' where id = 2"],
        ),
    ],
)
@pytest.mark.parametrize("more", [0, 40])
def test_unique_values_that_swap(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_run: Run,
    plugin: str,
    constraint: str,
    swap: list[str],
    more: int,
) -> None:
    unique = f"alter table t add unique (u) {constraint}"
    write.run("create table t (id int primary key, u text)", unique)
    wanted = configuration(plugin, mirrors=[{"source": "public.t"}])
    cdc_run(wanted)
    read.run(unique)
    write.run("insert into t values (1, 'a'), (2, 'b')")
    cdc_run(wanted)
    write.commit(*swap, f"insert into t select i, i from generate_series(10, 10 + {more}) i")
    write.commit(f"update t set u = u || '!' where id > {more}")
    cdc_run(wanted)
    equal(write, read)


MODELS = """
import sqlalchemy as sa
from cdc import Delete, Deleted, Upsert, projector

metadata = sa.MetaData()
OPTIONS = {options}
Tree = sa.Table("tree_read", metadata, sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("up", sa.ForeignKey("tree_read.id", **OPTIONS)))
Left = sa.Table("left_read", metadata, sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("other", sa.ForeignKey("right_read.id", **OPTIONS)))
Right = sa.Table("right_read", metadata, sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("other", sa.ForeignKey("left_read.id", **OPTIONS)))

def carrying(table, column):
    def carry(change):
        if isinstance(change, Deleted):
            return Delete(table, id=change.key["id"])
        return Upsert(table, **{{"id": change.row["id"], column: change.row[column]}})
    return carry

tree = projector("public.tree", into=Tree, name="tree")(carrying(Tree, "up"))
left = projector("public.left_", into=Left, name="left")(carrying(Left, "other"))
right = projector("public.right_", into=Right, name="right")(carrying(Right, "other"))
"""
FAMILIES = [
    ["insert into tree values (2, null)", "insert into tree values (1, 2)"],
    ["insert into tree values (3, 4), (4, 5), (5, 3)"],
    ["insert into tree select i, i + 1 from generate_series(100, 139) i union all select 140, 100"],
    ["update tree set up = 3 where id = 1", "delete from tree where id = 2"],
    ["update tree set id = id + 1000, up = null where id = 1", "insert into tree values (1, 1)"],
    ["delete from tree where id in (3, 4, 5, 1)"],
    [
        "insert into left_ values (1, null)",
        "insert into right_ values (1, 1)",
        "update left_ set other = 1",
    ],
    [
        "update left_ set other = null",
        "delete from right_ where id = 1",
        "delete from left_ where id = 1",
    ],
]
DEFERRED_FAMILIES = [
    ["insert into tree values (1, 2)", "insert into tree values (2, 1)"],
    ["insert into left_ values (1, 2)", "insert into right_ values (2, 1)"],
    ["delete from tree where id = 1", "delete from tree where id = 2"],
    ["delete from left_", "insert into left_ values (1, 2)"],
]


@pytest.mark.parametrize("deferrable", [False, True], ids=["immediate", "deferred"])
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "batches of one"])
def test_references_within_a_table_and_in_a_circle(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_run: Run,
    plugin: str,
    deferrable: bool,
    together: bool,
) -> None:
    how = "deferrable initially deferred" if deferrable else ""
    options = {"deferrable": True, "initially": "DEFERRED"} if deferrable else {}
    write.run(
        f"create table tree (id int primary key, up int references tree {how})",
        "create table left_ (id int primary key, other int)",
        f"create table right_ (id int primary key, other int references left_ {how})",
        f"alter table left_ add foreign key (other) references right_ {how}",
    )
    name = f"families_{deferrable}_{together}_{plugin}"
    wanted = configuration(plugin, modules=[name])
    (wanted.folder / f"{name}.py").write_text(MODELS.format(options=options))
    cdc_run(wanted)
    wanted = wanted.with_(read={"batch_changes": 20_000 if together else 1})
    for statements in [*FAMILIES, *(DEFERRED_FAMILIES if deferrable else [])]:
        write.commit(*statements)
    cdc_run(wanted)
    for source, target in (("tree", "tree_read"), ("left_", "left_read"), ("right_", "right_read")):
        assert read.texts(target) == write.texts(source)

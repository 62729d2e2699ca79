"""Verification finds what is wrong in the read tables, and nothing else, while both are written."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.copy_state import Unit
from cdc.operate.verify import ask
from cdc.sink import verifications
from cdc.sink.engine import create_engine
from cdc.verify_state import VERDICTS, Mismatch, Verification
from tests.conftest import Configuration, Database, RunningDaemon
from tests.read_databases import MariaRead, PostgresRead, ReadDatabase

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
_NUMBERS = count(1)
Found = dict[Unit, tuple[Verification, list[Mismatch]]]


def verify(
    configuration: Configuration, daemon: RunningDaemon, *projectors: str, **options: Any
) -> Found:
    """Ask for a verification and wait for what it finds."""
    settings = configuration.settings()
    units = ask(settings, projectors, **options)
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)

    def stored() -> dict[Unit, Verification]:
        with engine.connect() as read:
            return verifications.load(read, configuration.slot)

    daemon.wait_until(lambda: not any(stored()[unit].due for unit in units))
    with engine.connect() as read:
        keys = verifications.keys(read, configuration.slot)
    return {unit: (stored()[unit], keys.get(unit, [])) for unit in units}


def only(found: Found) -> tuple[Verification, list[Mismatch]]:
    (one,) = found.values()
    return one


def counts(verification: Verification) -> tuple[int, int, int, int]:
    return (
        verification.missing,
        verification.extra,
        verification.different,
        verification.mended,
    )


DAMAGE = {
    "missing": ["delete from t where v = 'v5'"],
    "extra": ["insert into t select {new}, 'new', null, null"],
    "different": ["update t set v = 'other' where v = 'v7'"],
    "null for empty": ["update t set e = null where v = 'v8'"],
    "empty for null": ["update t set big = '' where v = 'v9'"],
    "in toast": ["update t set big = overlay(big placing 'x' from 9000) where v = 'v10'"],
}
KEYS = {
    "int": ("id int primary key", "i", "-7777"),
    "text": ("id text primary key", "'k' || i", "'zz'"),
    "reversed": ("a int, b bigint, primary key (b, a)", "i, i / 100", "7777, 3"),
    "composite": ("a int, b bigint, primary key (a, b)", "i / 10, i", "3, 7777"),
}
BIG = (
    "case when i = 10 then (select string_agg(md5(n::text), '') from generate_series(1, 400) n) end"
)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_damage_of_each_kind_is_found_and_repaired(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    key: str,
    masked: bool,
) -> None:
    columns, values, new = KEYS[key]
    write.run(
        f"create table t ({columns}, v text, e text, big text, f text default 'f')",
        f"insert into t select {values}, 'v' || i, '', {BIG} from generate_series(1, 3000) i",
    )
    mirror: dict[str, Any] = {"source": "public.t", "exclude": ["f"]}
    if masked:
        mirror["mask"] = {"e": "hash"}
    chosen = configuration(mirrors=[mirror])
    daemon = cdc_start(chosen)
    daemon.wait_until(daemon.copied)
    clean, _ = only(verify(chosen, daemon))
    assert (clean.compared, counts(clean)) == (3000, (0, 0, 0, 0)), daemon.log
    read.run(*(s.format(new=new) for statements in DAMAGE.values() for s in statements))
    found, mismatches = only(verify(chosen, daemon))
    assert counts(found) == (1, 1, 4, 0)
    by_verdict = [[one.key for one in mismatches if one.verdict == v] for v in VERDICTS]
    expected = [keys_of(write, values, numbers) for numbers in ([5], [], [7, 8, 9, 10])]
    expected[1] = [tuple(part.strip("' ") for part in new.split(","))]
    assert [sorted(keys) for keys in by_verdict] == expected
    repaired, _ = only(verify(chosen, daemon, repair=True))
    assert counts(repaired) == (1, 1, 4, 6)
    clean, mismatches = only(verify(chosen, daemon))
    assert (counts(clean), mismatches) == ((0, 0, 0, 0), [])
    assert daemon.stop() == 0


def keys_of(write: Database, values: str, numbers: list[int]) -> list[tuple[str, ...]]:
    listed = f"array[{', '.join(map(str, numbers))}]::int[]"
    rows = write.rows(f"select {values} from unnest({listed}) i")
    return sorted(tuple(map(str, row)) for row in rows)


# Projectors, on each read database.

MODULE = """
import sqlalchemy as sa
from cdc import Delete, Update, Upsert, projector

METADATA = sa.MetaData()
VIEW = sa.Table(
    "order_view", METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("title", sa.String(50)), sa.Column("label", sa.String(50)),
    sa.Column("seen", sa.DateTime, server_default=sa.func.current_timestamp()),
)
ALONE = sa.Table(
    "alone", METADATA,
    sa.Column("name", sa.String(50), primary_key=True), sa.Column("n", sa.Float),
)

@projector("public.orders", into=VIEW, on_truncate=lambda _: None)
def orders(change):
    if change.row["title"] == "hidden" if hasattr(change, "row") else True:
        return Delete(VIEW, id=change.key["id"])
    return Upsert(VIEW, id=change.row["id"], title=change.row["title"])

@projector("public.labels", into=VIEW, on_truncate=lambda _: None)
def labels(change):
    if hasattr(change, "row"):
        return Update(VIEW, id=change.row["id"], label=change.row["label"])

@projector("public.orders", into=ALONE)
def alone(change):
    if hasattr(change, "row"):
        return Upsert(ALONE, name=f"o{change.row['id']}", n=change.row["id"])
    return Delete(ALONE, name=f"o{change.key['id']}")
"""


@pytest.fixture
def shop(
    write: Database,
    configuration: Configure,
    cdc_start: Start,
    store: ReadDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Configuration, RunningDaemon]]:
    """Two source tables, three projectors and two mirrors; all is copied."""
    name = f"views_{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write.run(
        "create table orders (id int primary key, title text, flag bool, raw bytea, t time)",
        "insert into orders select i, case when i % 100 = 0 then 'hidden' else 'title ' || i end, "
        "i % 2 = 0, decode(md5(i::text), 'hex'), '10:00' from generate_series(1, 1000) i",
        "create table labels (id int primary key, label text)",
        "insert into labels select i, 'label ' || i from generate_series(1, 1000) i",
    )
    mirrors = [{"source": "public.orders"}, {"source": "public.labels"}]
    chosen = configuration(mirrors=mirrors, modules=[name]).with_(read={"url": store.url})
    daemon = cdc_start(chosen)
    wait_copied(daemon, store)
    yield chosen, daemon
    assert daemon.stop() == 0, daemon.log


def test_damage_in_tables_of_projectors_is_found_and_repaired(
    shop: tuple[Configuration, RunningDaemon], store: ReadDatabase
) -> None:
    found = verify(*shop)
    assert {one.mismatched for one, _ in found.values()} == {0}, found
    assert sum(one.compared for one, _ in found.values()) == 5000
    for statement in (
        "delete from alone where name = 'o3'",
        "insert into alone values ('nobody', 1)",
        "update alone set n = null where name = 'o4'",
        "update order_view set title = '' where id = 5",
        "update order_view set label = 'other' where id = 6",
        "insert into order_view (id, title) values (100, 'not hidden')",
        "insert into order_view (id, title) values (5000, 'nobody')",
        "delete from order_view where id = 7",
        "delete from orders where id = 8",
        "insert into labels values (5000, 'nobody')",
        "update labels set label = null where id = 9",
    ):
        store.query(statement)
    found = verify(*shop)
    keys = {
        unit.projector: {(m.verdict, *m.key) for m in wrong} for unit, (_, wrong) in found.items()
    }
    assert keys == {
        "alone": {("missing", "o3"), ("extra", "nobody"), ("different", "o4")},
        "orders": {("different", "5"), ("missing", "7")},
        "labels": {("different", "6"), ("different", "100"), ("extra", "100"), ("extra", "5000")},
        "mirror:public.orders": {("missing", "8")},
        "mirror:public.labels": {("extra", "5000"), ("different", "9")},
    }
    verify(*shop, repair=True)
    found = verify(*shop)
    assert {one.mismatched for one, _ in found.values()} == {0}, found


def test_what_another_projector_writes_too_is_judged_only_with_it(
    shop: tuple[Configuration, RunningDaemon], store: ReadDatabase
) -> None:
    store.query("insert into order_view (id, title) values (5000, 'nobody')")
    found, mismatches = only(verify(*shop, "orders"))
    assert (counts(found), mismatches) == ((0, 0, 0, 0), [])
    assert found.note == (
        "extra rows in order_view were not looked for: labels writes there too, and was not compared"
    )
    both = verify(*shop, "orders", "labels")
    assert sum(one.extra for one, _ in both.values()) == 1


def test_of_a_sample_it_is_said_how_much_was_compared(
    shop: tuple[Configuration, RunningDaemon],
) -> None:
    for unit, (one, _) in verify(*shop, sample=50.0).items():
        assert one.compared + one.skipped == 1000, unit
        assert one.mismatched == 0


# While both are written.

WRITES = (
    "update {t} set v = 'new' || random() where id = {a}",
    "update {t} set big = big || 'x' where id = {a}",
    "delete from {t} where id = {a}",
    "insert into {t} values ({a}, 'inserted', repeat('y', 9000)) on conflict do nothing",
    "update {t} set id = {b} where id = {a} and not exists (select from {t} where id = {b})",
)


@contextmanager
def written(write: Database, tables: list[str]) -> Iterator[None]:
    """Have tables written by two sessions meanwhile."""
    stop = threading.Event()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with write.connect() as connection:
            while not stop.wait(0.003):  # no faster than the slowest read database
                keys = {name: chance.randrange(1, 6000) for name in ("a", "b")}
                literals = {name: f"'{key}'" for name, key in keys.items()}
                with suppress(psycopg.errors.UniqueViolation):
                    statement = chance.choice(WRITES).format(t=chance.choice(tables), **literals)
                    connection.execute(statement.encode())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


LIVE = """
import sqlalchemy as sa
from cdc import Delete, Upsert, projector

READ = sa.Table(
    "lengths", sa.MetaData(),
    sa.Column("name", sa.String(50), primary_key=True), sa.Column("v", sa.Text),
)

@projector("public.texts", into=READ)
def lengths(change):
    if hasattr(change, "row"):
        return Upsert(READ, name="n" + change.row["id"], v=change.row["v"])
    return Delete(READ, name="n" + change.key["id"])
"""


def test_there_are_no_false_alarms_while_rows_are_written_moved_and_deleted(
    write: Database,
    configuration: Configure,
    cdc_start: Start,
    store: ReadDatabase,
    plugin: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"live_{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(LIVE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for table, type_ in (("numbers", "int"), ("texts", "text")):
        write.run(
            f"create table {table} (id {type_} primary key, v text, big text)",
            f"alter table {table} alter big set storage external",
            f"insert into {table} select i, 'v', repeat('x', 5000) from generate_series(1, 4000) i",
        )
    mirrors = [{"source": "public.numbers"}, {"source": "public.texts"}]
    chosen = configuration(plugin, mirrors=mirrors, modules=[name]).with_(read={"url": store.url})
    daemon = cdc_start(chosen)
    wait_copied(daemon, store)
    with written(write, ["numbers", "texts"]):
        for _ in range(4):
            for unit, (found, mismatches) in verify(chosen, daemon).items():
                assert counts(found) == (0, 0, 0, 0), (unit, mismatches)
                assert found.compared > 1000
    assert daemon.stop() == 0


def wait_copied(daemon: RunningDaemon, store: ReadDatabase) -> None:
    def copied() -> bool:
        try:
            states = {state for (state,) in store.query("select state from cdc_copy")}
        except Exception:  # noqa: BLE001  there is no such table yet, in each driver's words
            return False
        return states == {"done"}

    daemon.wait_until(copied)


@pytest.mark.parametrize("end", ["connection", "daemon"])
@pytest.mark.parametrize("key", ["int", "text"])
def test_it_goes_on_where_the_connection_or_the_daemon_was_lost(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    key: str,
    end: str,
) -> None:
    columns, values, new = KEYS[key]
    write.run(
        f"create table t ({columns}, v text, e text, big text)",
        f"insert into t select {values}, 'v' || i, '', null from generate_series(1, 60000) i",
    )
    chosen = configuration(mirrors=[{"source": "public.t"}]).with_(
        copy={"max_rows_per_second": 40_000}
    )
    daemon = cdc_start(chosen)
    daemon.wait_until(daemon.copied)
    read.run("delete from t where v = 'v60000'", f"insert into t select {new}, 'new', null, null")
    ask(chosen.settings(), ())
    daemon.wait_until(lambda: read.value("select compared > 20000 from cdc_verify"))
    if end == "connection":
        PostgresRead(read).cut()
    else:
        daemon.kill()
        daemon = cdc_start(chosen)
    found, mismatches = only(verify(chosen, daemon))
    assert (found.asked, found.compared, counts(found)) == (1, 60_000, (1, 1, 0, 0))
    assert sorted(one.verdict for one in mismatches) == ["extra", "missing"]
    assert daemon.stop() == 0


@pytest.mark.parametrize("type_", ["int", "text"])
def test_names_may_be_anything_and_tables_partitioned(
    write: Database,
    store: ReadDatabase,
    configuration: Configure,
    cdc_start: Start,
    type_: str,
) -> None:
    low, high = ("0", "500") if type_ == "int" else ("'0'", "'500'")
    write.run(
        f'create table "Odd % :x" ("K %s :y" {type_} primary key, "v %% "":z" text) '
        'partition by range ("K %s :y")',
        f'create table low partition of "Odd % :x" for values from ({low}) to ({high})',
        f'create table high partition of "Odd % :x" for values from ({high}) to (maxvalue)',
        'insert into "Odd % :x" select i, i from generate_series(1, 999) i',
    )
    chosen = configuration(mirrors=[{"source": "public.Odd % :x"}]).with_(read={"url": store.url})
    daemon = cdc_start(chosen)
    wait_copied(daemon, store)
    quote = "`{}`" if isinstance(store, MariaRead) else '"{}"'
    table, key = map(quote.format, ("Odd % :x", "K %s :y"))
    clean, _ = only(verify(chosen, daemon))
    assert (clean.compared, clean.mismatched) == (999, 0)
    store.query(f"delete from {table} where {key} in ('7', '600')")
    store.query(f"update {table} set {key} = '-3' where {key} = '8'")
    found, mismatches = only(verify(chosen, daemon, repair=True))
    assert counts(found) == (3, 1, 0, 4), mismatches
    clean, _ = only(verify(chosen, daemon))
    assert counts(clean) == (0, 0, 0, 0)
    assert daemon.stop() == 0


@contextmanager
def growing(write: Database) -> Iterator[None]:
    """Have rows added to a table's end meanwhile, 2,000 a second and more."""
    stop = threading.Event()

    def add() -> None:
        last = 1_000_000
        with write.connect() as connection:
            while not stop.wait(0.05):
                connection.execute(
                    "insert into t select generate_series(%s, %s)", (last, last + 99)
                )
                last += 100

    thread = threading.Thread(target=add)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_it_does_not_chase_what_is_added_faster_than_it_may_read(
    write: Database, configuration: Configure, cdc_start: Start
) -> None:
    write.run(
        "create table t (id int primary key, v text)",
        "insert into t select g, 'v' from generate_series(1, 2000) g",
    )
    masked = {"source": "public.t", "mask": {"v": "null"}}  # compared row by row, page by page
    chosen = configuration(mirrors=[masked]).with_(
        copy={"max_rows_per_second": 1000, "chunk_bytes": 16_384}
    )
    daemon = cdc_start(chosen)
    daemon.wait_until(daemon.copied)
    with growing(write):
        found, _ = only(verify(chosen, daemon))
    assert (counts(found), found.compared > 2000) == ((0, 0, 0, 0), True)
    assert daemon.stop() == 0

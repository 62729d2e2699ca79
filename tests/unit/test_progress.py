"""How far copies are: in figures, in words, on a terminal and without one."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from cdc.copy_state import Copy, Unit
from cdc.errors import SettingError
from cdc.names import TableName
from cdc.observe import progress
from cdc.observe.metrics import Metrics
from cdc.operate.copy import choose, wanted
from cdc.operate.display import Lines, Pace, showing

ORDERS, USERS = TableName("public", "orders"), TableName("public", "users")
MIRROR, COUNT = Unit("mirror:public.orders", ORDERS), Unit("order_count", ORDERS)
PEOPLE = Unit("mirror:public.users", USERS)
STATES = st.sampled_from(["waiting", "copying", "done", "skipped"])
ROWS = st.integers(0, 10**9)


def copying(unit: Unit = MIRROR, copied: int = 250, expected: int | None = 1000) -> Copy:
    return Copy(unit, state="copying", copied=copied, expected=expected)


@given(STATES, ROWS, st.none() | ROWS)
def test_a_copy_is_all_there_exactly_when_nothing_is_left(state, copied, expected):
    copy = Copy(MIRROR, state=state, copied=copied, expected=expected)
    assert 0 <= progress.ratio(copy) <= 1
    assert (progress.ratio(copy) == 1) == (not copy.due)
    assert (progress.percent(progress.ratio(copy)) == 100) == (not copy.due)


def test_a_table_is_as_far_as_the_projector_furthest_behind():
    ahead, behind = copying(MIRROR, 900), copying(COUNT, 100)
    done = replace(copying(PEOPLE), state="done")
    assert progress.ratios([ahead, behind, done]) == {ORDERS: 0.1, USERS: 1.0}


def test_what_is_said_of_copies():
    copies = [copying(), Copy(COUNT), replace(copying(PEOPLE), state="done")]
    assert progress.summary(copies) == "1 of 3 done, 1 copying, 1 waiting"
    assert progress.summary([]) == "none"
    assert progress.rows(copying(copied=45000, expected=10**6)) == "45,000 of about 1,000,000 rows"
    assert progress.rows(replace(copying(copied=1001), state="done")) == "1,001 rows"
    assert list(progress.names([MIRROR, COUNT, PEOPLE]).values()) == [
        "public.orders for mirror:public.orders",
        "public.orders for order_count",
        "public.users",
    ]


def test_a_copy_as_json_has_no_values_of_rows():
    copy = replace(copying(), reached=("secret",), again=(("secret",),))
    described = progress.described(copy)
    assert "secret" not in str(described)
    assert (described["table"], described["percent"], described["rows"]) == (
        "public.orders",
        25.0,
        250,
    )


def test_how_long_a_copy_takes_counts_from_its_first_rows():
    assert progress.seconds(Copy(MIRROR)) is None
    began = datetime.now(UTC) - timedelta(seconds=3)
    assert 3 <= progress.seconds(replace(copying(), started_at=began)) < 60


# Metrics.


def test_copies_are_counted_by_table():
    metrics = Metrics()
    metrics.expect([ORDERS, USERS], ["p"])
    ratio, total = "cdc_copy_progress_ratio", "cdc_copy_rows_total"
    assert metrics.value(total, table="public.users") == 0
    assert metrics.value(ratio, table="public.users") == 0
    metrics.copies({MIRROR: copying(), COUNT: Copy(COUNT, state="done")})
    metrics.copied(ORDERS, 250)
    metrics.copied(ORDERS, 50)
    assert metrics.value(total, table="public.orders") == 300
    assert metrics.value(ratio, table="public.orders") == 0.25
    metrics.copies({MIRROR: replace(copying(), state="done")})
    assert metrics.value(ratio, table="public.orders") == 1
    metrics.copies({COUNT: Copy(COUNT, asked=2)})
    assert metrics.value(ratio, table="public.orders") == 0
    metrics.copies({COUNT: Copy(COUNT, asked=1, state="done")})  # which was under way
    assert metrics.value(ratio, table="public.orders") == 0
    assert metrics.progress[MIRROR].state == "done"


# What is meant.

UNITS = [MIRROR, COUNT, PEOPLE, Unit("all_users", TableName("other", "Users"))]


def chosen(*tables, projectors=(), everything=False):
    return choose(UNITS, wanted(tables, projectors, everything=everything))


def test_tables_and_projectors_mean_those_of_both():
    assert chosen("orders") == [MIRROR, COUNT]
    assert chosen("public.*") == [MIRROR, COUNT, PEOPLE]
    assert chosen("users", "public.orders") == [MIRROR, COUNT, PEOPLE]
    assert chosen(projectors=["order_count"]) == [COUNT]
    assert chosen("orders", projectors=["order_count", "mirror:public.users"]) == [COUNT]
    assert chosen(everything=True) == UNITS


@pytest.mark.parametrize(
    ("tables", "projectors", "told", "hint"),
    [
        (["order"], [], "no table public.order ", "did you mean public.orders?"),
        (["public.Users"], [], "no table public.Users ", "did you mean public.users?"),
        (["elsewhere.orders"], [], "no table elsewhere.orders ", "did you mean public.orders?"),
        (["zzz"], [], "no table public.zzz ", "there are: other.Users, public.orders, "),
        ([], ["order_cont"], "no projector order_cont ", "did you mean order_count?"),
        (["users"], ["order_count"], "no table public.users ", "there are: public.orders"),
        (["a.b.c"], [], "not a table name", "give schema.table"),
        ([], [], "nothing named", "--all"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_the_nearest(tables, projectors, told, hint):
    with pytest.raises(SettingError, match=told) as caught:
        chosen(*tables, projectors=projectors)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_everything_and_something_is_a_contradiction():
    with pytest.raises(SettingError, match="--all"):
        chosen("orders", everything=True)


# Display.


def test_the_pace_is_that_of_lately():
    pace = Pace()
    for second in range(100):
        pace.note(second * (10 if second < 50 else 100), second)
    assert pace.per_second == 100
    pace.note(0, 100)
    assert pace.per_second == 0  # begun anew
    pace.note(7, 101)
    assert pace.per_second == 7


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> Console:
    return Console(file=io.StringIO(), soft_wrap=True, highlight=False, force_terminal=False)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    console.file.truncate(0)
    console.file.seek(0)
    return text.splitlines()


def test_without_a_terminal_there_is_a_line_every_few_seconds_and_at_each_change():
    console, clock = plain(), Clock()
    lines = Lines(console, clock)
    lines.show([Copy(MIRROR)])
    assert printed(console) == ["public.orders: waiting"]
    clock.now = 1
    lines.show([copying(copied=0, expected=100_000)])
    assert printed(console) == ["public.orders 0.0 %: 0 of about 100,000 rows"]
    clock.now = 2
    lines.show([copying(copied=1000, expected=100_000)])
    assert printed(console) == []
    clock.now = 6
    lines.show([copying(copied=5000, expected=100_000)])
    assert printed(console) == [
        "public.orders 5.0 %: 5,000 of about 100,000 rows, 833 rows/s, 0:01:54 left"
    ]
    lines.show([replace(copying(copied=90_001), state="done")])
    assert printed(console) == ["public.orders: 90,001 rows, done"]


@pytest.mark.parametrize("count", [1, 3, 50])
def test_on_a_terminal_there_are_bars_as_many_as_fit(count):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=20)
    units = [Unit(f"p{n}", TableName("public", f"t{n}")) for n in range(count)]
    with showing(console) as display:
        display.show([copying(units[0], 250, 1000), *map(Copy, units[1:])])
        display.say("[no markup]")
        display.show([Copy(unit, state="done", copied=10) for unit in units])
    text = console.file.getvalue()
    assert "public.t0" in text
    assert "25.0 %" in text
    assert "250 of about 1,000 rows" in text
    assert "[no markup]" in text
    assert ("public.t2 " in text) == (count == 3)
    assert ("done" in text) or count == 50


def test_a_name_cannot_write_to_the_terminal():
    console = plain()
    lines = Lines(console, Clock())
    lines.show([Copy(Unit("p", TableName("public", "a\x1b[2J[bold]")))])
    assert printed(console) == [r"public.a\x1b[2J[bold]: waiting"]

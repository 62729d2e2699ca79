"""Text as Python values: exact, or refused."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import Transformer
from psycopg.pq import Format

from cdc.change import Column, Relation, Row
from cdc.errors import ValueUnreadable
from cdc.names import TableName
from cdc.values import loader

DATE, TIMESTAMP, TIMESTAMPTZ = 1082, 1114, 1184
INTERVAL, INTERVALS, JSON, JSONB, JSONBS = 1186, 1187, 114, 3802, 3807


def row(type_oid: int, text: str) -> Row:
    column = Column("v", type_oid, type_oid)
    return Row(Relation(TableName("public", "t"), (column,), ("v",)), (text,))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 day", timedelta(1)),
        ("-3 days +00:00:00.5", timedelta(-3, 0, 500_000)),
        ("-00:00:00.000001", timedelta(microseconds=-1)),
        ("2 days -26:00:01", timedelta(2) - timedelta(hours=26, seconds=1)),
        ("00:00:00", timedelta()),
        ("1000:00:00", timedelta(hours=1000)),
    ],
)
def test_an_interval_of_days_and_hours_is_a_timedelta(text, value):
    assert row(INTERVAL, text)["v"] == value
    assert row(INTERVALS, "{" + f'"{text}",NULL' + "}")["v"] == [value, None]


@pytest.mark.parametrize(
    "text",
    ["1 mon", "1 year 2 mons", "-1 years -1 mons", "1 mon 01:00:00", "infinity", "9999999999 days"],
)
def test_an_interval_without_a_fixed_length_is_unreadable(text):
    with pytest.raises(ValueUnreadable, match=r'"v".*row\.text'):
        row(INTERVAL, text)["v"]
    assert row(INTERVAL, text).text("v") == text


@pytest.mark.parametrize("type_oid", [JSON, JSONB])
def test_numbers_in_json_keep_their_digits(type_oid):
    text = '{"a": [0.1, 2.50, 1e22, 12345678901234567890.5, 1e400, 123456789012345678901]}'
    a = row(type_oid, text)["v"]["a"]
    assert a == [
        0.1,
        2.5,
        1e22,
        Decimal("12345678901234567890.5"),
        Decimal("1e400"),
        123456789012345678901,
    ]
    assert [type(number) for number in a] == [float, float, float, Decimal, Decimal, int]


def test_json_in_arrays_keeps_its_digits_too():
    assert row(JSONBS, '{"1e400"}')["v"] == [Decimal("1e400")]


@pytest.mark.parametrize("text", ["1e" + "9" * 30, "9" * 5000, "[" * 100_000 + "]" * 100_000])
def test_json_that_python_cannot_hold_is_unreadable(text):
    with pytest.raises(ValueUnreadable):
        row(JSON, text)["v"]


def test_other_users_of_psycopg_are_not_touched():
    from psycopg.adapt import Transformer
    from psycopg.pq import Format

    assert loader(INTERVAL) is loader(INTERVAL)
    assert Transformer().get_loader(INTERVAL, Format.TEXT).load(b"1 mon") == timedelta(30)


BEYOND = ["infinity", "-infinity", "0044-03-15 BC", "12026-01-01", "10000-01-01"]


def printed(time: datetime) -> str:
    """Print as Postgres does: no more digits of a second than it has."""
    whole, _, fraction = str(time).partition(".")
    return f"{whole}.{fraction}".rstrip("0").rstrip(".") if fraction else whole


@given(time=st.datetimes())
def test_dates_and_times_are_what_psycopg_makes_of_them(time: datetime) -> None:
    texts = {DATE: str(time.date()), TIMESTAMP: printed(time), TIMESTAMPTZ: printed(time) + "+00"}
    values = {DATE: time.date(), TIMESTAMP: time, TIMESTAMPTZ: time.replace(tzinfo=UTC)}
    for type_oid, text in texts.items():
        value = row(type_oid, text)["v"]
        assert value == values[type_oid]
        theirs = Transformer().get_loader(type_oid, Format.TEXT).load(text.encode())
        assert (type(value), repr(value)) == (type(theirs), repr(theirs))


@pytest.mark.parametrize("date", BEYOND)
def test_dates_and_times_that_python_cannot_hold_are_unreadable(date: str) -> None:
    day, _, era = date.partition(" ")
    at_noon = day if "inf" in day else f"{day} 12:00:00"
    texts = {DATE: date, TIMESTAMP: f"{at_noon} {era}", TIMESTAMPTZ: f"{at_noon}+00 {era}"}
    for type_oid, text in texts.items():
        with pytest.raises(ValueUnreadable, match=r"row\.text"):
            row(type_oid, text.strip())["v"]

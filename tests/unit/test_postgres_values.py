"""What COPY is sent for a Python value is what psycopg would send."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer

from cdc.sink.postgres_values import DatetimeDumper


class Later(datetime):
    """An application's own kind of datetime."""


ZONES = st.one_of(
    st.none(),
    st.just(UTC),
    st.sampled_from(["UTC", "Europe/Berlin", "Africa/Monrovia"]).map(ZoneInfo),
    st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds))),
)


@given(time=st.datetimes(timezones=ZONES), kind=st.sampled_from([datetime, Later]))
def test_a_datetime_is_printed_as_psycopg_does(time: datetime, kind: type[datetime]) -> None:
    value = kind.fromisoformat(time.isoformat()).replace(tzinfo=time.tzinfo, fold=time.fold)
    theirs = Transformer().get_dumper(value, PyFormat.TEXT).dump(value)
    assert DatetimeDumper(datetime).dump(value) == theirs

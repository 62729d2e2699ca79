"""What COPY is sent for a Python value is read as the value it was."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

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
def test_a_datetime_is_read_as_it_was(time: datetime, kind: type[datetime]) -> None:
    value = kind.fromisoformat(time.isoformat()).replace(tzinfo=time.tzinfo, fold=time.fold)
    sent = DatetimeDumper(datetime).dump(value)
    read = datetime.fromisoformat(sent.decode())
    assert (read.replace(tzinfo=None), read.utcoffset()) == (
        time.replace(tzinfo=None, fold=0),
        time.utcoffset(),
    )

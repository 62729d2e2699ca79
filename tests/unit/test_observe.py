"""What can be seen: lag, logs, HTTP."""

import http.client
import json
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc import errors
from cdc.assemble import Transaction
from cdc.errors import PortTaken
from cdc.lsn import Lsn
from cdc.observe import failures, logs
from cdc.observe import http as http_module
from cdc.observe.histogram import Histogram
from cdc.observe.http import Answer, HttpServer, as_json, lingering
from cdc.observe.lag import Lag
from cdc.observe.metrics import Metrics
from cdc.observe.positions import Positions
from cdc.observe.slot import STATUSES, SlotWal
from cdc.observe.state import State
from cdc.retry import Retry
from cdc.source.slot import Sample


def test_lag_is_zero_when_caught_up_and_on_an_idle_database() -> None:
    lag = Lag()
    assert (lag.bytes(), lag.seconds(now=0)) == (0, 0)
    lag.sampled(Lsn(100), now=10)
    lag.applied(Lsn(100))
    for now in range(20, 5000, 100):
        lag.sampled(Lsn(100), now=now)
        assert (lag.bytes(), lag.seconds(now=now)) == (0, 0)


def test_lag_grows_while_something_written_is_not_applied() -> None:
    lag = Lag()
    lag.applied(Lsn(100))
    lag.sampled(Lsn(100), now=10)
    lag.sampled(Lsn(300), now=20)
    lag.sampled(Lsn(400), now=30)
    lag.sampled(Lsn(400), now=50)
    assert lag.bytes() == 300
    assert lag.seconds(now=50) == 30
    lag.applied(Lsn(300))
    assert (lag.bytes(), lag.seconds(now=50)) == (100, 20)
    lag.applied(Lsn(400))
    assert (lag.bytes(), lag.seconds(now=50)) == (0, 0)


def test_lag_does_not_forget_when_it_began_however_long_it_lasts() -> None:
    lag = Lag()
    lag.applied(Lsn(1))
    for second in range(20_000):
        lag.sampled(Lsn(second + 2), now=second)
    assert lag.seconds(now=20_000) == 20_000
    lag.applied(Lsn(10_000))
    assert 9_000 <= lag.seconds(now=20_000) <= 10_010
    lag.applied(Lsn(20_001))
    assert lag.seconds(now=20_000) == 0


def test_lag_grows_while_the_write_database_cannot_be_looked_at_and_is_zero_afterwards() -> None:
    lag = Lag(began=0)
    assert (lag.seconds(now=9), lag.seconds(now=60)) == (0, 60)  # from the start, too
    lag.applied(Lsn(100))
    lag.sampled(Lsn(100), now=100)
    assert (lag.seconds(now=109), lag.seconds(now=160)) == (0, 60)
    lag.sampled(Lsn(100), now=161)
    assert (lag.bytes(), lag.seconds(now=161)) == (0, 0)


def test_who_stands_by_goes_by_what_the_slot_says() -> None:
    lag = Lag(began=0)
    lag.sampled(Lsn(10**9), now=1)  # there is no slot yet
    assert (lag.bytes(), lag.seconds(now=11)) == (0, 0)
    for now in range(2, 1000):
        lag.sampled(Lsn(10**9 + now), now=now, confirmed=Lsn(10**9 + now))
        assert (lag.bytes(), lag.seconds(now=now)) == (0, 0)
    for now in range(1000, 1060):  # whoever reads it does nothing
        lag.sampled(Lsn(2 * 10**9), now=now, confirmed=Lsn(10**9 + 999))
    assert (lag.bytes(), lag.seconds(now=1060)) == (10**9 - 999, 60)


def test_what_another_daemon_has_applied_is_no_lag_of_who_received_it_too() -> None:
    metrics = Metrics()
    ages = ((10, 60), (20, 30))
    metrics.flow.received([committed(Lsn(lsn), seconds_ago=ago) for lsn, ago in ages])
    for confirmed, behind in ((5, 60), (11, 30), (21, 0)):
        metrics.lag.sampled(Lsn(21), now=time.time(), confirmed=Lsn(confirmed))
        assert behind <= metrics.lag_seconds() < behind + 20


def committed(lsn: Lsn, *, seconds_ago: float) -> Transaction:
    at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return Transaction(7, lsn, Lsn(lsn + 1), at, [], 0)


class Streamed(NamedTuple):
    received: Lsn
    reported: Lsn


LSNS = st.integers(0, 1000).map(Lsn)


@given(LSNS, LSNS, LSNS, st.none() | st.builds(Streamed, LSNS, LSNS))
def test_no_position_is_before_the_one_that_follows(wal, checkpoint, confirmed, stream) -> None:
    lag = Lag()
    lag.sampled(wal, now=1, confirmed=confirmed)
    lag.applied(checkpoint)
    positions = Positions(lag)
    positions.stream = stream
    known = positions.known()
    assert list(known) == sorted(known, reverse=True)
    assert known[0] >= max(wal, checkpoint, confirmed)
    values = [family.samples[0].value for family in positions.collect()]
    assert values == list(known)


# The slot.


def slot_at(now: float, *, safe: int | None, wal: int = 0, status: str = "reserved") -> Sample:
    return Sample(
        wal=int(wal or 1000 * now),
        wal_status=status,
        safe_wal_size=safe,
        retained=7,
        decoding=False,
    )


def test_the_slot_lasts_for_as_long_as_its_wal_at_the_pace_of_the_last_minutes() -> None:
    slot = SlotWal()
    assert (slot.safe_bytes(), slot.seconds_until_lost(now=0)) == (math.inf, math.inf)
    slot.look(slot_at(1000, safe=60_000), now=1000)
    assert slot.seconds_until_lost(now=1000) == math.inf  # the pace is not known yet
    for now in range(1001, 2000):
        slot.look(slot_at(now, safe=60_000), now=now)
    assert slot.seconds_until_lost(now=1999) == 60
    assert slot.seconds_until_lost(now=2009) == 50  # also while nobody can look
    for now in range(2000, 2301):  # five minutes later the faster pace alone counts
        slot.look(slot_at(now, safe=60_000, wal=10_000 * (now - 1800)), now=now)
    assert slot.seconds_until_lost(now=2300) == pytest.approx(6, rel=0.1)


@pytest.mark.parametrize(
    ("status", "safe", "bytes_left", "seconds"),
    [
        ("reserved", None, math.inf, math.inf),  # max_slot_wal_keep_size = -1
        ("extended", None, math.inf, math.inf),
        ("unreserved", -5, 0, 0),
        ("lost", None, 0, 0),
    ],
)
def test_what_is_said_without_a_limit_and_at_the_end(status, safe, bytes_left, seconds) -> None:
    slot = SlotWal()
    for now in range(100):
        slot.look(slot_at(now, safe=safe, status=status), now=now)
    assert (slot.safe_bytes(), slot.seconds_until_lost(now=99)) == (bytes_left, seconds)


def test_a_server_on_which_nothing_is_written_keeps_a_slot_for_ever() -> None:
    slot = SlotWal()
    for now in range(100):
        slot.look(slot_at(now, safe=10, wal=5), now=now)
    assert slot.seconds_until_lost(now=99) == math.inf


def test_the_status_of_the_slot_is_one_of_a_closed_set() -> None:
    metrics = Metrics()
    for status in STATUSES:
        if status != "none":
            metrics.sampled(slot_at(1, safe=1, status=status))
        found = {one: metrics.value("cdc_slot_wal_status", status=one) for one in STATUSES}
        assert found == {one: float(one == status) for one in STATUSES}
    assert metrics.value("cdc_slot_retained_wal_bytes") == 7
    assert metrics.value("cdc_slot_active") == 0


# Errors.


def errors_of(metrics: Metrics) -> dict[tuple[str, str], float]:
    (family,) = [f for f in metrics.registry.collect() if f.name == "cdc_errors"]
    return {(s.labels["stage"], s.labels["reason"]): s.value for s in family.samples}


def test_every_error_of_the_daemon_has_a_reason_in_the_closed_set() -> None:
    of_commands = (errors.ConfigurationError, errors.CopyError, errors.QuarantineError)

    def tree(kind: type[errors.CdcError]) -> Iterator[type[errors.CdcError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    above = {errors.CdcError, errors.SourceError, errors.ReadError, *failures.STANDING_BY}
    named = {kind: failures.reason(kind) for kind in tree(errors.CdcError) if kind not in above}
    assert set(named.values()) == set(failures.REASONS)
    other = [kind for kind, name in named.items() if name == failures.OTHER]
    assert [
        k for k in other if not issubclass(k, of_commands) and k.__module__ == "cdc.errors"
    ] == []
    assert failures.reason(errors.SlotLost) == "StartRefused"
    assert failures.reason(ZeroDivisionError) == failures.OTHER


def test_errors_are_counted_where_they_arose_and_standing_by_is_none() -> None:
    metrics = Metrics()
    before = errors_of(metrics)
    assert set(before) == set(product(failures.STAGES, failures.REASONS))
    assert set(before.values()) == {0}
    metrics.failures.failed(errors.ReadUnavailable(), stage="write")
    metrics.failures.failed(errors.SlotActive(), stage="start")
    metrics.failures.failed(errors.ReadLocked(), stage="start")
    for count in (2, 2, 3):  # so many keys in all
        metrics.failures.set_aside({errors.WriteRefused: count, errors.ProjectionError: 1})
    after = errors_of(metrics)
    assert {key: value for key, value in after.items() if value} == {
        ("write", "ReadUnavailable"): 1,
        ("write", "WriteRefused"): 3,
        ("project", "ProjectionError"): 1,
    }


def test_a_reconnect_is_counted_once_it_works_again() -> None:
    metrics = Metrics()
    retry = Retry(metrics, threading.Event())
    reconnects = partial(metrics.value, "cdc_reconnects_total")
    retry.enter(State.STREAMING)  # the first start is none
    retry.note(errors.ReadLocked())
    retry.enter(State.STREAMING)
    assert (reconnects(target="read"), reconnects(target="source")) == (0, 0)
    for _ in range(3):
        retry.note(errors.ReadUnavailable())
    assert reconnects(target="read") == 0
    retry.enter(State.STREAMING)
    assert (reconnects(target="read"), reconnects(target="source")) == (1, 0)


# Histograms.


def test_a_histogram_counts_by_label_and_has_every_bucket_from_the_start() -> None:
    histogram = Histogram("h", "", (1, 10), label="projector")
    histogram.expect("a")
    histogram.observe([1, 2, 50], "b")

    def series() -> dict[tuple[str, str], float]:
        (family,) = histogram.collect()
        return {
            (sample.name + sample.labels.get("le", ""), sample.labels["projector"]): sample.value
            for sample in family.samples
        }

    assert {name for name, _ in series()} == {
        "h_bucket1.0",
        "h_bucket10.0",
        "h_bucket+Inf",
        "h_count",
        "h_sum",
    }
    assert {value for (_, label), value in series().items() if label == "a"} == {0}
    assert [
        series()[name, "b"] for name in ("h_bucket1.0", "h_bucket10.0", "h_count", "h_sum")
    ] == [
        1,
        2,
        3,
        53,
    ]


def test_a_checkpoint_ahead_of_the_last_sample_is_no_negative_lag() -> None:
    lag = Lag()
    lag.sampled(Lsn(100), now=10)
    lag.applied(Lsn(500))
    assert (lag.bytes(), lag.seconds(now=11)) == (0, 0)
    assert lag.wal_lsn == 500


def test_a_transaction_that_waits_counts_from_its_commit() -> None:
    lag = Lag()
    lag.pending(100.0)
    assert lag.seconds(now=101.5) == 1.5
    assert lag.seconds(now=99) == 0
    lag.pending(None)
    assert lag.seconds(now=101.5) == 0


# Logs.


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    root = logging.getLogger("cdc")
    before = root.handlers[:], root.level, root.propagate
    yield logging.getLogger("cdc.test")
    root.handlers[:], root.level, root.propagate = before


NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@pytest.mark.parametrize("value", ["a\nb", "a\x1b[2Jb", "a\rb", "a\u2028b", "a\u202eb", "a\x85b"])
def test_a_line_has_no_control_characters(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    for form in ("text", "json"):
        logs.configure(form=form)
        logger.info("created", extra={"table": value})
        line = capsys.readouterr().err
        assert len(line.splitlines()) == 1
        assert line.rstrip("\n").isprintable()


def test_text_says_level_message_and_fields(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(form="text")
    logger.warning("retrying", extra={"because": "no \N{SNOWMAN}", "seconds": 3})
    assert capsys.readouterr().err.endswith(" warning retrying because=no \N{SNOWMAN} seconds=3\n")


@given(NAMES)
def test_json_is_one_object_a_line(value: str) -> None:
    record = logging.makeLogRecord(
        {"name": "cdc.x", "msg": "m", "levelname": "INFO", "table": value}
    )
    line = logs._Json().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["table"], found["message"], found["level"]) == (value, "m", "info")
    assert found["time"].endswith("+00:00")


def test_json_takes_values_of_any_type(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(form="json")
    logger.info("m", extra={"lsn": object(), "number": Lsn(7)})
    assert json.loads(capsys.readouterr().err)["number"] == 7


def test_configuring_twice_says_things_once(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    logs.configure(level="WARNING")
    logger.info("no")
    logger.warning("yes")
    assert capsys.readouterr().err.count("\n") == 1


# HTTP.


@pytest.fixture
def server() -> Iterator[HttpServer]:
    routes = {"/live": lambda _: as_json(HTTPStatus.OK, {"live": True})}
    with HttpServer(("127.0.0.1", 0), routes) as running:
        yield running


def ask(server: HttpServer, method: str, path: str) -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection(*server.address, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Content-Type")
    finally:
        connection.close()


def test_a_route_is_answered(server: HttpServer) -> None:
    status, body, content_type = ask(server, "GET", "/live?probe=1")
    assert (status, json.loads(body), content_type) == (200, {"live": True}, "application/json")
    assert ask(server, "HEAD", "/live")[:2] == (200, b"")


@pytest.mark.parametrize("path", ["/nothing", "/live/", "/../live", "/%6cive"])
def test_another_path_is_not_found(server: HttpServer, path: str) -> None:
    assert ask(server, "GET", path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_get_and_head_are_allowed(server: HttpServer, method: str) -> None:
    assert ask(server, method, "/live")[:2] == (405, b"method not allowed\n")


def answered(server: HttpServer, request: bytes) -> bytes:
    """Send bytes, and give what comes until the server hangs up."""
    with socket.create_connection(server.address, timeout=30) as client:
        client.sendall(request)
        with client.makefile("rb") as answer:
            return answer.read()


def test_an_answer_repeats_nothing_of_the_request(server: HttpServer) -> None:
    for line in (b"<b>bad</b>", b"GET /<b> HTTP/1.0", b"<B> / HTTP/1.0", b"GET /<b> HTTP/<b>"):
        answer = answered(server, line + b"\r\nX: <b>\r\n\r\n")
        assert b"<b>" not in answer.lower()
        assert answer.splitlines()[-1] in {b"bad request", b"not found", b"method not allowed"}
    assert b"Allow: GET, HEAD" in answered(server, b"POST / HTTP/1.0\r\n\r\n")


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: HttpServer) -> None:
    with socket.create_connection(server.address):
        assert ask(server, "GET", "/live")[0] == 200


def poured_until_hung_up(server: HttpServer, piece: bytes, *, pause: float) -> None:
    """Begin a request and go on with it, piece by piece, until the server hangs up."""
    with socket.create_connection(server.address, timeout=30) as client, suppress(ConnectionError):
        client.sendall(b"GET /live HTTP/1.0\r\nX: ")
        while not select.select([client], [], [], pause)[0]:
            client.sendall(piece)
        assert client.recv(1) == b""


def test_a_client_that_says_nothing_or_trickles_is_hung_up_on(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "_SECONDS", 0.2)
    assert answered(server, b"") == b""
    poured_until_hung_up(server, b"X", pause=0.01)


def test_a_request_without_end_is_hung_up_on(server: HttpServer) -> None:
    poured_until_hung_up(server, 4096 * b"y", pause=0)


def test_connections_and_threads_are_bounded_and_free_again(
    server: HttpServer,
) -> None:
    with ExitStack() as opened:
        connect = partial(socket.create_connection, server.address, timeout=30)
        clients = [opened.enter_context(connect()) for _ in range(http_module._CONNECTIONS + 8)]
        while len(select.select(clients, [], [], 30)[0]) < 8:
            pass
        running = [t for t in threading.enumerate() if "process_request_thread" in t.name]
        assert len(running) <= http_module._CONNECTIONS
    while True:  # its threads notice
        with suppress(ConnectionError, http.client.HTTPException):
            assert ask(server, "GET", "/live")[0] == 200
            break


def test_clients_that_wait_leave_connections_for_others() -> None:
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    def waits(_: str) -> Answer:
        waiting.release()
        go_on.wait(30)
        return as_json(HTTPStatus.OK, {})

    routes = {"/wait": lingering(waits), "/live": lambda _: as_json(HTTPStatus.OK, {})}
    with HttpServer(("127.0.0.1", 0), routes) as running, ExitStack() as opened:
        connect = partial(socket.create_connection, running.address, timeout=30)
        clients = [opened.enter_context(connect()) for _ in range(http_module._LINGERING)]
        for client in clients:
            client.sendall(b"GET /wait HTTP/1.0\r\n\r\n")
            assert waiting.acquire(timeout=30)
        assert ask(running, "GET", "/wait")[0] == 503
        assert ask(running, "GET", "/live")[0] == 200
        go_on.set()
        assert all(client.recv(12) == b"HTTP/1.0 200" for client in clients)
        assert ask(running, "GET", "/wait")[0] == 200


def test_a_failing_route_ends_its_connection_alone() -> None:
    def fails(_: str) -> Answer:
        raise RuntimeError

    routes = {"/bad": fails, "/live": lambda _: as_json(HTTPStatus.OK, {})}
    with HttpServer(("127.0.0.1", 0), routes) as running:
        assert answered(running, b"GET /bad HTTP/1.0\r\n\r\n") == b""
        assert ask(running, "GET", "/live")[0] == 200


def test_a_port_that_is_taken_is_said(server: HttpServer) -> None:
    with pytest.raises(PortTaken, match=str(server.address[1])):
        HttpServer(server.address, {})


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(PortTaken) as refused:
        HttpServer(("192.0.2.1", 0), {})
    assert refused.value.hint == "correct http.listen, or CDC_HTTP__LISTEN"
    with pytest.raises(PortTaken):
        HttpServer(("no.such.host.invalid", 0), {})
    with pytest.raises(PortTaken, match="no host's name"):
        HttpServer((64 * "ü", 0), {})


def test_ipv6_is_served() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with HttpServer(("::1", 0), {"/": lambda _: as_json(HTTPStatus.OK, {})}) as running:
        assert ask(running, "GET", "/")[0] == 200

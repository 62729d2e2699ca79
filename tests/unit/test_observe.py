"""What can be seen: lag, logs, HTTP."""

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import PortTaken
from cdc.lsn import Lsn
from cdc.observe import logs
from cdc.observe.http import HttpServer, as_json
from cdc.observe.lag import Lag


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


def test_a_checkpoint_ahead_of_the_last_sample_is_no_negative_lag() -> None:
    lag = Lag()
    lag.sampled(Lsn(100), now=10)
    lag.applied(Lsn(500))
    assert (lag.bytes(), lag.seconds(now=99)) == (0, 0)
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
    routes = {"/live": lambda: as_json(HTTPStatus.OK, {"live": True})}
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
    assert ask(server, method, "/live")[0] in {405, 501}


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: HttpServer) -> None:
    with socket.create_connection(server.address):
        assert ask(server, "GET", "/live")[0] == 200


def test_a_port_that_is_taken_is_said(server: HttpServer) -> None:
    with pytest.raises(PortTaken, match=str(server.address[1])):
        HttpServer(server.address, {})


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(PortTaken):
        HttpServer(("192.0.2.1", 0), {})
    with pytest.raises(PortTaken):
        HttpServer(("no.such.host.invalid", 0), {})


def test_ipv6_is_served() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with HttpServer(("::1", 0), {"/": lambda: as_json(HTTPStatus.OK, {})}) as running:
        assert ask(running, "GET", "/")[0] == 200

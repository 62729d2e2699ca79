"""Metrics, health and status over HTTP: read-only, GET and HEAD alone."""

import errno
import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from socket import AF_INET, AF_INET6
from typing import Any, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cdc.errors import PortTaken

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_SECONDS: Final = 10.0  # for a request to arrive, and again for its answer to be taken
_HEAD_BYTES: Final = 16 * 1024
_CONNECTIONS: Final = 32
_LINGERING: Final = 24  # of these: the rest is for probes and scrapes
_ALLOWED: Final = ("GET", "HEAD")
# The page brings all it needs, and asks only us.
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'"
)
_POLL_SECONDS: Final = 0.05  # how soon a stop is noticed

Answer = tuple[HTTPStatus, str, bytes]
Route = Callable[[str], Answer]
"""Answers a query: what follows the `?`."""


class _Server(ThreadingHTTPServer):
    """A thread for each connection, and no more connections than `_CONNECTIONS`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * _CONNECTIONS
    routes: dict[str, Route]

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up early."""


class _Request(BaseHTTPRequestHandler):
    """One request, and its connection with it."""

    timeout = _SECONDS  # of `sendall` too, for the whole of it
    server_version = "cdc"
    sys_version = ""
    server: _Server

    def handle(self) -> None:
        """Take the request's head, in bounded time and size; then answer it."""
        head = self._head()
        self.connection.settimeout(_SECONDS)
        if head is not None:
            self.rfile = BytesIO(head)
            self.handle_one_request()

    def _head(self) -> bytes | None:
        """Read up to the empty line; None where it does not come: then nothing is answered."""
        head, deadline = b"", time.monotonic() + _SECONDS
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            left = deadline - time.monotonic()
            if left <= 0 or len(head) > _HEAD_BYTES:
                return None
            self.connection.settimeout(left)
            try:
                received = self.connection.recv(4096)
            except OSError:  # too late, or gone
                return None
            if not received:
                return None
            head += received
        return head

    def parse_request(self) -> bool:
        """Parse the head; tell whether it is to be answered."""
        if not super().parse_request():
            return False
        if self.command in _ALLOWED:
            return True
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
        return False

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer without a word of the request: what it holds is somebody else's."""
        del message, explain
        status = HTTPStatus(code)
        self._send((status, _TEXT, f"{status.phrase.lower()}\n".encode()), body=True)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path, _, query = self.path.partition("?")
        route = self.server.routes.get(path, _not_found)
        self._send(route(query), body=body)

    def _send(self, answer: Answer, *, body: bool) -> None:
        status, content_type, content = answer
        self.send_response(status)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ", ".join(_ALLOWED))
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing: scrapes are no news."""


def _not_found(_: str) -> Answer:
    return as_text(HTTPStatus.NOT_FOUND, "not found\n")


def as_text(status: HTTPStatus, content: str) -> Answer:
    """Make an answer of plain text."""
    return status, _TEXT, content.encode()


def as_json(status: HTTPStatus, content: dict[str, Any]) -> Answer:
    """Make an answer of JSON."""
    return status, _JSON, json.dumps(content, indent=2).encode() + b"\n"


class HttpServer:
    """Serve the routes in threads of its own. A context manager."""

    def __init__(self, address: tuple[str, int], routes: dict[str, Route]) -> None:
        """Bind the address; raise PortTaken."""
        host, port = address
        try:
            family = AF_INET6 if ":" in host else AF_INET
            server = type("Server", (_Server,), {"address_family": family})
            self._server: _Server = server(address, _Request)
        except (OSError, TypeError) as error:  # the latter: no host is named so
            told = error.strerror if isinstance(error, OSError) else "it is no host's name"
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            who = "another daemon runs here, or something else has the port: " if taken else ""
            raise PortTaken(
                f"cannot listen on {host}:{port}: {told}",
                hint=f"{who}correct http.listen, or CDC_HTTP__LISTEN",
            ) from None
        self._server.routes = routes
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="http", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port bound."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def lingering(route: Route) -> Route:
    """Bound how many clients wait for a slow route at once: the others are answered 503."""
    free = threading.BoundedSemaphore(_LINGERING)

    def answer(query: str) -> Answer:
        if not free.acquire(blocking=False):
            return as_text(HTTPStatus.SERVICE_UNAVAILABLE, f"{_LINGERING} wait already\n")
        try:
            return route(query)
        finally:
            free.release()

    return answer


def metrics_answer(registry: CollectorRegistry) -> Answer:
    """Make what Prometheus scrapes."""
    return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)

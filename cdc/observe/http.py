"""Metrics, health and status over HTTP: read-only, GET and HEAD alone."""

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cdc.errors import PortTaken

_JSON: Final = "application/json"
_TIMEOUT_SECONDS: Final = 10
_POLL_SECONDS: Final = 0.05  # how soon a stop is noticed

Answer = tuple[HTTPStatus, str, bytes]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    routes: dict[str, Callable[[], Answer]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up early."""


class _Request(BaseHTTPRequestHandler):
    """One request. Methods other than GET and HEAD are answered 501 by the base class."""

    timeout = _TIMEOUT_SECONDS
    server_version = "cdc"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        route = self.server.routes.get(self.path.partition("?")[0], _not_found)
        status, content_type, content = route()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing: scrapes are no news."""


def _not_found() -> Answer:
    return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n"


def as_json(status: HTTPStatus, content: dict[str, Any]) -> Answer:
    """Make an answer of JSON."""
    return status, _JSON, json.dumps(content, indent=2).encode() + b"\n"


class HttpServer:
    """Serve the routes in threads of its own. A context manager."""

    def __init__(self, address: tuple[str, int], routes: dict[str, Callable[[], Answer]]) -> None:
        """Bind the address; raise PortTaken."""
        host, port = address
        try:
            family = AF_INET6 if ":" in host else AF_INET
            server = type("Server", (_Server,), {"address_family": family})
            self._server: _Server = server(address, _Request)
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port}: {error.strerror}",
                hint="another daemon runs here, or something else has the port: set http.listen, "
                "or CDC_HTTP__LISTEN",
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


def metrics_route(registry: CollectorRegistry) -> Callable[[], Answer]:
    """Make the route that Prometheus scrapes."""
    return lambda: (HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))

"""A TCP proxy between the daemon and a database, which does to the traffic what networks do.

A `Fault` is done once, to the first connection of which `when` says so. Everything that passes is
first shown to it: which direction, what bytes, and what the client has sent before.
"""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Direction = Literal["to server", "to client"]
Kind = Literal["reset", "end", "half", "stall", "delay", "trickle"]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
_BLOCK = 64 * 1024
_REMEMBERED = 256 * 1024


@dataclass(frozen=True)
class Passage:
    """What is about to pass, of which connection; `sent` is what its client has sent so far."""

    direction: Direction
    data: bytes
    sent: bytes


@dataclass
class Fault:
    """What is to be done, and when.

    reset: both sides get RST. end: both get FIN. half: only that direction ends. stall: nothing
    passes any more, and nothing is said. delay: what passes comes late. trickle: it comes byte by
    byte. With `first_pass` that passage still gets through. A `lasting` one is done again.
    """

    kind: Kind
    when: Callable[[Passage], bool] = lambda _: True
    first_pass: bool = False
    lasting: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float = 60) -> None:
        assert self.done.wait(seconds), f"{self.kind} never came to be"


class _Ended(Exception):
    """The pair is at its end."""


class _Pair:
    """A client's connection, and ours to the server for it; two threads pump."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.sent = b""
        self.fault: Fault | None = None
        self.passes = threading.Event()
        self.passes.set()
        self.heard_at = time.monotonic()
        self._wake = os.pipe()
        self._pumps = 2
        self._lock = threading.Lock()

    def receive(self, source: socket.socket) -> bytes:
        """Wait for bytes; raise _Ended where the pair is ended meanwhile."""
        if self._wake[0] in select.select([source, self._wake[0]], [], [])[0]:
            raise _Ended
        return source.recv(_BLOCK)

    def end(self, *, reset: bool) -> None:
        """End both connections. A RST is sent once nobody waits for bytes any more."""
        with self._lock, suppress(OSError):
            for end in (self.client, self.server):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                else:
                    end.shutdown(socket.SHUT_RDWR)
        with self._lock, suppress(OSError):
            os.write(self._wake[1], b".")
        self.passes.set()

    def leave(self) -> None:
        """Close both, as the second of the pumps."""
        with self._lock:
            self._pumps -= 1
            if not self._pumps:
                self.client.close()
                self.server.close()
                for number in self._wake:
                    os.close(number)
                self._wake = (-1, -1)


class Proxy:
    """Listens on `port` and connects on to `target`; a context manager that ends all of it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[_Pair] = []
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self.accepted = 0
        self.longest_silence = 0.0  # of a stream that went on

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal()
        for pair in self._pairs:
            pair.end(reset=True)

    def through(self, address: str) -> str:
        """Give a DSN or URL of the target that goes through here."""
        assert f":{self._target}" in address
        return address.replace(f":{self._target}", f":{self.port}")

    def inject(self, fault: Fault) -> Fault:
        """Have a fault done, once."""
        with self._lock:
            self._fault = fault
        return fault

    def stall_all(self) -> None:
        """Let nothing pass any more; new connections are accepted, and nothing is answered."""
        self.inject(Fault("stall", lasting=True))
        for pair in self._pairs:
            pair.passes.clear()

    def reset_all(self) -> None:
        """Send RST to both sides of all connections."""
        for pair in self._pairs:
            pair.end(reset=True)

    def heal(self) -> None:
        """Take all faults back; let pass what was held up."""
        with self._lock:
            self._fault = None
        for pair in self._pairs:
            pair.fault = None
            pair.passes.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:  # as a server that is down would
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        self._pairs.append(pair)
        for direction in ("to server", "to client"):
            threading.Thread(target=self._pump, args=(pair, direction), daemon=True).start()

    def _pump(self, pair: _Pair, direction: Direction) -> None:
        ends = (pair.client, pair.server)
        source, sink = ends if direction == "to server" else ends[::-1]
        with suppress(OSError, _Ended):
            while data := pair.receive(source):
                self._pass_on(pair, sink, Passage(direction, data, pair.sent))
            pair.passes.wait()
            sink.shutdown(socket.SHUT_WR)
        pair.leave()

    def _pass_on(self, pair: _Pair, sink: socket.socket, passage: Passage) -> None:
        self._note(pair, passage)
        fault = self._due(passage)
        if fault is not None:
            if fault.first_pass:
                sink.sendall(passage.data)
            pair.fault = fault
            fault.done.set()
            self._do(fault, pair, sink)
            if fault.first_pass:
                return
        pair.passes.wait()
        slow = pair.fault.kind if pair.fault is not None else None
        if slow == "delay":
            time.sleep(0.05)  # the fault
        if slow == "trickle":
            for at in range(min(len(passage.data), 2000)):
                sink.sendall(passage.data[at : at + 1])
            sink.sendall(passage.data[2000:])
        else:
            sink.sendall(passage.data)

    def _note(self, pair: _Pair, passage: Passage) -> None:
        if passage.direction == "to server":
            pair.sent = (pair.sent + passage.data)[:_REMEMBERED]
        elif b"START_REPLICATION" in pair.sent:
            now = time.monotonic()
            self.longest_silence = max(self.longest_silence, now - pair.heard_at)
            pair.heard_at = now

    def _due(self, passage: Passage) -> Fault | None:
        with self._lock:
            fault = self._fault
            if fault is None or not fault.when(passage):
                return None
            if not fault.lasting:
                self._fault = None
            return fault

    def _do(self, fault: Fault, pair: _Pair, sink: socket.socket) -> None:
        match fault.kind:
            case "reset" | "end":
                pair.end(reset=fault.kind == "reset")
                raise _Ended
            case "half":
                sink.shutdown(socket.SHUT_WR)
            case "stall":
                pair.passes.clear()

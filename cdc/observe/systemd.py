"""Tell systemd how the daemon is: sd_notify(3), in the notify protocol's own datagrams."""

import socket
from contextlib import suppress


class Notifier:
    """Says ready once, and at each word that it is alive. Without an address it says nothing.

    `address` is what systemd puts into NOTIFY_SOCKET: a path, or an abstract name after `@`.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address and (f"\0{address[1:]}" if address[0] == "@" else address)
        self._ready = False

    def tell(self, status: str, *, ready: bool) -> None:
        """Say that it is alive, and what it does; never raise."""
        words = ["WATCHDOG=1", f"STATUS={' '.join(status.split())}"]
        if ready and not self._ready:
            words.append("READY=1")
            self._ready = True
        self._send("\n".join(words))

    def stopping(self) -> None:
        """Say that it is about to end; never raise."""
        self._send("STOPPING=1")

    def _send(self, words: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)
            with suppress(OSError):
                to.sendto(words.encode(), self._address)

"""The ceiling: read a slot to nowhere. Run as a process of its own, so that its CPU is its own.

python -m benchmarks.drain DSN SLOT LSN OPTIONS: stream until past the LSN (in bytes), print what
was read as JSON, and wait for stdin to end, so that whoever measures can look at the process.
"""

import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any

import psycopg

_HEADER = 25  # 'w', start, end, time
_KIND = {"pgoutput": _HEADER, "wal2json": _HEADER + len('{"action":"')}
_STATUS = struct.Struct(">cqqqqb")
_STATUS_SECONDS = 5.0
# A reader that is woken for every few messages costs itself and the walsender CPU: so it sleeps
# until this much has gathered, or for so long (measured: a quarter to a third faster).
_GATHER_BYTES = 65536
_GATHER_SECONDS = 0.005


def drain(pgconn: Any, *, kind_at: int, until: int) -> tuple[Counter[int], int]:
    """Read until a message is past the position; count messages by first letter, and bytes."""
    counts: Counter[int] = Counter()
    size, position, sent_at, dry = 0, 0, time.monotonic(), False
    while position < until:
        count, frame = pgconn.get_copy_data(1)
        if count > 0:
            dry = False
            if frame[0] == 0x77:
                counts[frame[kind_at]] += 1
                size += count
                position = int.from_bytes(frame[1:9], "big")
        elif count < 0:
            raise SystemExit("the server ended the stream")
        else:
            if dry:
                select.select([pgconn.socket], [], [], _GATHER_SECONDS)
            pgconn.consume_input()
            dry = True
            if time.monotonic() - sent_at > _STATUS_SECONDS:
                sent_at = _send_status(pgconn)
    return counts, size


def _let_gather(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _GATHER_BYTES)


def _send_status(pgconn: Any) -> float:
    pgconn.put_copy_data(_STATUS.pack(b"r", 0, 0, 0, 0, 0))
    pgconn.flush()
    return time.monotonic()


def main(dsn: str, slot: str, until: str, options: str) -> None:
    given = json.loads(options)
    plugin = given.pop("plugin")
    listed = ", ".join(f"\"{name}\" '{value}'" for name, value in given.items())
    connection = psycopg.connect(
        dsn, autocommit=True, replication="database", application_name="bench-drain"
    )
    connection.execute(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({listed})".encode())
    _let_gather(connection.pgconn.socket)
    counts, size = drain(connection.pgconn, kind_at=_KIND[plugin], until=int(until))
    kinds = {chr(kind): count for kind, count in counts.items()}
    print(json.dumps({"kinds": kinds, "bytes": size}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])

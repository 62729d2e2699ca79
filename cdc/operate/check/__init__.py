"""Preflight: everything that would stop the daemon, found before it does, and all at once."""

from contextlib import ExitStack

from cdc.finding import Finding
from cdc.observe.http import HttpServer
from cdc.operate.check import read, slot, tables
from cdc.operate.check.examination import Examination
from cdc.operate.status import daemon
from cdc.projection.registry import load
from cdc.settings import Settings
from cdc.source import server_settings

_STREAMS = "changes are streamed from it"

__all__ = ["Finding", "check"]


def check(settings: Settings) -> list[Finding]:
    """Examine both databases, the projectors and the position; give every finding once.

    Nothing is changed. A database that does not answer is a finding, and does not keep the other
    one from being examined; one that stops answering is given up after half a minute.
    """
    found = Examination()
    with ExitStack() as open_:
        source = open_.enter_context(found.source(settings))
        sink = open_.enter_context(found.read(settings))
        state = plan = None
        if source is None:
            found.attempt(lambda: load(settings.projection.modules), why="changes go through them")
        else:
            server = found.attempt(
                lambda: server_settings.read_settings(source), source, why=_STREAMS
            )
            if server is not None:
                state = slot.examine(found, settings, source, server=server, read=sink)
            plan = tables.examine(found, settings, source)
        if sink is not None:
            read.examine(found, settings, sink, plan=plan, state=state)
    found.attempt(lambda: _listen(settings), why="metrics, health and status are answered there")
    return found.all


def _listen(settings: Settings) -> None:
    """Listen for a moment where the daemon would, unless it does; raise PortTaken."""
    if not daemon.ask(settings):
        with HttpServer(settings.http.address, {}):
            pass

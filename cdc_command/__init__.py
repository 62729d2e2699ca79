"""The installed command's first step: while the rest is imported, Ctrl-C just ends it.

Nor is garbage looked for meanwhile, which would take a quarter of that time: what modules make
stays.
A package of its own: to import any part of `cdc` is to import what takes that time.
"""

import gc
import signal

gc.disable()

_handler = signal.getsignal(signal.SIGINT)  # none of Python's where who started us ignores it
if _handler is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cdc.cli import main as run  # noqa: E402  it takes a second, on a busy machine several

gc.freeze()
gc.enable()


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _handler)
    run()

"""Be there while a daemon does what a command asked for: one that runs, or one run here."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from cdc.daemon import Daemon
from cdc.operate.copy import PATIENCE_SECONDS, Display, Watch, follow
from cdc.settings import Http, Settings

_ANY_PORT: Final = "127.0.0.1:0"  # one that stands by may have the configured one


def attend(
    settings: Settings,
    watch: Watch,
    display: Display,
    *,
    patience: float = PATIENCE_SECONDS,
) -> bool:
    """Show the copies until they are done; tell whether they are, or a signal came before.

    Where no daemon streams from the slot, run one here until then. One that is about to stream is
    no trouble: whoever comes second stands by, and both see the same progress. Raise NotStreaming
    where a daemon went away while it was watched, or what ends the one here.
    """
    if watch.someone_streams():
        return _follow_another(watch, display, patience=patience)
    display.say("no daemon streams: copying here until it is done")
    run_while(settings, partial(follow, watch, display))
    if not watch.done:
        display.say("stopped; `cdc run` goes on with it, and so does this command, given again")
    return watch.done


def _follow_another(watch: Watch, display: Display, *, patience: float) -> bool:
    try:
        return follow(watch, display, ended=threading.Event(), patience=patience)
    except KeyboardInterrupt:
        display.say("the daemon goes on with it; this command, given again, shows it")
        return False


def run_while(settings: Settings, errand: Callable[..., object]) -> None:
    """Run the daemon here until `errand` returns; tell it by the event `ended` where that is first.

    Raise what ended either.
    """
    daemon = Daemon(settings.model_copy(update={"http": Http(listen=_ANY_PORT)}))
    ended = threading.Event()
    errors: list[BaseException] = []

    def run_errand() -> None:
        try:
            errand(ended=ended)
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            errors.append(error)
        finally:
            daemon.stop("done")

    thread = threading.Thread(target=run_errand, name="errand", daemon=True)
    thread.start()
    try:
        daemon.run()
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]

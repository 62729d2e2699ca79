"""Be there while a daemon does what a command asked for: one that runs, or one run here."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from cdc.daemon import Daemon
from cdc.operate.follow import PATIENCE_SECONDS, Display, Watch, follow, follow_here
from cdc.settings import Http, Settings

_ANY_PORT: Final = "127.0.0.1:0"  # one that stands by may have the configured one


def attend(
    settings: Settings,
    watch: Watch,
    display: Display,
    *,
    doing: str = "copying",
    patience: float = PATIENCE_SECONDS,
) -> bool:
    """Show what is watched until it is done; tell False where a signal came before.

    Where no daemon streams from the slot, run one here meanwhile. If another one is about to, no
    harm is done: whichever is second stands by, and what is watched is the same. Raise NotStreaming
    where a daemon went away and none came, or what ends the one here.
    """
    if watch.someone_streams():
        return _attend_another(watch, display, patience=patience)
    display.say(f"no daemon streams: {doing} here until it is done")
    run_while(settings, partial(follow_here, watch, display))
    if not watch.done:
        display.say("stopped; `cdc run` goes on with it, and so does this command, given again")
    return watch.done


def _attend_another(watch: Watch, display: Display, *, patience: float) -> bool:
    try:
        follow(watch, display, patience=patience)
    except KeyboardInterrupt:
        display.say("the daemon goes on with it; this command, given again, shows it")
        return False
    return True


def run_while(settings: Settings, errand: Callable[[threading.Event], None]) -> None:
    """Run the daemon here while `errand` runs in a thread; the event tells it to come to an end.

    Raise what ended either.
    """
    daemon = Daemon(settings.model_copy(update={"http": Http(listen=_ANY_PORT)}))
    ended = threading.Event()
    errors: list[BaseException] = []

    def run_errand() -> None:
        try:
            errand(ended)
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            errors.append(error)
        finally:
            daemon.stop("the errand is done")

    thread = threading.Thread(target=run_errand, name="errand", daemon=True)
    thread.start()
    try:
        daemon.run()
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]

"""Try again what passes by itself, and say so once."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from cdc.errors import (
    CatalogOutdated,
    CdcError,
    ReadError,
    ReadLocked,
    ReadTransactionLost,
    SlotActive,
)
from cdc.exchange import Stopped
from cdc.observe.failures import STAGES, STANDING_BY
from cdc.observe.metrics import Metrics
from cdc.observe.state import State

log = logging.getLogger(__name__)

_FIRST_SECONDS: Final = 0.2
_LONGEST_SECONDS: Final = 30.0
_LONGEST_STANDBY_SECONDS: Final = 2.0


class Retry:
    """Retries for ever, with pauses that grow; a stop ends them. Keeps the daemon's state."""

    def __init__(self, metrics: Metrics, stop: threading.Event) -> None:
        self._metrics = metrics
        self._stop = stop
        self._retrying = {stage: self._retrying_at(stage) for stage in STAGES}

    def _retrying_at(self, stage: str) -> Retrying:
        return Retrying(
            retry=retry_if_exception(_passes),
            wait=_pause,
            before_sleep=partial(self._failed, stage),
            sleep=self.sleep,
            reraise=True,
        )

    def _failed(self, stage: str, state: RetryCallState) -> None:
        error = _error(state)
        if error is not None:
            self._metrics.failures.failed(error, stage=stage)
        self.note(error)

    def persist(self, attempt: Callable[[], None], *, stage: str) -> None:
        """Call again and again while it fails in a way that passes; raise Stopped on a stop.

        `stage` is one of STAGES, for the metrics.
        """
        self._retrying[stage](attempt)
        if self._metrics.state in {State.RETRYING, State.STANDBY}:
            self.enter(State.STREAMING)

    def sleep(self, seconds: float = _FIRST_SECONDS) -> None:
        """Wait; raise Stopped on a stop."""
        if self._stop.wait(seconds):
            raise Stopped

    def note(self, error: BaseException | None) -> None:
        """Count a failure that passes, and change the state."""
        target = "read" if isinstance(error, ReadError) else "source"
        standing_by = isinstance(error, STANDING_BY)
        self._metrics.failures.retried(target, _reason(error), lost=not standing_by)
        hint = error.hint if isinstance(error, CdcError) else None
        if not standing_by:
            self._metrics.history.failed(str(error), hint, now=time.time())
        state = State.STANDBY if standing_by else State.RETRYING
        self.enter(state, because=str(error), **({"hint": hint} if hint else {}))

    def enter(self, state: State, *, because: str | None = None, **fields: str) -> None:
        """Change the state; say so once."""
        changed = (state, because) != (self._metrics.state, self._metrics.retrying)
        self._metrics.enter(state, because=because)
        if state is State.STREAMING:
            self._metrics.failures.recovered()
        if changed:
            _say(state, because, **fields)

    def judge(self, stuck: str | None) -> None:
        """Take what has not got on for too long, or None; say so once, and once when it moves."""
        turn = self._metrics.turn
        if stuck is None and turn(State.STUCK, State.STREAMING):
            _say(State.STREAMING, None)
        elif (
            stuck is not None
            and not turn(State.STUCK, State.STUCK, because=stuck)
            and turn(State.STREAMING, State.STUCK, because=stuck)
        ):
            _say(State.STUCK, stuck)


def _say(state: State, because: str | None, **fields: str) -> None:
    level = logging.WARNING if because else logging.INFO
    log.log(level, state.value, extra={"because": because, **fields} if because else fields)


def _pause(state: RetryCallState) -> float:
    standing_by = isinstance(_error(state), STANDING_BY)
    longest = _LONGEST_STANDBY_SECONDS if standing_by else _LONGEST_SECONDS
    wait = wait_exponential_jitter(initial=_FIRST_SECONDS, max=longest, jitter=_FIRST_SECONDS)
    return wait(state)


def _passes(error: BaseException) -> bool:
    """Tell whether the same call may succeed: not what a new session is needed for."""
    lost = isinstance(error, ReadTransactionLost | CatalogOutdated)
    return isinstance(error, CdcError) and error.transient and not lost


def _reason(error: BaseException | None) -> str:
    match error:
        case ReadTransactionLost():
            return "transaction_lost"
        case ReadLocked():
            return "locked"
        case SlotActive():
            return "active"
        case _:
            return "unavailable"


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None

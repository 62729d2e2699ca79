"""Where the threads meet: bounded, handed over when the writer is free, ended for all at once."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from cdc.assemble import Transaction
from cdc.exchange import Exchange, Stopped
from cdc.lsn import Lsn
from cdc.projection.batch import Batch

NOW = datetime(2024, 1, 1, tzinfo=UTC)
SOON = 10.0


def transaction(size: int, lsn: int = 1) -> Transaction:
    return Transaction(1, Lsn(lsn), Lsn(lsn + 1), NOW, [], size)


def aside(function: Callable[[], Any]) -> "Future[Any]":
    """Run in a thread that does not keep the test from ending."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  told by the future
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_what_is_offered_comes_out_in_order() -> None:
    exchange = Exchange(1000)
    items = [transaction(1), Lsn(5), transaction(2)]
    for item in items:
        assert exchange.offer(item, seconds=0)
    assert exchange.queued_bytes == 3
    assert [exchange.next(holding=False) for _ in items] == items
    assert exchange.queued_bytes == 0


def test_what_does_not_fit_is_not_taken() -> None:
    exchange = Exchange(10)
    assert exchange.offer(transaction(6), seconds=0)
    assert exchange.offer(transaction(4), seconds=0)
    assert not exchange.offer(transaction(1), seconds=0)
    assert exchange.queued_bytes == 10


def test_one_that_is_larger_than_the_limit_passes_alone() -> None:
    exchange = Exchange(10)
    assert exchange.offer(transaction(100), seconds=0)
    assert not exchange.offer(transaction(1), seconds=0)
    exchange.next(holding=False)
    assert exchange.offer(transaction(1), seconds=0)


def test_room_that_appears_lets_a_waiting_offer_in() -> None:
    exchange = Exchange(10)
    exchange.offer(transaction(10), seconds=0)
    offered = aside(lambda: exchange.offer(transaction(10), seconds=SOON))
    assert exchange.next(holding=False) is not None
    assert offered.result(SOON)


def test_a_batch_that_is_held_goes_when_the_writer_waits_and_not_before() -> None:
    exchange = Exchange(10)
    taken = aside(lambda: exchange.take(seconds=None))
    assert exchange.next(holding=True) is None
    batch = Batch()
    exchange.hand_over(batch)
    assert taken.result(SOON) is batch


def test_one_that_holds_nothing_waits_though_the_writer_waits_too() -> None:
    exchange = Exchange(10)
    taken = aside(lambda: exchange.take(seconds=None))
    got = aside(lambda: exchange.next(holding=False))
    exchange.offer(Lsn(7), seconds=0)
    assert got.result(SOON) == 7
    exchange.end()
    assert taken.result(SOON) is None


def test_one_batch_at_most_waits_for_the_writer() -> None:
    exchange = Exchange(10)
    first, second = Batch(), Batch()
    exchange.hand_over(first)
    handed = aside(lambda: exchange.hand_over(second))
    assert exchange.take(seconds=0) is first
    handed.result(SOON)
    assert exchange.take(seconds=0) is second


def test_at_the_end_what_was_offered_and_handed_over_still_comes() -> None:
    exchange = Exchange(10)
    exchange.offer(Lsn(1), seconds=0)
    exchange.finish()
    assert exchange.next(holding=False) == 1
    assert exchange.next(holding=False) is None
    assert exchange.next(holding=True) is None
    batch = Batch()
    exchange.hand_over(batch)
    exchange.end()
    assert not exchange.ended
    assert exchange.take(seconds=None) is batch
    assert exchange.ended
    assert exchange.take(seconds=None) is None


def test_a_writer_that_waits_no_longer_gets_nothing() -> None:
    assert Exchange(10).take(seconds=0) is None


def test_a_failure_ends_every_wait() -> None:
    exchange = Exchange(10)
    exchange.offer(transaction(10), seconds=0)
    waits: list[Future[Any]] = [
        aside(lambda: exchange.offer(transaction(10), seconds=SOON)),
        aside(lambda: exchange.take(seconds=None)),
    ]
    exchange.fail()
    for wait in waits:
        with pytest.raises(Stopped):
            wait.result(SOON)
    with pytest.raises(Stopped):
        exchange.next(holding=False)
    with pytest.raises(Stopped):
        exchange.hand_over(Batch())


def test_nothing_is_lost_or_reordered_between_three_threads() -> None:
    exchange, received = Exchange(50), []

    def receive() -> None:
        for number in range(2000):
            assert exchange.offer(transaction(number % 20, number), seconds=SOON)
        exchange.finish()

    def project() -> None:
        batch = Batch()
        while (item := exchange.next(holding=batch.can_commit)) or batch.can_commit:
            if isinstance(item, Transaction):
                batch.transactions.append(item)
                batch.end_lsn = item.end_lsn
            if item is None or len(batch.transactions) == 7:
                exchange.hand_over(batch)
                batch = Batch()
        exchange.end()

    def write() -> None:
        while not exchange.ended:
            if batch := exchange.take(seconds=0.01):
                received.extend(batch.transactions)

    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(part) for part in (receive, project, write)]:
            future.result(3 * SOON)
    assert [one.commit_lsn for one in received] == list(range(2000))

"""How long projectors take is told by batch, without a look at the clock for each change."""

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from cdc import Upsert, projector
from cdc.assemble import Transaction
from cdc.change import Column, Inserted, Relation
from cdc.lsn import Lsn
from cdc.names import TableName
from cdc.observe.metrics import Metrics
from cdc.projection.batch import Batch
from cdc.projection.laps import Laps
from cdc.projection.registry import Registry

METADATA = sa.MetaData()
ONE, TWO = (
    sa.Table(name, METADATA, sa.Column("id", sa.Integer, primary_key=True)) for name in ("a", "b")
)
RELATION = Relation(TableName("public", "t"), (Column("id", 23, 23),), ("id",))


class Clock:
    """Goes forward when somebody works; counts the looks."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    @projector("public.t", into=ONE)
    def quick(change):
        clock.now += 1
        return Upsert(ONE, id=change.row["id"])

    @projector("public.t", into=TWO)
    def slow(change):
        clock.now += 10
        return Upsert(TWO, id=change.row["id"])

    return Registry([quick, slow])


def transaction(changes: int) -> Transaction:
    rows = [Inserted(RELATION, (str(number),)) for number in range(changes)]
    return Transaction(1, Lsn(1), Lsn(2), datetime.now(UTC), rows, 1)


def test_each_projector_is_told_what_it_took(clock: Clock, registry: Registry) -> None:
    batch = Batch(laps=Laps(clock))
    batch.add(transaction(5), registry)
    batch.add(transaction(1), registry)
    assert batch.laps.seconds == {"quick": 6, "slow": 60}


def test_of_many_transactions_some_are_timed_for_all(clock: Clock, registry: Registry) -> None:
    batch = Batch(laps=Laps(clock))
    for _ in range(160):
        batch.add(transaction(1), registry)
    assert batch.laps.seconds == {"quick": 160, "slow": 1600}
    assert clock.looks < 160


def test_of_many_changes_some_are_timed_for_all(clock: Clock, registry: Registry) -> None:
    batch = Batch(laps=Laps(clock))
    batch.add(transaction(64 * 80), registry)
    assert batch.laps.seconds == {"quick": 5120, "slow": 51200}
    assert clock.looks < 5120


def test_a_projector_alone_is_timed_once_a_turn(clock: Clock, registry: Registry) -> None:
    batch = Batch(laps=Laps(clock))
    batch.add(transaction(16), Registry([registry.projector("quick")]))
    assert (batch.laps.seconds, clock.looks) == ({"quick": 16}, 2)


def test_what_a_batch_took_is_counted_whole_or_in_pieces(clock: Clock, registry: Registry) -> None:
    metrics = Metrics()
    metrics.expect([RELATION.name], ["quick", "slow"])
    assert metrics.value("cdc_project_seconds_count", projector="slow") == 0
    batch = Batch(laps=Laps(clock))
    batch.add(transaction(3), registry)
    metrics.applied(batch, checkpoint=Lsn(2), seconds=0.5)
    only_a_position = Batch(laps=Laps(clock))
    only_a_position.reach(Lsn(9))
    metrics.applied(only_a_position, checkpoint=Lsn(9), seconds=7)
    assert metrics.value("cdc_project_seconds_sum", projector="slow") == 30
    assert metrics.value("cdc_apply_seconds_sum") == 0.5
    assert metrics.value("cdc_batch_changes_sum") == 3
    assert metrics.value("cdc_batch_changes_count") == 1
    committed = batch.transactions[0].commit_time.timestamp()
    assert metrics.value("cdc_last_applied_commit_timestamp_seconds") == committed

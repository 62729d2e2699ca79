"""What verifications count, and what operations lead to."""

import sqlalchemy as sa

from cdc.copy_state import Unit
from cdc.names import TableName
from cdc.observe.metrics import Metrics
from cdc.operate.verify import Result
from cdc.operation import Delete, Update, Upsert
from cdc.projection.expectation import expected_of
from cdc.verify_state import Ledger, Mismatch, Verification

UNIT = Unit("p", TableName("public", "t"))
OTHER = Unit("p", TableName("public", "u"))
READ = sa.Table(
    "read",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("a", sa.Integer),
    sa.Column("b", sa.Integer),
)


def grouped(*operations, partial=False):
    return {
        (e.kind, e.shape.columns, tuple(e.rows), e.exists)
        for e in expected_of(operations, partial=partial)
    }


def test_rows_are_expected_by_the_columns_that_are_named():
    assert grouped(Upsert(READ, id=1, a=1), Upsert(READ, id=2, a=2), Upsert(READ, id=3, b=3)) == {
        (Upsert, ("id", "a"), ((1, 1), (2, 2)), True),
        (Upsert, ("id", "b"), ((3, 3),), True),
    }


def test_an_update_expects_no_row_unless_it_is_of_one_that_is_known_in_part():
    assert grouped(Update(READ, id=1, a=1)) == {(Update, ("id", "a"), ((1, 1),), False)}
    assert grouped(Update(READ, id=1, a=1), partial=True) == {
        (Update, ("id", "a"), ((1, 1),), True)
    }


def test_what_is_written_and_deleted_is_not_expected():
    assert grouped(Upsert(READ, id=1, a=1), Delete(READ, id=1)) == {
        (Delete, ("id",), ((1,),), False)
    }
    assert grouped(Delete(READ, id=1), Upsert(READ, id=1, a=1, b=1)) == {
        (Upsert, ("id", "a", "b"), ((1, 1, 1),), True)
    }


def test_the_last_of_what_cannot_be_merged_counts():
    assert grouped(Update(READ, id=1, a=1), Upsert(READ, id=1, b=2)) == {
        (Upsert, ("id", "b"), ((1, 2),), True)
    }


def test_what_was_mended_is_no_longer_wrong():
    found = Verification(UNIT, missing=1, extra=2, different=3, mended=4)
    assert found.mismatched == 2
    assert found.begun_anew().mismatched == 0
    assert Verification(UNIT, repair=True, missing=1, mended=1).begun_anew().missing == 1


def test_a_check_that_comes_to_nothing_is_told():
    ledger = Ledger([Verification(UNIT)])
    ledger.expect()
    assert not ledger.wait(0, seconds=0)
    ledger.release(fruitless=True)
    assert ledger.wait(0, seconds=0)
    assert ledger.fruitless == 1


def test_the_metric_is_of_projectors_that_are_done():
    metrics = Metrics()
    metrics.expect([UNIT.source], ["p", "q"])
    name = "cdc_verify_mismatched_rows"
    assert metrics.value(name, projector="q") == 0
    done = Verification(UNIT, phase="done", missing=2, mended=1)
    metrics.verified([done, Verification(OTHER)])
    assert metrics.value(name, projector="p") == 0
    metrics.verified([done, Verification(OTHER, phase="done", extra=1)])
    assert metrics.value(name, projector="p") == 2


def test_a_result_says_how_much_was_compared_and_the_first_keys():
    keys = [Mismatch("read", "extra", (str(n), None)) for n in range(12)]
    result = Result("p", 250, 750, 0, 12, 0, 0, ["a note"], keys)
    lines = list(result.lines())
    assert lines[0] == (
        "p: a sample: 250 of 1,000 rows compared (25.0 %), 0 missing, 12 extra, 0 different"
    )
    assert lines[1] == "p: a note"
    assert lines[2] == "  extra     read (0, null)"
    assert lines[-1] == "  extra     and 2 more"
    assert len(lines) == 13

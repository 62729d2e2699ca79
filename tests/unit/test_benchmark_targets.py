"""How figures are held to the targets, and shown in the documentation."""

from typing import Any

import pytest

from benchmarks import compared, page, targets
from benchmarks.measurements import TARGETED
from benchmarks.published import Published


def result(contestant: str, number: int, seconds: float, **others: Any) -> dict[str, Any]:
    figure = {"contestant": contestant, "round": number, "changes": 100, "seconds": seconds}
    return figure | {"workload": "tpcb", "peak_bytes": None, "void": None} | others


def verdicts(*figures: dict[str, Any], name: str = "tpcb") -> dict[str, tuple[float, bool]]:
    return {v.contestant: (v.value, v.met) for v in targets.judge({name: figures})}


def test_a_ratio_is_of_one_round_and_the_median_over_rounds() -> None:
    figures = [
        *(result("native", number, seconds) for number, seconds in ((1, 6.0), (2, 30.0), (3, 6.0))),
        *(result("cdc-pgoutput", n, seconds) for n, seconds in ((1, 2.0), (2, 30.0), (3, 2.0))),
    ]
    assert verdicts(*figures) == {"cdc-pgoutput": (3.0, True)}


def test_a_void_round_leaves_its_contestant_without_a_verdict() -> None:
    figures = [
        result("native", 1, 6.0),
        result("cdc-pgoutput", 1, 1.0),
        result("cdc-pgoutput", 2, 1.0, void="differs from the source"),
        result("cdc-wal2json", 1, 6.0),
    ]
    assert verdicts(*figures) == {"cdc-wal2json": (1.0, False)}


def test_neither_native_nor_a_ceiling_nor_a_profiled_run_is_held_to_a_target() -> None:
    others = ("native", "ceiling-wal2json", "cdc-wal2json-profile-cpu")
    assert verdicts(*(result(name, 1, 1.0) for name in others)) == {}


def test_many_tables_are_compared_with_one_by_the_same_plugin() -> None:
    figures = [
        result("cdc-wal2json", 1, 1.0, workload="spread-1"),
        result("cdc-pgoutput", 1, 2.0, workload="spread-1"),
        result("cdc-wal2json", 1, 2.0, workload="spread-50"),
        result("cdc-pgoutput", 1, 2.0, workload="spread-50"),
    ]
    expected = {"cdc-wal2json": (0.5, False), "cdc-pgoutput": (1.0, True)}
    assert verdicts(*figures, name="spread") == expected


def test_a_start_is_compared_with_one_among_few_tables() -> None:
    figures = [
        result("cdc-wal2json", number, seconds, tables=tables)
        for number in (1, 2, 3)
        for tables, seconds in ((3, 1.0), (10_000, 3.5))
    ]
    assert verdicts(*figures, name="start") == {"cdc-wal2json": (2.5, False)}


def test_bytes_and_seconds_are_told_per_million_changes() -> None:
    figures = [result("native", 1, 1.0, wal_bytes=300, stream_bytes=None)]
    figures += [result("ceiling-wal2json", 1, 1.0, wal_bytes=300, stream_bytes=100)]
    assert compared.megabytes(figures) == pytest.approx({"WAL": 3.0, "wal2json": 1.0})


def test_a_table_that_nothing_was_measured_for_is_left_as_it_is() -> None:
    text = "before <!-- targets -->old<!-- /targets --> after"
    assert page.rewritten(text, Published({})) == text


def test_the_tables_of_the_page_are_what_was_measured() -> None:
    text = page.PATH.read_text()
    again = page.rewritten(text, Published.read())
    assert text == again, "run: python -m benchmarks.publish"


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.title)
def test_every_target_is_of_something_that_is_measured(target: targets.Target) -> None:
    assert target.measurement in TARGETED

"""The Grafana dashboard that is shipped: its panels and their queries."""

import json
from collections.abc import Iterator
from typing import Any

from tests.conftest import ROOT

FILE = ROOT / "config" / "grafana" / "dashboards" / "cdc.json"


def read() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(FILE.read_text())
    return made


def panels() -> list[dict[str, Any]]:
    """Give what shows something: all but the rows' titles."""
    return [panel for panel in read()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Give each query with its panel's title."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def resolved(expression: str, *, job: str, interval: str) -> str:
    """Put values for the variables, as Grafana does."""
    found = expression.replace("$__rate_interval", interval).replace("$job", job)
    assert "$" not in found, expression
    return found

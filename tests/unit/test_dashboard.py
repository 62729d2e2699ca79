"""The dashboard is one that Grafana takes, and shows every metric there is."""

import re
from itertools import combinations
from typing import Any

import yaml

from cdc.observe.metrics import Metrics
from tests.conftest import ROOT
from tests.prometheus import dashboard

DATASOURCES = ROOT / "config" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
COLUMNS = 24
UNITS = {"none", "s", "bytes", "Bps", "ops", "percentunit", "dateTimeAsIso"}


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    return {
        (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    }


def test_panels_have_ids_titles_and_places_of_their_own():
    made = dashboard.read()["panels"]
    for field in ("id", "title"):
        values = [panel[field] for panel in made]
        assert len(values) == len(set(values))
    for one, other in combinations(made, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    for panel in made:
        assert max(x for x, _ in cells(panel)) < COLUMNS, panel["title"]


def test_panels_say_what_they_show_in_which_unit_from_the_data_source_there_is():
    (source,) = yaml.safe_load(DATASOURCES.read_text())["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    for panel in dashboard.panels():
        assert panel["datasource"] == wanted
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(references) == len(set(references))
        for target in panel["targets"]:
            assert target["datasource"] == wanted
            assert target["legendFormat"], panel["title"]
            assert target.get("instant", False) == (panel["type"] == "stat")


def test_every_query_is_of_the_pipeline_that_was_chosen():
    (variable,) = dashboard.read()["templating"]["list"]
    assert variable["name"] == "job"
    for title, expression in dashboard.queries():
        selectors = re.findall(r"\b(?:cdc_\w+|process_\w+|ALERTS)(\{[^}]*\})?", expression)
        assert selectors, title
        assert [one for one in selectors if 'job="$job"' not in one] == [], title


def test_a_legend_names_only_labels_that_the_query_keeps():
    for panel in dashboard.panels():
        for target in panel["targets"]:
            kept = re.search(r"by \(([^)]*)\)", target["expr"])
            named = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            if kept:
                assert set(named) <= set(kept[1].split(", ")), panel["title"]


def test_every_metric_is_shown():
    shown = " ".join(expression for _, expression in dashboard.queries())
    names = [f.name for f in Metrics().registry.collect() if f.name.startswith("cdc_")]
    assert [name for name in names if name not in shown] == []

"""The alerts: what promtool says of them, their cases, their runbook, the metrics they use."""

import re
from typing import Any

import pytest
import yaml

from cdc.observe.metrics import Metrics
from cdc.observe.slot import STATUSES
from cdc.observe.state import State
from tests.conftest import ROOT
from tests.prometheus.server import SHIPPED, promtool, rules

CASES = ROOT / "tests" / "prometheus" / "alerts_test.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"
NAMES = (
    *("Down", "NotProgressing", "LagHigh", "FreshnessHigh", "SlotBudget", "SlotLost"),
    *("QuarantineNotEmpty", "HeartbeatMissing", "Retrying", "VerifyMismatch"),
)
OTHERS_METRICS = {"up", "process_start_time_seconds"}
PARTS = ("It means", "Users notice", "Look", "Do", "Over when")


def key(rule: dict[str, Any]) -> tuple[str, str]:
    return rule["alert"], rule["labels"]["severity"]


def test_promtool_takes_the_rules_and_the_configuration():
    for what, file in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        done = promtool("check", what, str(SHIPPED / file))
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_no_sooner():
    done = promtool("test", "rules", str(CASES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = [
        case
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["promql_expr_test"]
    ]
    fired = {
        (re.findall(r'alertname="(\w+)"', told)[0], re.findall(r'severity="(\w+)"', told)[0])
        for case in cases
        for told in (sample["labels"] for sample in case["exp_samples"])
    }
    quiet = {
        name
        for case in cases
        if not case["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', case["expr"])
    }
    assert fired == set(map(key, rules()))
    assert quiet == {rule["alert"] for rule in rules()} == {f"Cdc{name}" for name in NAMES}


def section(name: str) -> str:
    text = RUNBOOK.read_text()
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: "-".join(key(rule)))
def test_an_alert_says_what_it_is_and_points_to_a_section_that_says_what_to_do(rule):
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    found = section(rule["alert"])
    assert [part for part in PARTS if f"**{part}**" not in found] == []
    assert "```console" in found


def test_no_section_is_of_an_alert_that_is_not_there():
    titles = set(re.findall(r"^## (Cdc\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert titles == {rule["alert"] for rule in rules()}


def test_alerts_use_metrics_and_labels_that_the_daemon_has():
    metrics = Metrics()
    metrics.expect([], ["p"])
    families = list(metrics.registry.collect())
    samples = {sample.name for family in families for sample in family.samples}
    for rule in rules():
        used = set(re.findall(r"\b(?:cdc|process)_\w+|\bup\b", rule["expr"]))
        assert used
        assert used - OTHERS_METRICS - samples == set()
        for label, values in (("state", set(State)), ("status", set(STATUSES))):
            for given in re.findall(rf'{label}=~?"([^"]*)"', rule["expr"]):
                assert set(given.split("|")) <= values

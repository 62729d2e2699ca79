"""Prometheus and promtool, where `tests/install-components` puts them or the system has them."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.conftest import ROOT, require, until

SHIPPED = ROOT / "config" / "prometheus"
_UNPACKED = ROOT / ".components_cache" / "prometheus"


def program(name: str) -> str:
    """Give the program's path; skip the test where it is missing, or fail it in CI."""
    unpacked = _UNPACKED / name
    found = str(unpacked) if unpacked.exists() else shutil.which(name)
    require(found, f"{name}, of Prometheus")
    return str(found)


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [program("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rules() -> list[dict[str, Any]]:
    """Give the alerts that are shipped."""
    (group,) = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def shipped_configuration(folder: Path, targets: list[str]) -> Path:
    """Write the configuration that is shipped, and its alerts, changed for a test in these points.

    The targets are the test's daemons. Scrapes and evaluations come every second. What has to be so
    for minutes (`for:`) is told after a second. Nothing else differs: the expressions are as shipped.
    """
    alerts = yaml.safe_load((SHIPPED / "alerts.yml").read_text())
    for rule in alerts["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = "1s"
    (folder / "alerts.yml").write_text(yaml.safe_dump(alerts))
    made = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    made["global"] = dict.fromkeys(made["global"], "1s")
    (job,) = made["scrape_configs"]
    job["static_configs"] = [{"targets": targets}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(made))
    return path


class Prometheus:
    """A server of a test's own; a context manager that ends it."""

    def __init__(self, configuration: Path) -> None:
        self._folder = configuration.parent
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{trial.getsockname()[1]}"
        self._command = [
            program("prometheus"),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self._folder / 'tsdb'}",
            f"--web.listen-address={self._address}",
        ]

    def __enter__(self) -> Self:
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(self._command, stderr=log, stdout=log)
        self.wait_until(self._is_ready)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()  # what it has stored goes with the test
        self._process.wait()

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://{self._address}/-/ready") as answer:
                return bool(answer.status == 200)
        except URLError:
            return False

    def wait_until(self, fact: Callable[[], object], *, seconds: float = 60) -> None:
        """Wait for a fact while it runs; fail with its log where it ends before."""

        def fact_or_end() -> object:
            return self._process.poll() is not None or fact()

        until(fact_or_end, seconds=seconds)
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()

    def ask(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """Give the data of an answer of the API; fail with what it says where it is an error."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        url = f"http://{self._address}/api/v1/{path}{query}"
        try:
            with urlopen(url) as answer:
                return json.load(answer)["data"]
        except URLError as error:
            body = getattr(error, "read", lambda: b"")()
            raise AssertionError(f"{parameters}: {body.decode()}") from error

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Give what an expression is now."""
        found: list[dict[str, Any]] = self.ask("query", {"query": expression})["result"]
        return found

    def alerts(self, state: str = "firing") -> dict[str, dict[str, Any]]:
        """Give the alerts in a state, by name."""
        found = self.ask("alerts")["alerts"]
        return {one["labels"]["alertname"]: one for one in found if one["state"] == state}

"""The figures that the documentation shows: docs/measured.json, the last of each measurement."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.compared import Figures

DOCS: Final = Path(__file__).parents[1] / "docs"
PATH: Final = DOCS / "measured.json"
_FACTS: Final = (
    *("date", "revision", "modified", "cores", "processor", "system", "postgres", "python"),
)
_LEFT_OUT: Final = ("threads",)


@dataclass(frozen=True)
class Published:
    """Figures by measurement, each with the facts of the run that they are of."""

    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Published":
        return cls(json.loads(PATH.read_text()) if PATH.exists() else {})

    def write(self) -> None:
        PATH.write_text(json.dumps(self.measured, indent=1, sort_keys=True) + "\n")

    def take(self, document: Mapping[str, Any]) -> None:
        """Let a run's figures take the place of earlier ones of the same measurements."""
        facts = {name: document["facts"][name] for name in _FACTS}
        for name, figures in document["measured"].items():
            self.measured[name] = {
                "facts": facts
                | {"scale": document["facts"]["arguments"]["scale"]}
                | {"rounds": max(figure["round"] for figure in figures)}
                | {"load": document["load"][name]},
                "figures": [_without(figure) for figure in figures],
            }

    def figures(self, name: str) -> Figures:
        figures: Figures = self.measured.get(name, {}).get("figures", [])
        return figures

    def facts(self, name: str) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = self.measured[name]["facts"]
        return facts


def _without(figure: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figure.items() if name not in _LEFT_OUT}

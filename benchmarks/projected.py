"""The million changes through a projector that looks at every column, instead of a mirror."""

from dataclasses import dataclass

from benchmarks.workloads import Million


@dataclass(frozen=True)
class Projected(Million):
    """The same backlog; this daemon calls a Python function for each change."""

    name: str = "projected"
    modules: tuple[str, ...] = ("benchmarks.read_models.items",)

    @property
    def title(self) -> str:
        return f"{super().title}, through a projector"

"""Ask for the read tables to be compared, and say what was found: the daemon compares."""

from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from cdc.copy_state import Copy, State, Unit
from cdc.errors import NothingToCopy, SettingError
from cdc.operate import setup
from cdc.operate.follow import Watch
from cdc.projection.registry import Registry
from cdc.settings import Settings
from cdc.sink import quarantine, verifications
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source.connection import connect
from cdc.verify_state import VERDICTS, WHOLE, Mismatch, Phase, Verification

NOT_COMPARED: Final = "not compared: insert_only, its rows have no key"

_SHOWN_AS: Final[dict[Phase, State]] = {
    "waiting": "waiting",
    "comparing": "copying",
    "done": "done",
}
_FIRST: Final = 10  # keys that are shown of each verdict


def ask(
    settings: Settings, projectors: Collection[str], *, sample: float = WHOLE, repair: bool = False
) -> list[Unit]:
    """Ask the daemon, in the read database, for what projectors write to be compared; all: none.

    What is being compared in the same way goes on. Give what is compared. Raise SettingError for an
    unknown projector or a sample that is none, NothingToCopy before the first start.
    """
    if not 0 < sample <= WHOLE:
        raise SettingError(
            f"--sample {sample:g} is no share", hint="give a percentage: above 0, at most 100"
        )
    with closing(connect(settings.source.dsn.get_secret_value())) as source:
        registry = setup.plan(settings, source).registry
    units = _chosen(registry, projectors)
    name = settings.source.slot
    engine = create_engine(settings.read.url.get_secret_value())
    with closing(connect_read(engine)) as read, translated(), read.begin():
        if not verifications.exist(read):
            raise NothingToCopy(
                f"slot {name} is not set up in this read database",
                hint="`cdc run` sets it up, copies and streams; `cdc setup` sets it up alone",
            )
        stored = verifications.load(read, name)
        for unit in units:
            asked = wanted(registry, unit, sample=sample, repair=repair)
            if not _is_under_way(stored.get(unit), asked):
                verifications.ask(read, name, asked)
    return units


def _chosen(registry: Registry, projectors: Collection[str]) -> list[Unit]:
    known = sorted({projector.name for projector in registry.projectors})
    for name in projectors:
        if name not in known:
            raise SettingError(
                f"there is no projector {name}", hint=f"there are: {', '.join(known)}"
            )
    return [u for u in registry.units() if not projectors or u.projector in projectors]


def wanted(
    registry: Registry, unit: Unit, *, sample: float = WHOLE, repair: bool = False
) -> Verification:
    """Give a unit's verification as it is asked for."""
    if registry.appends(unit):
        return Verification(unit, phase="done", sample=sample, repair=repair, note=NOT_COMPARED)
    return Verification(unit, sample=sample, repair=repair)


def _is_under_way(stored: Verification | None, asked: Verification) -> bool:
    if stored is None or not stored.due:
        return False
    return (stored.sample, stored.repair) == (asked.sample, asked.repair)


class VerifyWatch(Watch):
    """Looks at verifications. They are shown as copies are: rows, rate and time left."""

    def look(self) -> None:
        """Look how far they are; raise NothingToCopy where they were dropped, or a ReadError."""
        with translated(), self.reading().begin():
            stored = verifications.load(self.reading(), self._slot)
        self._stored = {unit: _shown(one) for unit, one in stored.items()}
        for unit in self._units:
            if unit not in self._stored:
                raise NothingToCopy(
                    f"the verification of {unit.source} for {unit.projector} is no longer there: "
                    "the pipeline was dropped, or its configuration changed"
                )


def _shown(one: Verification) -> Copy:
    done = one.compared + one.skipped
    state = _SHOWN_AS[one.phase]
    return Copy(one.unit, state=state, asked=one.asked, copied=done, expected=one.expected)


@dataclass(frozen=True, slots=True)
class Result:
    """What was found of one projector. `keys` are the first ones that are kept, as text."""

    projector: str
    compared: int
    skipped: int
    missing: int
    extra: int
    different: int
    mended: int
    notes: list[str]
    keys: list[Mismatch]

    @property
    def mismatched(self) -> int:
        """How many read rows are not as they should be."""
        return self.missing + self.extra + self.different - self.mended

    def lines(self) -> Iterator[str]:
        """Say it for people."""
        if self.compared or self.skipped or not self.notes:
            yield f"{self.projector}: {self._rows()}{self._counts()}"
        yield from (f"{self.projector}: {note}" for note in self.notes)
        for verdict in VERDICTS:
            found = [one for one in self.keys if one.verdict == verdict]
            for one in found[:_FIRST]:
                yield f"  {verdict:9} {one.table} ({', '.join(map(_key_text, one.key))})"
            more = int(getattr(self, verdict)) - min(len(found), _FIRST)
            if more > 0:
                yield f"  {verdict:9} and {more:,} more"

    def _rows(self) -> str:
        if not self.skipped:
            return f"{self.compared:,} rows compared"
        everything = self.compared + self.skipped
        share = 100 * self.compared / everything
        return f"a sample: {self.compared:,} of {everything:,} rows compared ({share:.1f} %)"

    def _counts(self) -> str:
        counts = f", {self.missing:,} missing, {self.extra:,} extra, {self.different:,} different"
        return counts + (f", {self.mended:,} mended" if self.mended else "")

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON's types."""
        return {
            "projector": self.projector,
            "rows_compared": self.compared,
            "rows_skipped": self.skipped,
            "missing": self.missing,
            "extra": self.extra,
            "different": self.different,
            "mended": self.mended,
            "mismatched": self.mismatched,
            "notes": self.notes,
            "keys": [
                {"table": one.table, "verdict": one.verdict, "key": list(one.key)}
                for one in self.keys
            ],
        }


def _key_text(value: str | None) -> str:
    return "null" if value is None else value


def results(settings: Settings, units: Collection[Unit]) -> list[Result]:
    """Give what was found of units, by projector; raise a ReadError."""
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)
    name = settings.source.slot
    with closing(connect_read(engine)) as read, translated(), read.begin():
        stored, keys = verifications.load(read, name), verifications.keys(read, name)
        held, _ = quarantine.load(read, name, isolates=False)
    names = dict.fromkeys(unit.projector for unit in units)
    return [
        _result(
            projector,
            [stored[unit] for unit in units if unit.projector == projector],
            [key for u in units if u.projector == projector for key in keys.get(u, [])],
            set_aside=held.counts()[projector],
        )
        for projector in names
    ]


def _result(
    projector: str, found: list[Verification], keys: list[Mismatch], *, set_aside: int
) -> Result:
    notes = list(dict.fromkeys(one.note for one in found if one.note))
    if set_aside:
        keys_said = "1 key" if set_aside == 1 else f"{set_aside:,} keys"
        notes.append(f"{keys_said} in quarantine, not compared")
    return Result(
        projector=projector,
        compared=sum(one.compared for one in found),
        skipped=sum(one.skipped for one in found),
        missing=sum(one.missing for one in found),
        extra=sum(one.extra for one in found),
        different=sum(one.different for one in found),
        mended=sum(one.mended for one in found),
        notes=notes,
        keys=keys,
    )

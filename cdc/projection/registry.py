"""The projectors in use: imported, checked against one another, looked up by source table."""

import importlib
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import redirect_stdout
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Final

import sqlalchemy as sa

from cdc.change import Relation
from cdc.copy_state import Unit
from cdc.errors import ConfigurationError, ProjectorImportError, RegistryError
from cdc.names import TableName
from cdc.operation import key_columns
from cdc.projection.lines import BulkPlan
from cdc.projection.mirror import Mirror
from cdc.projection.projector import FunctionProjector, Projector

RESERVED: Final = "cdc_"


class Registry:
    """Projectors by the source table they want. Unchanging once built."""

    def __init__(self, projectors: Iterable[Projector]) -> None:
        """Check the projectors against one another; raise RegistryError where they clash."""
        self.projectors = tuple(_resolved(list(projectors)))
        self._by_table: dict[TableName, tuple[Projector, ...]] = {
            name: tuple(p for p in self.projectors if name in p.sources) for name in self.sources
        }

    @property
    def sources(self) -> list[TableName]:
        """The source tables somebody wants, sorted."""
        return sorted({name for projector in self.projectors for name in projector.sources})

    @property
    def read_tables(self) -> list[sa.Table]:
        """The read tables somebody writes, parents before children."""
        tables = {table for projector in self.projectors for table in projector.into}
        return sorted_tables(tables)

    def of(self, name: TableName) -> tuple[Projector, ...]:
        """Give the projectors of a source table."""
        return self._by_table.get(name, ())

    def projector(self, name: str) -> Projector:
        """Give a projector by its name."""
        return next(projector for projector in self.projectors if projector.name == name)

    def units(self) -> list[Unit]:
        """Give what can be copied by itself: each projector's source tables, in read-table order.

        The rows of a table that others reference come before theirs.
        """
        ranks = {table: rank for rank, table in enumerate(self.read_tables)}
        units = [
            (min(ranks[table] for table in projector.into), Unit(projector.name, source))
            for projector in self.projectors
            for source in projector.sources
        ]
        return [unit for _, unit in sorted(units)]

    def shared(self, unit: Unit) -> bool:
        """Tell whether others, or other source tables, write the unit's read tables too."""
        mine = self.projector(unit.projector)
        writers = [p for p in self.projectors if not set(p.into).isdisjoint(mine.into)]
        return len(mine.sources) > 1 or len(writers) > 1

    def appends(self, unit: Unit) -> bool:
        """Tell whether the unit only ever adds rows: what was written before cannot be told."""
        projector = self.projector(unit.projector)
        return isinstance(projector, Mirror) and projector.settings.insert_only

    def wants(self, unit: Unit) -> bool:
        """Tell whether the unit's projector gets its changes."""
        return any(projector.name == unit.projector for projector in self.of(unit.source))

    def only(self, unit: Unit) -> "Registry":
        """Give the registry as if only this unit were wanted."""
        return self._filtered(lambda other: other == unit)

    def without(self, units: Collection[Unit]) -> "Registry":
        """Give the registry as if nobody wanted these units' changes."""
        return self._filtered(lambda unit: unit not in units) if units else self

    def _filtered(self, wanted: Callable[[Unit], bool]) -> "Registry":
        kept = {
            name: tuple(p for p in projectors if wanted(Unit(p.name, name)))
            for name, projectors in self._by_table.items()
        }
        other = copy(self)
        other._by_table = kept  # noqa: SLF001  the same class
        return other

    @property
    def in_bulk(self) -> frozenset[TableName]:
        """The source tables whose rows may be written in bulk: only mirrors want them."""
        return frozenset(
            name
            for name, projectors in self._by_table.items()
            if all(isinstance(p, Mirror) and p.in_bulk for p in projectors)
        )

    def bulk_plans(self, relation: Relation) -> list[tuple[str, BulkPlan]]:
        """Give how rows of a relation are written in bulk, by projector's name.

        Raise ProjectionError where a mirror cannot carry the relation.
        """
        mirrors = (p for p in self.of(relation.name) if isinstance(p, Mirror))
        return [(mirror.name, mirror.bulk_plan(relation)) for mirror in mirrors]


def sorted_tables(tables: Iterable[sa.Table]) -> list[sa.Table]:
    """Order tables so that a foreign key's target comes before its owner, but where in a circle."""
    by_name = sorted(tables, key=lambda table: table.fullname)
    pairs = sa.schema.sort_tables_and_constraints(by_name)  # type: ignore[no-untyped-call]
    return [table for table, _ in pairs if table is not None]


def load(modules: Sequence[str]) -> list[FunctionProjector]:
    """Import the modules and collect their projectors, in the order of their definition.

    The working directory is searched, as `python -m` does. What they print while they are
    imported goes to stderr. Raise ProjectorImportError.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: dict[int, FunctionProjector] = {}
    for module in _imported(modules):
        for value in vars(module).values():
            if isinstance(value, FunctionProjector):
                found.setdefault(id(value), value)
    return list(found.values())


def _imported(modules: Sequence[str]) -> list[ModuleType]:
    """Import in a daemon's thread: a thread that a module starts then keeps no command alive."""
    imported: list[ModuleType] = []
    errors: list[BaseException] = []

    def import_all() -> None:
        try:
            with redirect_stdout(sys.stderr):  # stdout is for the command's answer
                imported.extend(_module(name) for name in modules)
        except BaseException as error:  # noqa: BLE001  raised again by who waits
            errors.append(error)

    thread = threading.Thread(target=import_all, name="import", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return imported


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ConfigurationError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  a module may raise anything, SystemExit too
        raise ProjectorImportError(
            f"projector module {name} does not import: {type(error).__name__}: {error}"
            f"{_place(error)}",
            hint="run `python -c 'import "
            f"{name}'` in the directory the daemon starts in; see [projection] modules",
        ) from None


def _place(error: BaseException) -> str:
    """Say where a module raised; nothing where it has not begun, as of one that is not there."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    return f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""


def _resolved(projectors: list[Projector]) -> list[Projector]:
    _require_distinct_names(projectors)
    _require_distinct_tables(projectors)
    writers = Counter(table for projector in projectors for table in projector.into)
    return [_with_truncates(projector, writers) for projector in projectors]


def _require_distinct_names(projectors: list[Projector]) -> None:
    for name, count in Counter(projector.name for projector in projectors).items():
        if count > 1:
            raise RegistryError(
                f"two projectors are named {name}", hint="give one a name: @projector(name=...)"
            )


def _require_distinct_tables(projectors: list[Projector]) -> None:
    """Refuse two definitions of one read table: their shapes would drift apart."""
    seen: dict[str, sa.Table] = {}
    for projector in projectors:
        for table in projector.into:
            if table.name.startswith(RESERVED):
                raise RegistryError(
                    f"{projector.name} would write {table.fullname}: names that begin with "
                    f"{RESERVED} are the daemon's own",
                    hint="give the mirror a `target`, or the read model another name",
                )
            if seen.setdefault(table.fullname, table) is not table:
                raise RegistryError(
                    f"the read table {table.fullname} is defined twice; "
                    f"one definition is used by {projector.name}",
                    hint="let both projectors write the same Table, or give the mirror a `target`",
                )
            if isinstance(projector, FunctionProjector) and not key_columns(table):
                raise RegistryError(f"the read table {table.fullname} has no primary key")


def _with_truncates(projector: Projector, writers: Counter[sa.Table]) -> Projector:
    """Settle what a truncate of the source empties."""
    if not isinstance(projector, FunctionProjector) or projector.on_truncate is not None:
        return projector
    shared = [table.name for table in projector.into if writers[table] > 1]
    if shared or len(projector.sources) > 1:
        whose = f"shares {shared[0]} with another one" if shared else "has several source tables"
        raise RegistryError(
            f"projector {projector.name} {whose}: say what a truncate of a source means",
            hint="@projector(..., on_truncate=function), called with a Truncated and returning "
            "operations; `lambda change: None` leaves the rows",
        )
    return projector.emptying(projector.into)

"""What the shell is offered for an unfinished word; no database is asked."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import typer

from cdc.errors import CdcError
from cdc.names import TableName
from cdc.projection.mirror import name_of
from cdc.projection.registry import load as load_projectors
from cdc.settings import Settings, load


def projector_names(context: typer.Context, incomplete: str) -> list[str]:
    """Name the projectors that begin so, as far as the configuration alone tells.

    A mirror of a pattern has names that only the write database knows.
    """
    try:
        # What a module prints while it is imported is no answer.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            names = _names(load(context.params.get("config")))
    except CdcError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _names(settings: Settings) -> list[str]:
    mirrors = [(mirror, TableName.parse(mirror.source)) for mirror in settings.projection.mirrors]
    functions = load_projectors(settings.projection.modules)
    named = [name_of(mirror, source) for mirror, source in mirrors if not source.is_pattern]
    return [*(function.name for function in functions), *named]

"""Write the parts of the documentation that the code knows best; `python docs/generate.py`."""

import inspect
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import sqlalchemy as sa
import typer
from prometheus_client import Metric
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import cdc.demo  # noqa: F401  for the errors it defines
from cdc import errors
from cdc.cli import app
from cdc.finding import NAMES as FINDINGS
from cdc.observe.metrics import Metrics
from cdc.projection.mirror import PostgresType
from cdc.servers import ServerFailed
from cdc.settings import MirrorSettings, Settings
from cdc.sink.engine import create_engine

HERE = Path(__file__).parent
NOTE = "<!-- Made by docs/generate.py: change the code, and run it. -->\n"


_INTRODUCTION = (
    "The file is TOML: `--config FILE`, else `CDC_CONFIG`, else `config/cdc.toml`. Every key is "
    "also `CDC_<SECTION>__<KEY>` in the environment, which wins; lists are JSON there. Unknown "
    "keys are errors. [config/cdc.toml](../config/cdc.toml) has them all with comments.\n"
)
_SERIES = (
    "`GET /metrics`, for Prometheus. Base units; labels only from closed sets; every series is "
    "there from the start. `process_*` is there too.\n"
)


def configuration() -> str:
    """Describe every key of the configuration."""
    parts = [
        "# Configuration\n",
        NOTE,
        _INTRODUCTION,
    ]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        parts += [f"## [{name}]\n", _table(section, f"CDC_{name.upper()}__")]
    parts += ["## [[projection.mirrors]]\n", _table(MirrorSettings, None)]
    return "\n".join(parts)


def _table(model: Any, prefix: str | None) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        variable = f"<br>`{prefix}{name.upper()}`" if prefix else ""
        default = "required" if field.is_required() else f"`{_default(field)}`"
        rows.append(f"| `{name}`{variable} | {default} | {_meaning(field)} |")
    return "\n".join(rows) + "\n"


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, frozenset | tuple | dict):
        return "{}" if isinstance(value, dict) else "[]"
    text = getattr(value, "get_secret_value", lambda: value)()
    if isinstance(text, bool):
        return str(text).lower()
    return {None: "none", "": '""'}.get(text, str(text))


def _meaning(field: Any) -> str:
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    one_of = f" One of: {', '.join(choices)}." if choices else ""
    return f"{field.description or ''}{one_of}".replace("|", "\\|")


def metrics() -> str:
    """Describe every metric the daemon serves."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    made = Metrics()
    for family in sorted(made.registry.collect(), key=lambda family: family.name):
        if family.name.startswith("cdc_"):
            suffix = "_total" if family.type == "counter" else ""
            rows.append(
                f"| `{family.name}{suffix}` | {family.type} | {_labels(made, family)} | "
                f"{family.documentation} |"
            )
    return "\n".join(
        [
            "# Metrics\n",
            NOTE,
            _SERIES,
            *rows,
            "",
            _LAG,
        ]
    )


_LAG = """\
`cdc_replication_lag_seconds` is 0 when all that was written is applied, also on an idle database,
and grows while nothing moves although something was written: the write database's position is
sampled every second, and what counts is the age of the oldest sample, or of the oldest received
transaction, that the checkpoint has not reached. While the write database cannot be looked at for
more than 10 s, the time since the last look counts: nobody knows what is written. A daemon that
stands by, or could not begin yet, goes by what the slot's reader has acknowledged.

A position that is not known yet is 0; none of the four is before the one that follows: source,
received, checkpoint, acknowledged. They stay while the daemon is disconnected.

`cdc_slot_seconds_until_lost` is the time that is left if nothing is applied from now on, not a
forecast for a pipeline that keeps up: with a small `max_slot_wal_keep_size` it is small. The
alert `CdcSlotBudget` asks also how much of the budget is used.

`cdc_project_seconds` has an observation for each projector and batch: the rate of its sum is the
share of a core that the projector takes. Of many changes some are timed, for all. `reason` of
`cdc_errors_total` is the error's class, or its parent's ([errors](errors.md)); standing by is no
error. `cdc_reconnects_total` counts a database once it is there again.

The alerts on all this are in [config/prometheus/alerts.yml](../config/prometheus/alerts.yml), what
to do on each in the [runbook](runbook.md), a dashboard in
[config/grafana](../config/grafana/dashboards/cdc.json).
"""


def _labels(made: Metrics, family: Metric) -> str:
    names = dict.fromkeys(label for sample in family.samples for label in sample.labels)
    for collector, registered in made.registry._collector_to_names.items():  # noqa: SLF001
        if family.name in registered:
            names |= dict.fromkeys(getattr(collector, "_labelnames", ()))
    return ", ".join(f"`{name}`" for name in names if name != "le")


def error_table() -> str:
    """Describe every error, as a tree, with exit codes."""
    rows = ["| error | exit code | retried | means |", "|---|---|---|---|"]
    for depth, kind in _tree(errors.CdcError, 0):
        retried = "yes" if kind.transient else ""
        indent = "&nbsp;" * 4 * depth
        meaning = " ".join((kind.__doc__ or "").split())
        rows.append(f"| {indent}`{kind.__name__}` | {kind.exit_code} | {retried} | {meaning} |")
    return "\n".join(rows) + "\n"


def _tree(kind: type[errors.CdcError], depth: int) -> Iterator[tuple[int, type[errors.CdcError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__ or child is ServerFailed:
            yield from _tree(child, depth + 1)


_TYPES = (
    *("smallint", "integer", "bigint", "oid", "boolean", "bytea", "uuid"),
    *("time without time zone", "numeric(12,2)", "numeric", "real", "double precision", "money"),
    *("text", "character varying(20)", "character(5)", "date", "timestamp without time zone"),
    *("timestamp with time zone", "time with time zone", "interval", "json", "jsonb", "integer[]"),
    *("int4range", "inet", "bit(3)", "point", "tsvector", "xml"),
)
_OF_USERS = "a domain is stored as its base type, an enum and any other type as its text"


def storage_table() -> str:
    """Describe what each type of a mirrored column is stored as."""
    rows = [
        "| Postgres | MySQL, MariaDB | there, as the only key column | SQLite |",
        "|---|---|---|---|",
    ]
    for type_sql in _TYPES:
        mysql, key = (
            _stored("mysql+pymysql://h/d", type_sql, primary_key=k) for k in (False, True)
        )
        sqlite = _stored("sqlite:///f", type_sql, primary_key=False)
        rows.append(f"| `{type_sql}` | {mysql} | {'same' if key == mysql else key} | {sqlite} |")
    return "\n".join([*rows, f"| types of your own | {_OF_USERS} | likewise | likewise |"]) + "\n"


def _stored(url: str, type_sql: str, *, primary_key: bool) -> str:
    column = sa.Column("c", PostgresType(type_sql), primary_key=primary_key)
    sa.Table("t", sa.MetaData(), column)
    compiler = create_engine(url).dialect.type_compiler_instance
    said = str(compiler.process(column.type, type_expression=column))
    return f"`{said.partition(' CHARACTER SET')[0]}`"


def read_databases_page() -> str:
    """Put the table between the prose of docs/read-databases.md."""
    return _between("read-databases.md", "storage", storage_table())


def error_page() -> str:
    """Put the table between the prose of docs/errors.md."""
    return _between("errors.md", "errors", error_table())


_CHECKS = """\
`cdc check` looks at all of this, at both databases, and says what it finds all at once: what, why
it matters, and the SQL or setting that mends it. It changes nothing. A database that does not
answer, or stops answering for half a minute, is a finding; the other one is examined all the same.

```console
$ cdc check
blocks  cdc may not replicate  replication_attribute
        why:  a walsender serves only roles that may
        mend: on the write database:
              alter role "cdc" replication;
1 to mend before `cdc run`
```

The last line is `ready` where nothing blocks, and the exit code 0; else it is 1. What is `advice`
may be left as it is. `--json` gives a list of findings with `name`, `what`, `why`, `remedy`,
`blocks`, `where` (`write`, `read`, or `configuration`) and `sql`, a list of statements to be
executed there one by one. Names do not change. A finding that is an error of the daemon's has that
error's name: [errors](errors.md). Where it is to listen (`http.listen`) is tried, too, unless the
daemon answers there.
"""


def checks() -> str:
    """Describe every finding of `cdc check`."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in FINDINGS.items()]
    table = "\n".join(["| finding | says that |", "|---|---|", *rows]) + "\n"
    return f"# What `cdc check` finds\n\n{NOTE}\n{_CHECKS}\n{table}"


_COMMANDS = """\
What `cdc --help` says, in one place. Answers go to stdout, messages and questions to stderr; exit
codes are in [errors](errors.md). What each command is for is told in [operations](operations.md).
`cdc --version` prints the version.

## Shell completion

`cdc --install-completion`, in bash, zsh or fish, sets it up for that shell: open a new one. With
`cdc --show-completion` it prints the script instead. Commands, options and, after `--projector`,
the projectors of the configuration are completed, but for those of patterns; no database is asked.
"""


def commands() -> str:
    """Describe every command, as its help does."""
    parts = ["# Commands\n", NOTE, _COMMANDS]
    for name, function in command_functions(app, "cdc"):
        text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("Examples:")
        parts.append(f"## {name}\n\n{text.strip()}\n")
        parts.append("| | |\n|---|---|\n" + "\n".join(_options(function)) + "\n")
        lines = [f"$ {line.strip()}" for line in examples.splitlines() if line.strip()]
        parts.append("```console\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def command_functions(group: typer.Typer, name: str) -> Iterator[tuple[str, Any]]:
    """Give every command's name and function."""
    for command in group.registered_commands:
        function: Any = command.callback
        yield f"{name} {command.name or function.__name__}", function
    for child in group.registered_groups:
        assert child.typer_instance is not None  # noqa: S101  it was added with one
        yield from command_functions(child.typer_instance, f"{name} {child.name}")


def _options(function: Any) -> Iterator[str]:
    for parameter in inspect.signature(function).parameters.values():
        kind, info = parameter.annotation.__origin__, parameter.annotation.__metadata__[0]
        # In an annotation the first name of an option stands where typer has its default.
        first = [info.default] if isinstance(info.default, str) else []
        words = [*first, *(info.param_decls or ()), info.metavar or _choices(kind)]
        spelled = " ".join(words).strip().replace("|", "\\|")
        usual = parameter.default
        told = (info.help or "").replace("|", "\\|")
        shown = usual not in {None, False, inspect.Parameter.empty}
        yield f"| `{spelled}` | {told}{f' Default: {usual}.' if shown else ''} |"


def _choices(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {float: "NUMBER", str: "TEXT"}.get(kind, "")


def _between(page: str, mark: str, made: str) -> str:
    text = (HERE / page).read_text() if (HERE / page).exists() else ""
    before, _, rest = text.partition(f"<!-- {mark} -->")
    _, _, after = rest.partition(f"<!-- /{mark} -->")
    return f"{before}<!-- {mark} -->\n{made}<!-- /{mark} -->{after}"


def type_table() -> str:
    """Describe every type of the tests' matrix."""
    matrix = runpy.run_path(str(HERE.parent / "tests" / "matrix.py"))
    rows = [
        "| type | a key | mirrored as | in a projector | only as text | wal2json 2.5 |",
        "|---|---|---|---|---|---|",
    ]
    for title, kinds in matrix["GROUPS"].items():
        rows += [f"| **{title}** | | | | | |", *map(_type_row, kinds)]
    rows += [f"| `{name}` | | | | {why} | |" for name, why in matrix["IMPOSSIBLE"].items()]
    return "\n".join(rows) + "\n"


def _type_row(kind: Any) -> str:
    unreadable = [value for value, seen in kind.seen.items() if seen == "unreadable"]
    cells = [
        f"`{kind.sql}`",
        "yes" if kind.key else "",
        f"`{kind.column_type}`" if kind.stored_as else "itself",
        kind.python,
        _listed(unreadable),
        f"{_listed(kind.not_numbers)} stop the stream" if kind.not_numbers else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def type_page() -> str:
    """Put the table between the prose of docs/types.md."""
    return _between("types.md", "types", type_table())


PAGES = {
    "checks.md": checks,
    "commands.md": commands,
    "configuration.md": configuration,
    "errors.md": error_page,
    "metrics.md": metrics,
    "read-databases.md": read_databases_page,
    "types.md": type_page,
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (HERE / page).write_text(make())

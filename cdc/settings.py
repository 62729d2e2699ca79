"""The configuration: a TOML file, and the environment, which wins.

Every key is also `CDC_<SECTION>__<KEY>` in the environment. Unknown keys are errors.
"""

import json
import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from warnings import catch_warnings, filterwarnings

import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ProgrammingError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cdc.errors import SettingError
from cdc.names import TableName

DEFAULT_PATH = Path("config/cdc.toml")
_PREFIX = "CDC_"
_HIGHEST_PORT = 65535
_MOST_BYTES = 1024**2  # of the file: /dev/zero has no end
_DAY = 24 * 3600
_ENCODE = (
    "a host or a port in it is none: in a URL's user and password percent-encode what is special, "
    "@ as %40, / as %2F"
)
_GIBIBYTE = 1024**3
_IN_OUR_WORDS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "is no table"),
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type", "set_type"), "is no list"),
}
_JSON_KEYS = {"projection.modules", "projection.mirrors", "source.trust_nulls"}
_PATH_VARIABLE = "CDC_CONFIG"
_POSTGRES = ("postgresql", "postgresql+psycopg")
_DRIVERS = (
    *_POSTGRES,
    *("mysql", "mysql+pymysql", "mariadb", "mariadb+pymysql"),
    *("sqlite", "sqlite+pysqlite"),
)


def _table_name(text: str) -> str:
    TableName.parse(text)
    return text


def _module_name(text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise ValueError("is no module's name, such as projectors.blog")
    return text


SourceTable = Annotated[str, AfterValidator(_table_name)]
Module = Annotated[str, AfterValidator(_module_name)]


def _holds_secret(hosts: object) -> bool:
    """Tell whether a password ends within the hosts: errors would tell its rest."""
    return any("@" in host[1:] for host in str(hosts or "").split(","))


def _silence(which: str) -> Any:
    return Field(
        30,
        ge=1,
        le=_DAY,
        description=f"How long the {which} database may be silent where it is waited for. Then it "
        "is asked on another connection what it is doing: at work, or waiting for a lock, it is "
        "waited for longer; otherwise the connection is given up and made anew. A host that "
        "vanished is noticed within that time, too.",
    )


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Source(Section):
    """The write database, read by logical replication."""

    dsn: SecretStr = Field(
        description="How to reach the write database, as a libpq URL or key=value string. "
        "The role needs LOGIN and REPLICATION."
    )
    slot: str = Field(
        "cdc",
        pattern=r"^[a-z0-9_]{1,63}$",
        description="The replication slot: lower-case letters, digits and underscores.",
    )
    plugin: Literal["wal2json", "pgoutput"] = Field(
        "wal2json", description="The output plugin the slot decodes with."
    )
    slot_wait_seconds: int = Field(
        60,
        ge=0,
        le=7 * _DAY,
        description="How long creating the slot may wait for transactions that write, before it is "
        "given up with no slot left behind; 0: for ever.",
    )
    heartbeat_seconds: int = Field(
        10,
        ge=0,
        le=7 * _DAY,
        description="How often a message is written into the WAL, to see how long it takes to the "
        "checkpoint; 0: never. It writes no table.",
    )
    publication: str = Field(
        "cdc",
        min_length=1,
        max_length=50,
        description="pgoutput only: the publication's name. A second one, with `_insert` appended, "
        "holds the insert-only tables.",
    )
    trust_nulls: tuple[SourceTable, ...] = Field(
        (),
        description="wal2json before 2.6 only: tables (or patterns) whose float and numeric "
        "columns are known to hold neither NaN nor infinities, so that a null in them is NULL and "
        "is not looked up. See docs/types.md.",
    )
    queue_bytes: int = Field(
        16 * 1024**2,
        ge=64 * 1024,
        le=64 * _GIBIBYTE,
        description="How many bytes of decoded changes may wait in memory before reading pauses.",
    )
    silence_seconds: int = _silence("write")
    failover: bool = Field(
        False,
        description="Have the slot carried along to the physical standbys, which PostgreSQL 17 and "
        "newer can, so that streaming goes on after a failover. See docs/operations.md.",
    )

    @field_validator("dsn")
    @classmethod
    def _parses(cls, dsn: SecretStr) -> SecretStr:
        try:
            given = conninfo_to_dict(dsn.get_secret_value())
        except ProgrammingError:
            raise ValueError("is neither a libpq URL nor a key=value string") from None
        ports = str(given.get("port") or "").split(",")
        if _holds_secret(given.get("host")) or any(port and not port.isdigit() for port in ports):
            raise ValueError(_ENCODE)
        return dsn


class Read(Section):
    """The read database, written through SQLAlchemy."""

    url: SecretStr = Field(
        description="An SQLAlchemy URL: `postgresql+psycopg://`, `mysql+pymysql://` (MySQL and "
        "MariaDB), or `sqlite:///read.db`, which needs no server."
    )
    batch_changes: int = Field(
        20_000,
        ge=1,
        le=1_000_000_000,
        description="The most changes applied in one read-database commit.",
    )
    batch_bytes: int = Field(
        16 * 1024**2,
        ge=64 * 1024,
        le=64 * _GIBIBYTE,
        description="The most bytes of changes applied in one read-database commit. A larger "
        "transaction is still applied atomically, in pieces of this size.",
    )
    silence_seconds: int = _silence("read")

    takeover_seconds: float = Field(
        10.0,
        ge=1,
        le=_DAY,
        description="How long another daemon's session may wait for its client, while nobody reads "
        "the slot, before a daemon that stands by ends it and takes over. The write database tells "
        "a paused one only after its `wal_sender_timeout`: it counts from then.",
    )

    @field_validator("url")
    @classmethod
    def _supported(cls, url: SecretStr) -> SecretStr:
        try:
            parsed = sa.make_url(url.get_secret_value())
        except (sa.exc.ArgumentError, ValueError):
            raise ValueError("is no SQLAlchemy URL: dialect+driver://user@host:port/db") from None
        if _holds_secret(parsed.host):
            raise ValueError(_ENCODE)
        if parsed.drivername not in _DRIVERS:
            known = ", ".join(name for name in _DRIVERS if "+" in name or name == "sqlite")
            raise ValueError(f"names {parsed.drivername}; supported: {known}")
        if parsed.database in {None, "", ":memory:"} and parsed.drivername not in _POSTGRES:
            raise ValueError("names no database: mysql+pymysql://user@host/db, sqlite:///read.db")
        return url


class MirrorSettings(Section):
    """A table carried over as it is, minus, renamed or masked columns."""

    source: SourceTable = Field(description="`schema.table`, or a pattern such as `public.*`.")
    target: str | None = Field(
        None, description="The read table's name; by default the source table's. Not for patterns."
    )
    exclude: frozenset[str] = Field(frozenset(), description="Columns left out.")
    rename: dict[str, str] = Field({}, description="Source column to read column.")
    mask: dict[str, Literal["null", "hash"]] = Field(
        {},
        description="Columns whose values must not leave the write database: `null` writes NULL, "
        "`hash` the SHA-256 of the text (see `projection.hash_key`).",
    )
    insert_only: bool = Field(
        False,
        description="Append inserted rows and ignore updates and deletes: the one way to mirror a "
        "table without a key.",
    )


class ProjectionSettings(Section):
    """What becomes of the changes."""

    modules: tuple[Module, ...] = Field((), description="Python modules that hold projectors.")
    mirrors: tuple[MirrorSettings, ...] = Field((), description="Tables mirrored without code.")
    follow_schema: bool = Field(
        False,
        description="Add a column to a mirror's read table where the source table was given one; "
        "otherwise the daemon stops, with the DDL.",
    )
    on_error: Literal["quarantine", "stop"] = Field(
        "quarantine",
        description="What to do with a change whose projection raises, or that the read database "
        "refuses for good: set it and later changes of its key aside and go on, or stop.",
    )
    quarantine_limit: int = Field(
        100,
        ge=1,
        le=10_000,
        description="How many keys may be set aside; changes of more of them that fail are a "
        "fault, and stop the daemon.",
    )
    hash_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the `hash` mask (HMAC). Without one, short or guessable values can be "
        "found by trying.",
    )

    @property
    def keys_set_aside(self) -> int | None:
        """How many keys may be set aside; None where what fails stops the daemon."""
        return self.quarantine_limit if self.on_error == "quarantine" else None


class CopySettings(Section):
    """The rows that were there before streaming."""

    enabled: bool = Field(
        True,
        description="Copy the rows that exist: on the first start, and later for each table or "
        "projector that is added. Otherwise streaming begins without them, and `cdc copy` "
        "brings them when it is asked to.",
    )
    chunk_bytes: int = Field(
        4 * 1024**2,
        ge=16 * 1024,
        le=256 * 1024**2,
        description="About how many bytes of rows are read, and written in one commit, at once; a "
        "sixteenth of it while changes are streamed. A chunk takes its turn between the stream's "
        "batches: larger ones copy faster, and changes wait longer for those that are being "
        "written.",
    )
    max_rows_per_second: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="How many rows are copied in a second, of all tables together, to spare the "
        "databases; 0: as many as can be.",
    )


class DaemonSettings(Section):
    """The daemon itself."""

    stuck_seconds: int = Field(
        60,
        ge=0,
        le=7 * _DAY,
        description="After so many seconds without progress, while there is something to apply, "
        "the state is `stuck` and `/ready` answers 503; 0: never.",
    )


class Http(Section):
    """Metrics, health and status over HTTP, read-only."""

    listen: str = Field(
        "127.0.0.1:9464",
        pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$",
        description="Address and port; port 0 takes a free one.",
    )

    @field_validator("listen")
    @classmethod
    def _is_a_port(cls, listen: str) -> str:
        if int(listen.rpartition(":")[2]) > _HIGHEST_PORT:
            raise ValueError(f"names a port above {_HIGHEST_PORT}")
        return listen

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


with catch_warnings():
    # The section takes the name of a method that pydantic has deprecated, and warns of that.
    filterwarnings("ignore", 'Field name "copy"', UserWarning)

    class Settings(BaseSettings):
        """Everything the daemon is told."""

        model_config = SettingsConfigDict(
            env_prefix=_PREFIX,
            env_nested_delimiter="__",
            extra="forbid",
            frozen=True,
            hide_input_in_errors=True,
        )

        source: Source
        read: Read
        projection: ProjectionSettings = ProjectionSettings()
        copy: CopySettings = CopySettings()  # type: ignore[assignment]
        daemon: DaemonSettings = DaemonSettings()
        http: Http = Http()

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Let the environment win over the file (whose values `load` passes as init values)."""
            del settings_cls, dotenv_settings, file_secret_settings
            return env_settings, init_settings


_ONE_UNDERSCORE = {
    f"{_PREFIX}{section}_{key}".upper(): f"{_PREFIX}{section}__{key}".upper()
    for section, field in Settings.model_fields.items()
    for key in field.annotation.model_fields  # type: ignore[union-attr]
}


def config_path(path: Path | None) -> Path:
    """Give the configuration file to read: the option, else CDC_CONFIG, else the default."""
    return path or Path(os.environ.get(_PATH_VARIABLE) or DEFAULT_PATH)


def load(path: Path | None = None) -> Settings:
    """Read the file and the environment; raise SettingError naming the key that is wrong."""
    chosen = config_path(path)
    _refuse_unknown_variables()
    content = _read_file(chosen)
    try:
        return Settings(**content)
    except SettingsError as error:
        raise SettingError(
            f"the environment sets a variable that is not JSON: {_not_json() or error}",
            hint='lists and tables in the environment are JSON, such as ["projectors.blog"]',
        ) from None
    except ValidationError as error:
        raise SettingError(_explain(error, chosen), hint=_hint(error)) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise SettingError(
            f"there is no configuration file {path}",
            hint="name one with --config FILE or CDC_CONFIG, or start from config/cdc.toml",
        ) from None
    except (OSError, ValueError) as error:  # a path may hold what none can
        told = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SettingError(f"the configuration file {path} cannot be read: {told}") from None
    if len(content) > _MOST_BYTES:
        raise SettingError(f"the configuration file {path} is larger than {_MOST_BYTES} bytes")
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise SettingError(
            f"the configuration file {path} is not UTF-8, at byte {error.start}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise SettingError(f"{path} is not TOML for us: it is nested too deeply") from None


def _not_json() -> str | None:
    """Name the variable of a list or table whose value cannot be read."""
    for variable, value in os.environ.items():
        section, _, key = variable.removeprefix(_PREFIX).lower().partition("__")
        if variable.startswith(_PREFIX) and f"{section}.{key}" in _JSON_KEYS:
            try:
                json.loads(value)
            except ValueError:
                return f"{variable} ({section}.{key})"
    return None


def _refuse_unknown_variables() -> None:
    """Catch `CDC_SORUCE__DSN` and `CDC_SOURCE_DSN`, which pydantic-settings would ignore.

    Others may begin with CDC_, too: those that Kubernetes sets for a service of that name.
    """
    sections = {name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        if meant := _ONE_UNDERSCORE.get(variable):
            raise SettingError(
                f"the environment sets {variable}, which is no key", hint=f"did you mean {meant}?"
            )
        section = variable.removeprefix(_PREFIX).partition("__")[0].upper()
        known = section in sections or variable == _PATH_VARIABLE
        if variable.startswith(_PREFIX) and "__" in variable and not known:
            near = get_close_matches(section, sections, n=1)
            raise SettingError(
                f"the environment sets {variable}, but there is no section {section.lower()}",
                hint=f"did you mean CDC_{near[0]}__...?" if near else None,
            )


def _explain(error: ValidationError, path: Path) -> str:
    first = _first(error)
    key = _dotted(_loc(first))
    match first["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key {key}"
        case "missing":
            return f"{path}: {key} is missing"
        case "string_pattern_mismatch":
            return f"{path}: {key}: does not fit. {_description(_loc(first))}"
        case kind:
            reason = _IN_OUR_WORDS.get(kind) or first["msg"].removeprefix("Value error, ")
            return f"{path}: {key}: {reason}"


def _first(error: ValidationError) -> ErrorDetails:
    """Choose the error to tell: an unknown key explains why another is missing."""
    errors = error.errors(include_input=False, include_url=False)
    return next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])


def _loc(first: ErrorDetails) -> tuple[int | str, ...]:
    """Give the place of a key; of a section that is missing, that of the key it must have."""
    loc = first["loc"]
    if first["type"] != "missing" or len(loc) > 1:
        return loc
    section: Any = Settings.model_fields[str(loc[0])].annotation
    needed = [name for name, field in section.model_fields.items() if field.is_required()]
    return (*loc, *needed[:1])


def _hint(error: ValidationError) -> str | None:
    first = _first(error)
    loc = _loc(first)
    if first["type"] == "missing":
        variable = _PREFIX + "__".join(str(part).upper() for part in loc)
        return f"set it in the file, or as {variable} in the environment"
    if first["type"] != "extra_forbidden":
        return None
    near = get_close_matches(str(loc[-1]), _keys_at(loc[:-1]), n=1)
    return f"did you mean {_dotted((*loc[:-1], near[0]))}?" if near else None


def _description(loc: tuple[int | str, ...]) -> str:
    return _model_at(loc[:-1]).model_fields[str(loc[-1])].description or ""


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    return list(_model_at(loc).model_fields)


def _model_at(loc: tuple[int | str, ...]) -> Any:
    model: Any = Settings
    for part in loc:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(
                (a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation
            )
    return model


def _dotted(loc: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")

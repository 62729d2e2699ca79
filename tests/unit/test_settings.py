"""The configuration: every error names the key, the environment wins, secrets stay secret."""

import re
from pathlib import Path
from typing import Any

import pytest

from cdc.errors import SettingError
from cdc.settings import Settings, config_path, load

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t"
GOOD = f"""
[source]
dsn = "postgresql://cdc:{SECRET}@localhost/shop"
[read]
url = "postgresql+psycopg://cdc:{SECRET}@localhost/shop_read"
[projection]
hash_key = "{SECRET}"
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("CDC_")]:
        monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "cdc.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SettingError) as caught:
        load(write(folder, text))
    assert caught.value.exit_code == 2
    assert SECRET not in str(caught.value) + str(caught.value.hint)
    return f"{caught.value} | {caught.value.hint}"


def test_the_file_in_the_repository_loads() -> None:
    settings = load(ROOT / "config" / "cdc.toml")
    assert settings.source.slot == "cdc"
    assert settings.http.address == ("127.0.0.1", 9464)


def test_every_key_is_in_the_file_of_the_repository() -> None:
    text = (ROOT / "config" / "cdc.toml").read_text()
    for section, field in Settings.model_fields.items():
        assert f"[{section}]" in text
        for key in field.annotation.model_fields:  # type: ignore[union-attr]
            shown = "[[projection.mirrors]]" if key == "mirrors" else f"{key} ="
            assert shown in text, f"{section}.{key}"


def test_rows_that_exist_are_copied_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = load(write(tmp_path, GOOD)).copy
    assert (copy.enabled, copy.chunk_bytes, copy.max_rows_per_second) == (True, 4 * 1024**2, 0)
    monkeypatch.setenv("CDC_COPY__ENABLED", "false")
    copy = load(write(tmp_path, GOOD + "[copy]\nmax_rows_per_second = 5000")).copy
    assert (copy.enabled, copy.max_rows_per_second) == (False, 5000)


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_SOURCE__SLOT", "other")
    monkeypatch.setenv("CDC_PROJECTION__MODULES", '["a", "b"]')
    settings = load(write(tmp_path, GOOD))
    assert settings.source.slot == "other"
    assert settings.projection.modules == ("a", "b")
    assert SECRET in settings.source.dsn.get_secret_value()


def test_the_environment_alone_may_hold_the_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_SOURCE__DSN", "host=a password=b")
    monkeypatch.setenv("CDC_READ__URL", "postgresql://a")
    settings = load(write(tmp_path, '[source]\nplugin = "pgoutput"\n'))
    assert settings.source.plugin == "pgoutput"
    assert settings.source.dsn.get_secret_value() == "host=a password=b"


def test_the_option_wins_over_the_variable_that_names_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert config_path(None) == Path("config/cdc.toml")
    monkeypatch.setenv("CDC_CONFIG", "")
    assert config_path(None) == Path("config/cdc.toml")
    monkeypatch.setenv("CDC_CONFIG", "/elsewhere")
    assert config_path(None) == Path("/elsewhere")
    assert config_path(Path("here")) == Path("here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("dsn", "dns"), ["source.dns", "source.dsn"]),
        (GOOD.replace("[source]", "[sorce]"), ["sorce", "source"]),
        (GOOD + "[http]\nlisten_on = 'x'", ["http.listen_on", "http.listen"]),
        (GOOD + "bacth = 1", ["projection.bacth"]),
        (
            GOOD + "[[projection.mirrors]]\nsource = 'a'\nexclud = []",
            ["projection.mirrors[0].exclud", "projection.mirrors[0].exclude"],
        ),
        (GOOD + "[[projection.mirrors]]\ntarget = 'a'", ["projection.mirrors[0].source"]),
        (GOOD.replace("dsn =", "# dsn ="), ["source.dsn", "CDC_SOURCE__DSN"]),
        ("", ["source.dsn is missing", "CDC_SOURCE__DSN"]),
        ("source = 3", ["source: is no table"]),
        (GOOD + "modules = 'a.b'", ["projection.modules: is no list"]),
        (GOOD + "modules = ['projectors/blog.py']", ["projection.modules[0]", "projectors.blog"]),
        (GOOD.replace("[read]", "[read]\ntakeover_seconds = inf"), ["read.takeover_seconds"]),
        (GOOD.replace("[read]", "[read]\nbatch_bytes = 99999999999999999999"), ["batch_bytes"]),
        (GOOD.replace("[source]", "[source]\nheartbeat_seconds = 9999999999"), ["heartbeat"]),
        (GOOD + "[daemon]\nstuck_seconds = 99999999999999999999", ["daemon.stuck_seconds"]),
        ("a = " + "[" * 20_000, ["TOML"]),
        ("a = " + "{a = " * 3_000, ["TOML"]),
        (GOOD.replace("[source]", "[source]\nslot = 'My-Slot'"), ["source.slot", "lower-case"]),
        (GOOD.replace("[source]", "[source]\nslot = 3"), ["source.slot"]),
        (GOOD.replace("[source]", "[source]\nplugin = 'decoderbufs'"), ["source.plugin"]),
        (GOOD.replace("[source]", "[source]\npublication = ''"), ["source.publication"]),
        (GOOD.replace("[source]", "[source]\nqueue_bytes = 1"), ["source.queue_bytes"]),
        (GOOD.replace("[source]", "[source]\nslot_wait_seconds = -1"), ["slot_wait_seconds"]),
        (GOOD.replace("[read]", "[read]\nbatch_changes = 0"), ["read.batch_changes"]),
        (GOOD + "[copy]\nchunk_bytes = 1", ["copy.chunk_bytes"]),
        (GOOD + "[copy]\nmax_rows_per_second = -1", ["copy.max_rows_per_second"]),
        (GOOD + "[copy]\nenable = false", ["copy.enable", "copy.enabled"]),
        (GOOD.replace("postgresql+psycopg", "mysql+mysqldb"), ["read.url", "mysql+pymysql"]),
        (GOOD.replace("postgresql+psycopg", "oracle"), ["read.url", "oracle", "sqlite"]),
        (GOOD.replace("postgresql+psycopg", "postgresql+asyncpg"), ["read.url", "asyncpg"]),
        (GOOD.replace("postgresql+psycopg://", ""), ["read.url"]),
        (GOOD.replace("postgresql://", "mongo://"), ["source.dsn"]),
        (GOOD + "[http]\nlisten = '9464'", ["http.listen", "Address and port"]),
        (GOOD + "[http]\nlisten = 'localhost:99999'", ["http.listen"]),
        (GOOD + "[[projection.mirrors]]\nsource = 'a.b.c'", ["projection.mirrors[0].source"]),
        (
            GOOD + "[[projection.mirrors]]\nsource = 'a'\nmask = {x = 'md5'}",
            ["projection.mirrors[0].mask.x"],
        ),
        ("[source", ["TOML"]),
    ],
)
def test_an_error_names_the_key_and_the_nearest_right_one(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    message = refusal(tmp_path, text)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://u:p@x:{SECRET}@host/db",
        f"postgresql+psycopg://u:p@host:{SECRET}/db",
        f"postgresql+nosuch://u:{SECRET}@host/db",
        f"postgresql+psycopg://u:p@{SECRET}@host/db",
        f"mysql+pymysql://u:p@{SECRET}@host/db",
        f"{SECRET}",
        f"host=a password={SECRET}",
    ],
)
def test_a_malformed_url_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    text = GOOD.replace(f"postgresql+psycopg://cdc:{SECRET}@localhost/shop_read", url)
    assert "read.url" in refusal(tmp_path, text)


READ = f"postgresql+psycopg://cdc:{SECRET}@localhost/shop_read"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/db",
        "mysql://host/db",
        "mysql+pymysql://u:p@host:3306/db",
        "mariadb+pymysql://host/db",
        "sqlite:///read.db",
        "sqlite+pysqlite:////var/lib/read.db",
    ],
)
def test_a_read_database_may_be_of_any_of_these_dialects(tmp_path: Path, url: str) -> None:
    file = tmp_path / "cdc.toml"
    file.write_text(GOOD.replace(READ, url))
    assert load(file).read.url.get_secret_value() == url


@pytest.mark.parametrize("url", ["mysql+pymysql://host", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_names_no_database_is_refused(tmp_path: Path, url: str) -> None:
    assert "names no database" in refusal(tmp_path, GOOD.replace(READ, url))


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{SECRET}@h:x:y/%zz",
        f"postgresql://u:p@{SECRET}@h/d",
        f"postgresql://u:{SECRET}/p@h/d",
        f"password={SECRET} nosuch=1",
        f"pass {SECRET}",
    ],
)
def test_a_malformed_dsn_is_refused_without_its_password(tmp_path: Path, dsn: str) -> None:
    text = GOOD.replace(f'postgresql://cdc:{SECRET}@localhost/shop"', f'{dsn}"')
    assert "source.dsn" in refusal(tmp_path, text)


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    settings = load(write(tmp_path, GOOD))
    shown = f"{settings!r} {settings} {settings.source!r} {settings.read} {settings.projection}"
    assert SECRET not in shown + settings.model_dump_json()


def test_hosts_of_every_kind_are_taken(tmp_path: Path) -> None:
    for hosts in ("host=@abstract", "host=/run/pg", "host=a,::1 port=1,2", "host=a,b port=5432,"):
        load(write(tmp_path, GOOD.replace(f"postgresql://cdc:{SECRET}@localhost/shop", hosts)))


def test_a_missing_file_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no configuration file") as caught:
        load(tmp_path / "none.toml")
    assert "--config" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not UTF-8"),
        (lambda path: path.symlink_to("/dev/zero"), "is larger than"),
    ],
)
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "cdc.toml"
    make(path)
    with pytest.raises(SettingError, match=f"{re.escape(str(path))} {said}"):
        load(path)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CDC_SORUCE__DSN", "x", ["CDC_SORUCE__DSN", "CDC_SOURCE__"]),
        ("CDC_SOURCE__DNS", "x", ["source.dns", "source.dsn"]),
        ("CDC_SOURCE_DSN", SECRET, ["CDC_SOURCE_DSN", "did you mean CDC_SOURCE__DSN?"]),
        ("CDC_SOURCE__PLUGIN", "x", ["source.plugin"]),
        ("CDC_SOURCE", SECRET, ["source"]),
        ("CDC_PROJECTION__MIRRORS", f"[{SECRET}", ["CDC_PROJECTION__MIRRORS"]),
        ("CDC_PROJECTION__MODULES", SECRET, ["CDC_PROJECTION__MODULES"]),
        ("CDC_HTTP__LISTEN", "nowhere", ["http.listen"]),
    ],
)
def test_an_error_in_the_environment_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: list[str]
) -> None:
    monkeypatch.setenv(variable, value)
    message = refusal(tmp_path, GOOD)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_an_address_may_be_of_either_family(
    tmp_path: Path, listen: str, address: tuple[str, int]
) -> None:
    assert load(write(tmp_path, f"{GOOD}[http]\nlisten = '{listen}'")).http.address == address

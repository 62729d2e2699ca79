"""Hold the deployment files to their schemas, and to each other."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from cdc.errors import ConfigurationError, QuarantineFull, SchemaChanged, StartRefused
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "config/postgres/Dockerfile"]
SCRIPTS = [ROOT / ".ci/run", ROOT / "tests/install-components"]
IMAGE = re.compile(r"[a-z0-9./-]+:[\w.-]*\d[\w.-]*")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE.read_text())


@pytest.fixture(scope="module")
def daemon_port() -> int:
    """The port that the daemon listens on unless told otherwise."""
    settings = tomllib.loads((ROOT / "config/cdc.toml").read_text())
    return int(settings["http"]["listen"].rpartition(":")[2])


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile as its name and what follows it."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = (line.partition(" ") for line in whole.splitlines() if line.strip())
    return [(name, rest.strip()) for name, _, rest in split]


def arguments_of(dockerfile: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(dockerfile) if instruction == name]


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def with_defaults(text: str) -> str:
    """What compose makes of `${NAME:-default}` where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_compose_file_follows_the_compose_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, COMPOSE_FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_compose_mounts_or_builds_from_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        if "build" in service:
            assert (ROOT / service["build"] / "Dockerfile").is_file()
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            is_path = source.startswith(".")
            assert (ROOT / source).exists() if is_path else source in compose["volumes"], mount


def test_every_image_has_a_version(compose: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values() if "image" in service]
    for dockerfile in DOCKERFILES:
        images += [image.split()[0] for image in arguments_of(dockerfile, "FROM")]
    assert [image for image in images if not IMAGE.fullmatch(image)] == []


def test_the_write_database_allows_wal2json_on_a_version_that_knows_the_setting(
    compose: dict[str, Any],
) -> None:
    command = compose["services"]["write"]["command"]
    settings = dict(word.split("=", 1) for word in command if "=" in word)
    assert settings["wal_level"] == "logical"
    plugins = settings["output_plugin_libraries"].split(", ")
    assert plugins == ["pgoutput", "test_decoding", "wal2json"]

    (image,) = arguments_of(ROOT / "config/postgres/Dockerfile", "FROM")
    major, minor = image.removeprefix("postgres:").split(".")
    assert (int(major), int(minor)) >= (17, 11)


def test_the_databases_that_compose_makes_are_the_ones_the_daemon_is_pointed_to(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    daemon = environment_of(services["daemon"])
    for variable, name in [("CDC_SOURCE__DSN", "write"), ("CDC_READ__URL", "read")]:
        database = environment_of(services[name])
        url = urlsplit(with_defaults(daemon[variable]))
        assert (url.hostname, url.port, url.path) == (name, 5432, f"/{database['POSTGRES_DB']}")
        assert (url.username, url.password) == ("cdc", with_defaults(database["CDC_PASSWORD"]))


@pytest.mark.parametrize("name", ["write", "read"])
def test_the_init_sql_reads_only_variables_that_compose_sets(
    compose: dict[str, Any], name: str
) -> None:
    sql = (ROOT / f"config/postgres/{name}.sql").read_text()
    read = set(re.findall(r"^\\getenv \w+ (\w+)$", sql, flags=re.MULTILINE))
    assert read
    assert read <= set(environment_of(compose["services"][name]))


def test_the_daemon_listens_where_compose_and_prometheus_look_for_it(
    compose: dict[str, Any], daemon_port: int
) -> None:
    daemon = compose["services"]["daemon"]
    assert environment_of(daemon)["CDC_HTTP__LISTEN"] == f"0.0.0.0:{daemon_port}"
    assert [port.rpartition(":")[2] for port in daemon["ports"]] == [str(daemon_port)]

    prometheus = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())
    targets = [
        target
        for scrape in prometheus["scrape_configs"]
        for group in scrape["static_configs"]
        for target in group["targets"]
    ]
    assert targets == [f"daemon:{daemon_port}"]


def test_nothing_is_published_beyond_this_machine(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_grafana_asks_the_prometheus_of_the_compose_file(compose: dict[str, Any]) -> None:
    provisioned = ROOT / "config/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert urlsplit(source["url"]).hostname in compose["services"]


def mounted_at(service: dict[str, Any], target: str) -> Path:
    (source,) = [m.split(":")[0] for m in service["volumes"] if m.split(":")[1] == target]
    return ROOT / source


def test_prometheus_finds_its_alerts_and_grafana_its_dashboard_where_compose_mounts_them(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    configuration = mounted_at(services["prometheus"], "/etc/prometheus") / "prometheus.yml"
    for name in yaml.safe_load(configuration.read_text())["rule_files"]:
        assert (configuration.parent / name).is_file()
    provided = mounted_at(services["grafana"], "/etc/grafana/provisioning/dashboards")
    (provider,) = yaml.safe_load((provided / "cdc.yml").read_text())["providers"]
    folder = mounted_at(services["grafana"], provider["options"]["path"])
    assert [path.name for path in folder.iterdir()] == ["cdc.json"]


def test_the_daemon_s_image_runs_cdc_and_not_as_root() -> None:
    dockerfile = ROOT / "Dockerfile"
    (user,) = arguments_of(dockerfile, "USER")
    assert int(user) > 0
    assert [json.loads(words) for words in arguments_of(dockerfile, "ENTRYPOINT")] == [["cdc"]]
    assert [json.loads(words) for words in arguments_of(dockerfile, "CMD")] == [["run"]]


def test_the_healthcheck_asks_the_port_that_the_daemon_listens_on(daemon_port: int) -> None:
    (check,) = arguments_of(ROOT / "Dockerfile", "HEALTHCHECK")
    python, option, code = json.loads(check.partition("CMD ")[2])
    assert (python, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{daemon_port}/live" in code
    assert arguments_of(ROOT / "Dockerfile", "EXPOSE") == [str(daemon_port)]


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = [words.split() for words in arguments_of(ROOT / "Dockerfile", "COPY")]
    sources = {word for *words, _ in copies for word in words if not words[0].startswith("--from=")}
    assert sources == kept
    assert sorted(source for source in sources if not (ROOT / source).exists()) == []


def test_no_password_stands_outside_compose() -> None:
    files = [path for path in (ROOT / "config").rglob("*") if path.is_file()]
    in_url = re.compile(r"://[^\s:/@]+:[^\s@]+@")
    assigned = re.compile(r"(?im)^\s*(?!#)\S*(?:password|secret|token)\S*\s*[:=]\s*(?!false\b)\S")
    for path in [*files, *DOCKERFILES, ROOT / "Makefile", *SCRIPTS]:
        text = path.read_text()
        assert not in_url.search(text), path
        assert not assigned.search(text), path


def test_every_password_in_compose_can_be_set_from_the_environment(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in environment_of(service).items():
            if name.endswith("PASSWORD"):
                assert re.fullmatch(r"\$\{\w+:-\w+\}", value), name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    shell = shlex.split(script.read_text().splitlines()[0].removeprefix("#!"))
    assert shell in (["/bin/sh"], ["/bin/bash"])
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_default_configuration_listens_on_loopback() -> None:
    settings = tomllib.loads((ROOT / "config/cdc.toml").read_text())
    assert settings["http"]["listen"].startswith("127.0.0.1:")


UNIT = ROOT / "config/systemd/cdc.service"
MANIFESTS = ROOT / "config/kubernetes/cdc.yaml"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    require(analyze, "systemd-analyze")
    # It also looks for the program, which is installed where the unit is.
    unit = tmp_path / "cdc.service"
    unit.write_text(UNIT.read_text().replace("/opt/cdc/bin/cdc", sys.executable))
    done = subprocess.run(
        [str(analyze), "verify", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_not_restarted_for_what_no_restart_mends() -> None:
    (codes,) = re.findall(r"^RestartPreventExitStatus=(.*)$", UNIT.read_text(), re.MULTILINE)
    listed = set(map(int, codes.split()))
    refused = {kind.exit_code for kind in StartRefused.__subclasses__()}
    others = {kind.exit_code for kind in (ConfigurationError, SchemaChanged, QuarantineFull)}
    assert refused | others == listed


def test_the_manifests_follow_the_schemas_of_kubernetes() -> None:
    kinds = []
    for manifest in yaml.safe_load_all(MANIFESTS.read_text()):
        kinds.append(manifest["kind"])
        if manifest["kind"] == "PodMonitor":  # of the Prometheus Operator, which has its own
            assert manifest["spec"].keys() == {"jobLabel", "selector", "podMetricsEndpoints"}
        else:
            kubernetes_validate.validate(manifest, "1.31", strict=True)
    assert kinds == ["Deployment", "PodDisruptionBudget", "PodMonitor"]


def test_the_manifests_are_of_the_port_and_the_user_of_the_image(daemon_port: int) -> None:
    deployment, _, monitor = yaml.safe_load_all(MANIFESTS.read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert monitor["spec"]["jobLabel"] in deployment["spec"]["template"]["metadata"]["labels"]
    assert port["containerPort"] == daemon_port
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert str(pod["securityContext"]["runAsUser"]) in arguments_of(ROOT / "Dockerfile", "USER")

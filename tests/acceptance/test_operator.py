"""A new operator's way, from the documents alone: to a running pipeline, and through three alerts.

What is shipped is used as it is: the SQL for the roles, the README's configuration, the alerts and the
runbook, whose commands and SQL are read out of it. Not there are systemd and curl: `systemctl start`
does what the unit does (`cdc run`), `systemctl status` and `journalctl` show the log, and the pages
that curl asks for are asked for here. Prometheus' configuration is changed in the points that
`shipped_configuration` states.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psycopg
import pytest

from cdc.servers import Server
from tests.acceptance.conftest import FAST, SECONDS, until
from tests.conftest import ROOT, installation
from tests.prometheus.server import Prometheus, shipped_configuration

README = (ROOT / "README.md").read_text()
POSTGRES = ROOT / "config" / "postgres"
PASSWORD = "operators-own"
NO_BAD = "alter table cdc.author_read add constraint no_bad check (name <> 'bad')"
MENDED = "alter table cdc.author_read drop constraint no_bad"
WRITE, READ = "shop", "shop_read"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """What the operator has: a server with the application's database, and an empty one."""
    with Server(installation(), FAST, auth="scram-sha-256") as running:
        running.create_database(WRITE)
        running.create_database(READ)
        tables = (POSTGRES / "write.sql").read_text()
        for made in re.findall(r"^create table .*?;$", tables, re.MULTILINE | re.DOTALL):
            running.psql(made, WRITE)
        running.psql(
            "create table authors (id int primary key, name text not null, password_hash text);"
            "insert into authors select i, 'name ' || i, 'secret' from generate_series(1, 100) i;"
            "insert into posts (title, body, author) select 't', 'b', 'a' "
            "from generate_series(1, 100);"
            "insert into comments (post_id, author, body) select id, 'a', 'c' from posts",
            WRITE,
        )
        yield running


class Operator:
    """Follows the documents: where the configuration is, and what has been started."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{trial.getsockname()[1]}"
        self.daemon: subprocess.Popen[str] | None = None
        (self.folder / "cdc.toml").write_text(readme_configuration())
        here = f"127.0.0.1:{server.port}"
        ours = {name: text for name, text in os.environ.items() if not name.startswith("CDC_")}
        self.environment = ours | {
            "CDC_CONFIG": str(self.folder / "cdc.toml"),
            "CDC_SOURCE__DSN": f"postgresql://cdc:{PASSWORD}@{here}/{WRITE}",
            "CDC_SOURCE__PLUGIN": "pgoutput",
            "CDC_READ__URL": f"postgresql+psycopg://cdc:{PASSWORD}@{here}/{READ}",
            "CDC_HTTP__LISTEN": self.address,
            "CDC_DAEMON__STUCK_SECONDS": "2",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }

    def does(self, line: str) -> str:
        """Do what a line of the documents says, and give what it prints."""
        words = shlex.split(line)
        match words:
            case ["cdc", *arguments]:
                return self.cdc(*arguments).stdout
            case ["curl", "-s", url]:
                with urlopen(url.replace("127.0.0.1:9464", self.address)) as answer:
                    return str(answer.read().decode())
            case ["systemctl", "start", "cdc"]:
                self.start()
                return ""
            case ["systemctl", "status", "cdc"] | ["journalctl", "-u", "cdc", *_]:
                return (self.folder / "log").read_text()
            case _:
                pytest.fail(f"nobody has said how to do: {line}")

    def cdc(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "cdc", *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            cwd=self.folder,
            env=self.environment,
        )

    def start(self) -> None:
        """Start the daemon, as the unit does."""
        with (self.folder / "log").open("a") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "cdc", "run"],
                stderr=log,
                stdout=log,
                text=True,
                cwd=self.folder,
                env=self.environment,
            )

    def end(self, number: signal.Signals) -> int:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        return self.daemon.wait(SECONDS)

    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://{self.address}/ready"):
                return True
        except HTTPError as error:
            error.close()
        except URLError:  # it has not begun to listen
            pass
        return False

    def writes(self, sql: str) -> None:
        """Write as the application does, which knows nothing of all this."""
        self.server.psql(sql, WRITE)

    def reads(self, sql: str) -> list[tuple]:
        return self.server.psql(f"set search_path = cdc; {sql}", READ)

    def same(self) -> bool:
        query = "select count(*), sum(hashtextextended(id || name, 0)) from "
        return self.server.psql(query + "authors", WRITE) == self.reads(query + "author_read")


@pytest.fixture
def operator(server: Server, tmp_path: Path) -> Iterator[Operator]:
    made = Operator(server, tmp_path)
    yield made
    if made.daemon is not None and made.daemon.poll() is None:
        made.end(signal.SIGKILL)


def readme_configuration() -> str:
    (block,) = [b for b in blocks(README, "toml") if "[projection]" in b]
    return block


def blocks(text: str, language: str) -> list[str]:
    """Give the blocks of a language in a document, also those that are indented in a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


class Section:
    """A section of the runbook, which an alert points to."""

    def __init__(self, url: str) -> None:
        path, _, anchor = url.partition("#")
        sections = re.split(r"^## ", (ROOT / path).read_text(), flags=re.MULTILINE)
        (self.text,) = [one for one in sections if one.partition("\n")[0].lower() == anchor]

    def part(self, name: str) -> str:
        return re.split(r"^\*\*", self.text.partition(f"\n**{name}**")[2], flags=re.MULTILINE)[0]

    def lines(self, part: str) -> list[str]:
        """Give the commands to be typed."""
        typed = "".join(blocks(self.part(part), "console"))
        return re.findall(r"^\$ (.*?)(?: +#.*)?$", typed, re.MULTILINE)

    def sql(self, part: str) -> list[str]:
        return blocks(self.part(part), "sql")


def fired(prometheus: Prometheus, name: str) -> Section:
    """Wait until an alert fires, and it alone; give what it points to."""
    prometheus.wait_until(lambda: name in prometheus.alerts())
    firing = prometheus.alerts()
    assert set(firing) == {name}
    annotations = firing[name]["annotations"]
    assert "error" not in annotations["summary"]
    return Section(annotations["runbook_url"])


def resolved(prometheus: Prometheus) -> None:
    """Wait until nothing fires, and nothing is about to: it is seen to stream."""
    prometheus.wait_until(lambda: prometheus.query('cdc_state{state="streaming"} == 1'))
    prometheus.wait_until(lambda: prometheus.alerts() == {})


def test_from_the_readme_to_a_running_pipeline_and_through_alerts_by_the_runbook(
    operator: Operator, tmp_path: Path
) -> None:
    sets_up_as_the_readme_says(operator)
    configuration = shipped_configuration(tmp_path, [operator.address])
    with Prometheus(configuration) as prometheus:
        resolved(prometheus)
        poison_is_replayed(operator, prometheus)
        a_daemon_that_died_is_started(operator, prometheus)
        a_lock_in_the_read_database_is_ended(operator, prometheus)
    assert operator.cdc("verify").returncode == 0
    assert operator.end(signal.SIGTERM) == 0


def sets_up_as_the_readme_says(operator: Operator) -> None:
    steps = README.partition("## On your own Postgres")[2].partition("\n## ")[0]
    assert "names whatever is missing" in steps
    for database, file in ((WRITE, "write-role.sql"), (READ, "read-role.sql")):
        assert f"config/postgres/{file}" in steps
        operator.server.psql((POSTGRES / file).read_text(), database)
    operator.server.psql(f"alter role cdc password '{PASSWORD}'")  # \password, in psql
    while found := [one for one in findings(operator) if one["blocks"]]:
        assert "owner" in found[0]["remedy"], found
        assert found[0]["sql"], found
        for statement in found[0]["sql"]:
            operator.writes(statement)
    assert operator.does("cdc setup").startswith("ready to stream from ")
    operator.does("systemctl start cdc")
    until(operator.is_ready, what="it streams")
    assert operator.does("cdc status").startswith("fine")
    until(operator.same, what="the rows that were there are copied")


def findings(operator: Operator) -> list[dict]:
    return list(json.loads(operator.does("cdc check --json")))


def poison_is_replayed(operator: Operator, prometheus: Prometheus) -> None:
    operator.server.psql(NO_BAD, READ)
    operator.writes("update authors set name = 'bad' where id = 7")
    section = fired(prometheus, "CdcQuarantineNotEmpty")
    (look,) = section.lines("Look")
    listed = operator.does(look)
    assert "public.authors (7)" in listed
    assert "no_bad" in listed
    operator.server.psql(MENDED, READ)
    (replay,) = section.lines("Do")
    assert operator.does(replay).startswith("replayed 1 of 1")
    resolved(prometheus)
    assert "(7)" not in operator.does(look)
    assert operator.same()


def a_daemon_that_died_is_started(operator: Operator, prometheus: Prometheus) -> None:
    operator.end(signal.SIGKILL)
    operator.writes("update authors set name = name || '!'")
    section = fired(prometheus, "CdcDown")
    seen = "".join(map(operator.does, section.lines("Look")))
    assert "`cdc run` goes on from the checkpoint" in seen
    (start,) = section.lines("Do")
    operator.does(start)
    resolved(prometheus)
    until(operator.same, what="what was written meanwhile is there")


def a_lock_in_the_read_database_is_ended(operator: Operator, prometheus: Prometheus) -> None:
    with closing(psycopg.connect(operator.server.dsn(READ))) as somebody:
        somebody.execute("lock table cdc.author_read in access exclusive mode")
        operator.writes("update authors set name = name || '?'")
        section = fired(prometheus, "CdcNotProgressing")
        seen = "".join(map(operator.does, section.lines("Look")))
        assert '"because": "writing to the read database' in seen
        ((pid, *_),) = operator.server.psql(section.sql("Do")[0], READ)
        (ends,) = re.findall(r"`(select pg_terminate_backend\(PID\))`", section.part("Do"))
        operator.server.psql(ends.replace("PID", str(pid)), READ)
    resolved(prometheus)
    until(operator.same, what="what was written meanwhile is there")

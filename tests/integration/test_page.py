"""The status page, as a browser shows it."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import PATIENCE, Configuration, Database, RunningDaemon, require, until

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    require(chromium, "Chromium")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        # Whoever runs the tests as root has no sandbox; it shows our own page alone.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on a phone, in the dark; what it logs is a failure, but for an answer that fails."""
    opened = browser.new_page(viewport={"width": 380, "height": 700}, color_scheme="dark")
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("console", lambda message: said.append(message.text))
    yield opened
    opened.close()
    assert [line for line in said if "Failed to load resource" not in line] == []


def url(daemon: RunningDaemon) -> str:
    daemon.wait_until(lambda: "listening" in daemon.log)
    return re.findall(r"url=(\S+)", daemon.log)[0]


def figure(page: Page, name: str) -> str:
    return page.locator(f"dl div:has(dt:text-is('{name}')) dd").inner_text()


@pytest.fixture
def configured(write: Database, configuration: Configure) -> Configuration:
    write.run('create table "t<b>" (id int primary key)')
    made = configuration("pgoutput", mirrors=[{"source": "public.t<b>"}])
    return made.with_(daemon={"stuck_seconds": 1})


def test_it_shows_what_the_daemon_says(
    configured: Configuration, write: Database, read: Database, cdc_start: Start, page: Page
) -> None:
    daemon = cdc_start(configured)
    daemon.wait_started()
    for number in range(5):
        write.connection.execute('insert into "t<b>" values (%s)', [number])
    daemon.wait_for(write.run('delete from "t<b>" where id = 0'))
    page.goto(url(daemon))
    expect(page.locator("#word")).to_have_text("streaming")
    expect(page.locator("#figures")).to_contain_text("transactions applied")

    def status() -> Any:
        return json.loads(urlopen(f"{url(daemon)}/status").read())

    assert figure(page, "transactions applied") == str(status()["transactions_applied"]) == "6"
    (row,) = page.locator("#projectors tr:has(td)").all()
    assert row.locator("td").all_inner_texts()[:2] == ["mirror:public.t<b>", "6"]
    assert page.locator("#copies tr:has(td)").count() == 1
    # It moves on with what is written elsewhere.
    until(lambda: figure(page, "checkpoint") == status()["checkpoint_lsn"])
    expect(page.locator("#caption")).to_contain_text("highest in")
    # Nothing is wider than the phone, tables neither: quarantine is in the last column.
    wide = "[...document.querySelectorAll('html, .wide')].map((one) => one.scrollWidth)"
    assert max(page.evaluate(wide)) <= 380
    # What waits for somebody is said at the top, though it streams.
    read.run('alter table "t<b>" add check (id <> 99)')
    write.run('insert into "t<b>" values (99)')
    expect(page.locator("#needs")).to_contain_text("1 in quarantine: cdc quarantine list")
    expect(page.locator("#word")).to_have_text("streaming")


def test_it_says_stuck_and_why_and_that_it_moves_again(
    configured: Configuration, write: Database, read: Database, cdc_start: Start, page: Page
) -> None:
    daemon = cdc_start(configured)
    daemon.wait_started()
    page.goto(url(daemon))
    with psycopg.connect(read.dsn) as reader:
        reader.execute('lock table "t<b>" in access exclusive mode')
        write.run('insert into "t<b>" values (1)')
        expect(page.locator("#word")).to_have_text("stuck")
        expect(page.locator("#because")).to_contain_text("writing to the read database")
    expect(page.locator("#word")).to_have_text("streaming")


def test_it_says_standby(configured: Configuration, cdc_start: Start, page: Page) -> None:
    cdc_start(configured).wait_started()
    page.goto(url(cdc_start(configured)))
    expect(page.locator("#word")).to_contain_text("standby")


def test_it_says_disconnected_and_what_helps(
    configured: Configuration, cdc_start: Start, page: Page
) -> None:
    nobody = configured.with_(source={"dsn": "postgresql://cdc@127.0.0.1:1/shop"})
    page.goto(url(cdc_start(nobody)))
    expect(page.locator("#word")).to_contain_text("disconnected")
    expect(page.locator("#errors")).to_contain_text("write database")
    expect(page.locator("#errors")).to_contain_text("start it, or correct source.dsn")


def test_it_says_when_the_daemon_does_not_answer(
    configured: Configuration, cdc_start: Start, page: Page
) -> None:
    daemon = cdc_start(configured)
    daemon.wait_started()
    page.goto(url(daemon))
    expect(page.locator("#word")).to_have_text("streaming")
    daemon.kill()
    expect(page.locator("#word")).to_have_text("no answer")
    expect(page).to_have_title("no answer - cdc")


def waited(daemon: RunningDaemon, query: str) -> tuple[int, str]:
    answer: HTTPResponse
    try:
        with urlopen(f"{url(daemon)}/wait?{query}") as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_who_asks_for_a_position_is_answered_once_it_is_reached(
    configured: Configuration, write: Database, read: Database, cdc_start: Start
) -> None:
    daemon = cdc_start(configured)
    daemon.wait_started()
    for number in range(1, 6):
        write.connection.execute('insert into "t<b>" values (%s)', [number])
        lsn = write.value("select pg_current_wal_insert_lsn()::text")
        assert waited(daemon, f"lsn={lsn}&timeout=10")[0] == 200
        assert read.value('select count(*) from "t<b>"') == number
    assert waited(daemon, "lsn=FFFFFF/0&timeout=0.05")[0] == 504
    for query in ("", "lsn=<b>", "lsn=0/1&timeout=99", "lsn=0/1&timeout=nan"):
        code, text = waited(daemon, query)
        assert (code, "<b>" in text) == (400, False), query

"""The documentation says what the code does."""

import re
import runpy
from pathlib import Path

import pytest
import typer

from cdc.cli import app
from cdc.settings import load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="generate")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", sorted(GENERATE["PAGES"]))
def test_generated_pages_are_what_the_code_says(page):
    assert (ROOT / "docs" / page).read_text() == GENERATE["PAGES"][page](), "run docs/generate.py"


def commands() -> dict[str, list[str]]:
    return dict(named(typer.main.get_command(app)))


def named(group, before=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from named(command, f"{name} ")
        else:
            yield before + name, [opt for parameter in command.params for opt in parameter.opts]


@pytest.mark.parametrize(("command", "options"), sorted(commands().items()))
def test_every_command_and_option_is_described(command, options):
    text = (ROOT / "docs" / "operations.md").read_text()
    assert f"`cdc {command}" in text
    for option in options:
        assert option in text, option


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_in_it_runs(page):
    for source in blocks(page, "python"):
        exec(compile(source, page.name, "exec"), {"__name__": f"docs_{page.stem}"})  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_configuration_in_it_is_valid(page, tmp_path):
    for number, source in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(source)
        load(file)


def test_the_shipped_configuration_is_valid():
    assert load(ROOT / "config" / "cdc.toml").projection.modules == ("projectors.blog",)


def test_the_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z]+)", page.read_text())) <= targets


def test_every_fault_names_tests_that_exist():
    text = (ROOT / "docs" / "reliability.md").read_text()
    defined = "".join(page.read_text() for page in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"::(test_\w+)", text))
    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in defined} == set()
    for table in re.findall(r"^\| fault .*\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            assert re.search(r"test_\w+|tests/|the same", row.rpartition(" | ")[2]), row


def test_every_exit_code_of_a_refused_start_is_in_the_table():
    text = (ROOT / "docs" / "architecture.md").read_text()
    from cdc.errors import StartRefused

    for kind in StartRefused.__subclasses__():
        assert re.search(rf"`{kind.__name__}`, (exit code )?{kind.exit_code} \|", text), kind


def test_the_blog_reads_columns_that_the_compose_database_has():
    tables = (ROOT / "config" / "postgres" / "write.sql").read_text()
    models = (ROOT / "projectors" / "blog.py").read_text()
    for column in set(re.findall(r'row\["(\w+)"\]', models)):
        assert re.search(rf"^    {column} ", tables, re.MULTILINE), column

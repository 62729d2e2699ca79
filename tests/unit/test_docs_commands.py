"""Every command line that is written down is one; every exit code is told."""

import inspect
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cdc import errors
from cdc.cli import app
from cdc.cli.terminal import INTERRUPTED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="generate")
COMMANDS: dict[str, Any] = dict(GENERATE["command_functions"](app, "cdc"))
CLI: Any = typer.main.get_command(app)
# What ends a command in a shell.
ENDS = re.compile(r"^(\||&&|;|>|2>|<)")


def parse(line: str) -> None:
    """Parse a command line as the command does, running nothing."""
    words = shlex.split(line, comments=True)
    end = next((n for n, word in enumerate(words) if ENDS.match(word)), len(words))
    words, command = [word.removesuffix(";") for word in words[:end]], CLI
    assert words.pop(0) == "cdc"
    if words[0] in {"--help", "--install-completion", "--show-completion"}:
        return
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words).close()


def in_shell_blocks(page: Path) -> Iterator[str]:
    blocks = re.findall(
        r"^```(?:console|sh|bash)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    for line in "".join(blocks).splitlines():
        found = re.match(r"^(?:[$#] )?(?:\w+=\S+ )*(cdc .*)", line)
        if found:
            yield found[1]


WRITTEN = [(page.name, line) for page in PAGES for line in in_shell_blocks(page)]


def test_there_are_command_lines_to_look_at() -> None:
    assert len(WRITTEN) > 20


@pytest.mark.parametrize(("page", "line"), WRITTEN)
def test_a_command_line_in_the_documentation_parses(page: str, line: str) -> None:
    del page
    parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`cdc ((?:quarantine )?[a-z]+)", page.read_text())
    known = {name.removeprefix("cdc ") for name in COMMANDS} | {"quarantine"}
    assert set(named) <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_line_then_examples_that_parse(name: str) -> None:
    text = inspect.cleandoc(COMMANDS[name].__doc__)
    summary = text.partition("\n\n")[0]
    assert len(summary) <= 100
    assert "\n" not in summary
    examples = [
        line.strip() for line in text.partition("Examples:")[2].splitlines() if line.strip()
    ]
    assert examples
    for example in examples:
        assert example.startswith(name)
        parse(example)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_told_by_its_name(name: str) -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    told = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    command = CLI
    for word in name.split()[1:]:
        command = command.commands[word]
    options = [word for parameter in command.params for word in parameter.opts if "-" in word]
    for option in set(options) - {"--help"}:
        assert f"| `{option}" in told, option


def test_a_command_line_that_is_none_does_not_parse() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("cdc check --no-such-option")


def family(kind: type[errors.CdcError]) -> Iterator[type[errors.CdcError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


def test_every_exit_code_is_in_the_table_of_exit_codes() -> None:
    table = (ROOT / "docs" / "errors.md").read_text().partition("## All of them")[0]
    told: set[int] = set()
    for cell in re.findall(r"^\| (\d[^|]*) \|", table, re.MULTILINE):
        for part in cell.split(", "):
            first, _, last = part.partition(" to ")
            told |= set(range(int(first), int(last or first) + 1))
    codes = {kind.exit_code for kind in family(errors.CdcError)}
    assert codes | {0, 1, INTERRUPTED} <= told

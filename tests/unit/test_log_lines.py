"""What is logged: a constant message, and fields that do not pass for the line's own."""

import ast
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.observe import logs

PACKAGE = Path(__file__).parents[2] / "cdc"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
OWN = {"time", "level", "logger", "message"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for page in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(page.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=name)):
                    if name in LEVELS:
                        yield f"{page.relative_to(PACKAGE)}:{node.lineno}", node


CALLS = dict(calls())


def test_there_are_lines_to_look_at() -> None:
    assert len(CALLS) > 15


@pytest.mark.parametrize("place", sorted(CALLS))
def test_a_message_is_constant_and_the_rest_is_fields(place: str) -> None:
    call = CALLS[place]
    *level, message = call.args
    assert len(level) <= (call.func.attr == "log")  # type: ignore[attr-defined]
    # The daemon's state is one of a closed set of words.
    constant = isinstance(message, ast.Constant) or ast.unparse(message) == "state.value"
    assert constant, ast.unparse(message)
    assert {keyword.arg for keyword in call.keywords} <= {"extra"}


@pytest.mark.parametrize("name", ["time", "level", "logger"])
def test_a_field_does_not_pass_for_the_lines_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(form="json")
    logging.getLogger("cdc.test").info("said", extra={name: "forged", "more": 1})
    line = json.loads(capsys.readouterr().err)
    assert line[name] != "forged"
    assert line["more"] == 1
    assert list(line)[:4] == ["time", "level", "logger", "message"]

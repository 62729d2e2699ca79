"""The tree of errors: as it is drawn, so it is."""

import re
from collections.abc import Iterator

import pytest

import cdc.cli
import cdc.servers
import cdc.sink.engine
from cdc import errors
from cdc.errors import CdcError


def family(kind: type[CdcError]) -> Iterator[type[CdcError]]:
    for child in kind.__subclasses__():
        yield child
        yield from family(child)


def drawn() -> dict[str, tuple[int, int | None]]:
    """Give each name in the drawing with its depth and its number."""
    tree = (errors.__doc__ or "").partition("CdcError\n")[2].partition("\n\nThe number")[0]
    found = {}
    for line in tree.splitlines():
        match = re.match(r"([│├└─ ]*)(\w+)(?:\s+(\d+))?", line)
        assert match
        found[match[2]] = (len(match[1]), int(match[3]) if match[3] else None)
    return found


ALL = sorted({*family(CdcError)}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", [k for k in ALL if k.__module__ != "cdc.sink.refused"])
def test_an_error_is_drawn_under_its_parent(kind: type[CdcError]) -> None:
    tree = drawn()
    assert kind.__name__ in tree
    names = list(tree)
    depth = tree[kind.__name__][0]
    above = [name for name in names[: names.index(kind.__name__)] if tree[name][0] < depth]
    assert kind.__bases__[0].__name__ == (above[-1] if above else "CdcError")


@pytest.mark.parametrize("kind", ALL)
def test_an_error_ends_with_the_number_that_is_drawn(kind: type[CdcError]) -> None:
    tree = drawn()
    for ancestor in kind.__mro__:
        number = tree.get(ancestor.__name__, (0, None))[1]
        if number is not None:
            assert kind.exit_code == number
            return
    assert kind is errors.StartRefused


def test_a_number_belongs_to_one_branch() -> None:
    numbers = [number for _, number in drawn().values() if number is not None]
    assert len(numbers) == len(set(numbers))
    assert not set(numbers) & {0, 1, 130}


@pytest.mark.parametrize("kind", [kind for kind in ALL if "__init__" not in vars(kind)])
def test_an_error_says_something_by_itself(kind: type[CdcError]) -> None:
    assert str(kind())
    assert kind("this", hint="that").hint == "that"
    assert str(kind("this")) == "this"


def test_a_report_shows_error_and_hint_without_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cdc.cli.report(CdcError("table [red]a\x1b[2Jb\r is", hint="drop [it]"))
    shown = capsys.readouterr().err
    assert "[red]a" in shown
    assert "drop [it]" in shown
    assert "\x1b[2J" not in shown
    assert "\r" not in shown

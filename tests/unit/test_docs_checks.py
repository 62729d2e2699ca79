"""Every finding of `cdc check` is provoked by a test."""

from pathlib import Path

import pytest

from cdc.finding import NAMES, Finding

INTEGRATION = Path(__file__).parents[1] / "integration"
TESTS = "".join(page.read_text() for page in INTEGRATION.glob("test_*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_test_provokes_it(name: str) -> None:
    assert f'"{name}"' in TESTS


def test_a_finding_has_a_name_that_is_documented() -> None:
    with pytest.raises(ValueError, match="is no name of a finding"):
        Finding("invented", "what", "why", "remedy")

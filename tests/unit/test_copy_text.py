"""Rows as COPY's text format, held to a plain escape of each value."""

from hypothesis import example, given
from hypothesis import strategies as st

from cdc.sink.copy_text import encode

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
SPECIAL = st.text(st.sampled_from("\\\t\n\rN.ab\b\v"), max_size=5)
VALUE = st.none() | TEXT | SPECIAL


def escaped(value: str | None) -> str:
    if value is None:
        return "\\N"
    for plain, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        value = value.replace(plain, escape)
    return value


def rows(values: st.SearchStrategy[str | None]) -> st.SearchStrategy[list[tuple[str | None, ...]]]:
    return st.integers(1, 4).flatmap(
        lambda width: st.lists(st.tuples(*[values] * width), min_size=1, max_size=5)
    )


@given(rows(VALUE))
@example([("\\.",)])
@example([("",)])
@example([(None,), ("\\N",)])
@example([("a\tb", "c"), ("d", "e")])
@example([("a\nb",)])
@example([(None, "a\r"), ("", "")])
def test_each_value_is_escaped(values: list[tuple[str | None, ...]]) -> None:
    reference = "".join("\t".join(map(escaped, row)) + "\n" for row in values)
    assert encode(values) == reference.encode()

"""Rows as lines of COPY's CSV, held to a plain reading of that format."""

from hypothesis import example, given
from hypothesis import strategies as st

from cdc.lines import cut, decode, encode, encode_all, joined

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
SPECIAL = st.text(st.sampled_from('\\\t\n\r\x01N.ab\b\v"'), max_size=5)
VALUE = st.none() | TEXT | SPECIAL
ROW = st.lists(VALUE, min_size=1, max_size=4)


def parsed(data: str) -> list[list[str | None]]:
    """Read rows: tabs between values, nothing is NULL, the byte 1 quotes and is doubled inside."""
    rows: list[list[str | None]] = [[]]
    value, quoted, was_quoted, position = "", False, False, 0
    while position < len(data):
        character = data[position]
        if quoted and data[position : position + 2] == "\x01\x01":
            value, position = value + "\x01", position + 1
        elif character == "\x01":
            quoted, was_quoted = not quoted, True
        elif not quoted and character in "\t\n":
            rows[-1].append(value if value or was_quoted else None)
            value, was_quoted = "", False
            rows += [[]] if character == "\n" else []
        else:
            assert quoted or character != "\r"
            value += character
        position += 1
    return rows[:-1]


@given(st.lists(ROW, min_size=1, max_size=5))
@example([["\\."]])
@example([[""], [None]])
@example([[None], ["\\N"]])
@example([["a\tb", "c"], ["d", "e"]])
@example([["a\nb"], ["\x01"]])
@example([[None, "a\r"], ["", ""]])
def test_rows_are_read_back_as_they_were(rows: list[list[str | None]]) -> None:
    data = joined(map(encode, rows)).decode()
    assert parsed(data) == rows


@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.lists(VALUE, min_size=width, max_size=width), min_size=1, max_size=4
        )
    )
)
@example([[""]])
@example([["a", ""], ["", "b"]])
@example([["a"], [""]])
def test_rows_encoded_together_are_those_encoded_alone(rows: list[list[str | None]]) -> None:
    assert parsed(encode_all(rows).decode()) == rows


@given(ROW)
def test_no_line_ends_the_data(row: list[str | None]) -> None:
    assert encode(row) != b"\\."


ROWS = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(VALUE, min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(ROWS)
@example([["a", "b"]])
@example([["a", None]])
@example([[None]])
@example([[""], [None]])
@example([["\n"], ["\t\n\x01\t"]])
@example([["\x01\n", "\x01"], ["\t", None]])
@example([["a\n\nb", "\x01\x01"], ["\\.", ""]])
def test_rows_are_decoded_as_they_were_encoded(rows: list[list[str | None]]) -> None:
    assert decode(encode_all(rows)) == [tuple(row) for row in rows]


def test_no_text_holds_no_rows() -> None:
    assert decode(b"") == []


@given(st.lists(ROW, min_size=1, max_size=8), st.integers(min_value=0, max_value=80))
def test_cut_rows_are_the_rows(rows: list[list[str | None]], size: int) -> None:
    text = joined(map(encode, rows))
    end = cut(text, size)
    assert end > min(size, len(text) - 1)
    assert decode(text[:end]) + decode(text[end:]) == list(map(tuple, rows))

"""Positions and table names: what is read is what was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.lsn import Lsn
from cdc.names import TableName

PARTS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20
)


@given(st.integers(0, 2**64 - 1))
def test_a_position_is_read_as_it_was_written(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == value


@pytest.mark.parametrize(
    ("text", "value"), [("16/B374D848", 0x16B374D848), ("0/0", 0), ("a/f", 0xA0000000F)]
)
def test_a_position_is_read_as_postgres_writes_it(text: str, value: int) -> None:
    assert Lsn.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "0",
        "/",
        "/1",
        "1/",
        "0/G",
        "0/123456789",
        "123456789/0",
        "-1/0",
        "0/-1",
        "1/2/3",
        "0x1/0",
        "1_0/0",
        " 1/0",
        "0/+1",
        "0/1\n",
        "-0/5",
        "1/ 1",
        "\u0661/0",
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)


def test_a_position_looks_like_one_in_a_repr() -> None:
    assert repr(Lsn(0x16B374D848)) == "Lsn(16/B374D848)"


@given(PARTS, PARTS)
def test_a_table_name_is_read_as_it_was_written(schema: str, table: str) -> None:
    name = TableName(schema, table)
    assert TableName.parse(str(name)) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("posts", ("public", "posts")),
        ("app.posts", ("app", "posts")),
        ('app."a.b"', ("app", "a.b")),
        ('"my app"."say ""hi"""', ("my app", 'say "hi"')),
        ("Ünï.Posts", ("Ünï", "Posts")),
        ("public.*", ("public", "*")),
    ],
)
def test_a_table_name_is_read_as_an_operator_writes_it(text: str, name: tuple[str, str]) -> None:
    assert TableName.parse(text) == name


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a.b.c", 'a"b', '"a', '""', 'a.""', '"a"b'])
def test_what_is_no_table_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a table name"):
        TableName.parse(text)


@pytest.mark.parametrize(
    ("pattern", "name", "covers"),
    [
        ("public.*", ("public", "posts"), True),
        ("public.*", ("app", "posts"), False),
        ("*.*", ("app", "posts"), True),
        ("public.p?sts", ("public", "posts"), True),
        ("public.p?sts", ("public", "psts"), False),
        ("public.POSTS*", ("public", "posts"), False),
        ('"a.b".*', ("a.b", "c"), True),
        ("public.t[0-9]*", ("public", "t[0-9]1"), True),
        ("public.t[0-9]*", ("public", "t1"), False),
    ],
)
def test_only_stars_and_question_marks_are_wildcards(
    pattern: str, name: tuple[str, str], covers: bool
) -> None:
    assert TableName(*name).matches(TableName.parse(pattern)) is covers


@pytest.mark.parametrize(("text", "is_pattern"), [("a.b*", True), ("?.b", True), ("a.b", False)])
def test_a_pattern_is_told_from_a_name(text: str, is_pattern: bool) -> None:
    assert TableName.parse(text).is_pattern is is_pattern

"""Rows as CSV: what other programs read is what was written."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.csv_lines import csv_lines


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (("path", 3, 0.5, None), "path,3,0.5,\n"),
        (('a "b", c', "d\ne"), '"a ""b"", c","d\ne"\n'),
        (("a\rb.png", 3, "c"), '"a\rb.png",3,"c"\n'),
    ],
)
def test_cells_are_quoted_where_they_must_be(row: tuple[object, ...], line: str) -> None:
    assert csv_lines([row]) == line


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2)))
def test_what_is_written_is_read_again(rows: list[list[str]]) -> None:
    assert list(csv.reader(io.StringIO(csv_lines(rows), newline=""))) == rows

"""Rows as CSV, as every program of ours writes it."""

import csv
import io
from collections.abc import Iterable, Sequence


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """The rows, each ended by a line feed, quoted where they must be.

    Python's own writer leaves a carriage return bare, at which other programs end a line: a file may be called so.
    """
    text = io.StringIO()
    usual = csv.writer(text, lineterminator="\n")
    careful = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for row in rows:
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (careful if has_return else usual).writerow(row)
    return text.getvalue()

"""Rows in the formats that people's tools read, a page at a time, so that millions are sent as some are."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic_core import to_json

from winnow.csv_lines import csv_lines
from winnow.errors import WinnowError

Pages = Iterable[Sequence[Sequence[Any]]]


class CutShort(WinnowError):
    """What rows belong to was removed while they were sent. The answer breaks off: a shorter one would look whole."""

    code = "cut-short"


def ndjson(fields: Sequence[str], pages: Pages) -> Iterator[bytes]:
    """An object on each line."""
    for rows in pages:
        yield b"".join(as_json(dict(zip(fields, row, strict=True))) + b"\n" for row in rows)


def csv(fields: Sequence[str], pages: Pages) -> Iterator[bytes]:
    """A line of names, and a line for each row."""
    yield csv_lines([fields]).encode()
    for rows in pages:
        yield csv_lines(rows).encode()


def as_json(value: object) -> bytes:
    """As a model renders itself; making models would take most of the time."""
    return to_json(value, inf_nan_mode="null")

"""One value a row: groups and labels as text, row numbers as integers; from `.npy` or from lines of text."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.embeddings import npy
from winnow.errors import InvalidInput

_LONGEST_NUMBER = 40
"""Characters; Python refuses to read a number of thousands."""
ROW, KEY = "row", "key"
"""The columns of what `winnow select` writes, so that one run's picks are the next one's exclusions."""


def read_labels(path: Path, name: str, rows: int) -> list[str]:
    """(rows,) one label a row: a 1-d `.npy` of text or integers, or one a line. Raises InvalidInput naming `name`."""
    found = _texts(path, name) if is_npy(path, name) else [line.strip() for line in _lines(path, name)]
    if len(found) != rows:
        raise InvalidInput(name, f"{path.name}: needs {rows} values, one for each row of the pool, got {len(found)}")
    return found


def read_rows(path: Path, name: str, keys: Callable[[], list[str] | None] = lambda: None) -> list[int]:
    """(k,) row numbers: a 1-d `.npy` of integers, one a line, or the column `row` of a CSV.

    Where these are no integers, or the column is called `key`, they are looked up in `keys()`, the pool's (n,) keys.

    Raises InvalidInput naming `name`: no such rows, columns or keys.
    """
    if is_npy(path, name):
        values = _vector(path, name, kinds="USiu")
        if values.dtype.kind in "iu":
            return [int(value) for value in values]
        return _look_up(path, name, dict(enumerate(_texts(path, name), start=1)), keys())
    lines = _lines(path, name)
    column = next((one for one in (ROW, KEY) if one in _split(lines[0])), None)
    numbered = {number: line.strip() for number, line in enumerate(lines, start=1)}
    if column is not None or "," in lines[0]:
        numbered = _column(path, name, lines, column)
    if column == KEY or not all(_is_integer(line) for line in numbered.values()):
        known = keys()
        if column == KEY or known is not None:
            return _look_up(path, name, numbered, known)
    return [_integer(path, name, number, line) for number, line in numbered.items()]


def _column(path: Path, name: str, lines: list[str], column: str | None) -> dict[int, str]:
    """The cells of a column of a CSV, by their lines."""
    heading = _split(lines[0])
    if column is None:
        raise InvalidInput(name, f"{path.name}: has no column {ROW!r} or {KEY!r}; it has {', '.join(heading)}")
    table = csv.reader(lines)
    next(table)
    at = heading.index(column)
    cells: dict[int, str] = {}
    try:
        for row in filter(None, table):
            cells[table.line_num] = row[at].strip() if at < len(row) else ""
        return cells
    except csv.Error as error:
        raise InvalidInput(name, f"{path.name}: is no CSV ({error})") from error


def _look_up(path: Path, name: str, wanted: dict[int, str], keys: list[str] | None) -> list[int]:
    if keys is None:
        raise InvalidInput(name, f"{path.name}: names rows by key, and the pool has no keys; give row numbers")
    rows = {key: row for row, key in enumerate(keys)}
    if len(rows) < len(keys):
        raise InvalidInput(name, f"{path.name}: names rows by key, and the pool has a key twice; give row numbers")
    missing = next((number for number, key in wanted.items() if key not in rows), None)
    if missing is not None:
        raise InvalidInput(name, f"{path.name}: the pool has no key {wanted[missing]!r}, of line {missing}")
    return [rows[key] for key in wanted.values()]


def _split(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def _is_integer(line: str) -> bool:
    return line.removeprefix("-").isdecimal()


def _integer(path: Path, name: str, number: int, line: str) -> int:
    if not _is_integer(line) or len(line) > _LONGEST_NUMBER:
        raise InvalidInput(name, f"{path.name}: needs a row number in line {number}, got {line[:_LONGEST_NUMBER]!r}")
    value = int(line)
    if not 0 <= value < 2**63:
        raise InvalidInput(name, f"{path.name}: {value} in line {number} is no row number: it does not fit int64")
    return value


def _texts(path: Path, name: str) -> list[str]:
    """Each value as text. Raises InvalidInput for bytes or code points that are none."""
    values = _vector(path, name, kinds="USiu")
    if values.dtype.kind == "U":
        _require_letters(values, path, name)
    if values.dtype.kind != "S":
        return [str(value) for value in values.tolist()]
    try:
        return [value.decode("utf-8") for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise InvalidInput(name, f"{path.name}: holds bytes that are no UTF-8 ({error})") from error


def _require_letters(values: NDArray[Any], path: Path, name: str) -> None:
    """NumPy stores 32 bits a letter and checks none of them; Python fails on some. Raises InvalidInput."""
    native = values.astype(values.dtype.newbyteorder("="))
    letters = native.view(np.uint32) if native.dtype.itemsize else np.empty(0, np.uint32)
    if ((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters < 0xE000))).any():
        raise InvalidInput(name, f"{path.name}: holds letters that Unicode does not have")


def is_npy(path: Path, name: str) -> bool:
    """Whether a file is `.npy`, by its first bytes. Raises InvalidInput naming `name` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(npy.MAGIC)) == npy.MAGIC
    except OSError as error:
        raise InvalidInput(name, f"{path}: cannot be read ({error.strerror})") from error


def _vector(path: Path, name: str, *, kinds: str) -> NDArray[Any]:
    shape, dtype, *_ = npy.read_header(path.resolve(), name)
    if dtype.hasobject:
        raise InvalidInput(name, f"{path.name}: holds Python objects, which would have to be unpickled; never done")
    if len(shape) != 1 or dtype.kind not in kinds:
        raise InvalidInput(name, f"{path.name}: needs integers or text in 1 dimension, got {dtype.name} {shape}")
    return np.load(path, allow_pickle=False, max_header_size=npy.LONGEST_HEADER)


def _lines(path: Path, name: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidInput(name, f"{path.name}: cannot be read as lines of text ({error})") from error
    if not lines:
        raise InvalidInput(name, f"{path.name}: is empty")
    return lines

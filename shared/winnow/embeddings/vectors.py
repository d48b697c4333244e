"""One value a row: groups and labels as text, row numbers as integers; from `.npy` or from lines of text."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.embeddings import npy
from winnow.errors import InvalidInput

ROW = "row"
"""The column of row numbers in what `winnow select` writes, so that one run's picks are the next one's exclusions."""


def read_labels(path: Path, name: str, rows: int) -> list[str]:
    """(rows,) one label a row: a 1-d `.npy` of text or integers, or one a line. Raises InvalidInput naming `name`."""
    if _is_npy(path, name):
        found = _texts(_vector(path, name, kinds="USiu"), path, name)
    else:
        found = [line.strip() for line in _lines(path, name)]
    if len(found) != rows:
        raise InvalidInput(name, f"{path.name}: needs {rows} values, one for each row of the pool, got {len(found)}")
    return found


def read_rows(path: Path, name: str) -> list[int]:
    """(k,) row numbers: a 1-d `.npy` of integers, one a line, or the column `row` of a CSV. Raises InvalidInput."""
    if _is_npy(path, name):
        return [int(value) for value in _vector(path, name, kinds="iu")]
    lines = _lines(path, name)
    if lines and "," in lines[0]:
        table = csv.DictReader(lines)
        if ROW not in (table.fieldnames or ()):
            raise InvalidInput(name, f"{path.name}: has no column {ROW!r}; it has {', '.join(table.fieldnames or ())}")
        lines = _column(table, path, name)
    elif lines and lines[0].strip() == ROW:
        lines = lines[1:]
    return [_integer(path, name, number, line) for number, line in enumerate(lines)]


def _column(table: "csv.DictReader[str]", path: Path, name: str) -> list[str]:
    try:
        return [row[ROW] or "" for row in table]
    except csv.Error as error:
        raise InvalidInput(name, f"{path.name}: is no CSV ({error})") from error


def _texts(values: NDArray[Any], path: Path, name: str) -> list[str]:
    """Each value as text. Raises InvalidInput for bytes or code points that are none."""
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


def _integer(path: Path, name: str, number: int, line: str) -> int:
    try:
        value = int(line)
    except ValueError:
        raise InvalidInput(name, f"{path.name}: needs a row number in line {number}, got {line.strip()!r}") from None
    if not 0 <= value < 2**63:
        raise InvalidInput(name, f"{path.name}: {value} in line {number} is no row number: it does not fit int64")
    return value


def _is_npy(path: Path, name: str) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(npy.MAGIC)) == npy.MAGIC
    except OSError as error:
        raise InvalidInput(name, f"{path}: cannot be read ({error.strerror})") from error


def _vector(path: Path, name: str, *, kinds: str) -> NDArray[Any]:
    header = npy.read_header(path.resolve(), name)
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise InvalidInput(name, f"{path.name}: holds Python objects, which would have to be unpickled; never done")
    if len(shape) != 1 or dtype.kind not in kinds:
        text = " or text" if "U" in kinds else ""
        raise InvalidInput(name, f"{path.name}: needs integers{text} in 1 dimension, got {dtype.name} {shape}")
    return np.load(path, allow_pickle=False, max_header_size=npy.LONGEST_HEADER)


def _lines(path: Path, name: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidInput(name, f"{path.name}: cannot be read as lines of text ({error})") from error
    if not lines:
        raise InvalidInput(name, f"{path.name}: is empty")
    return lines

"""`.npy`: the header is read by NumPy's own parser, and the file must be as long as it promises."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from winnow.embeddings.blocks import Features, blocks, require_finite, require_shape
from winnow.errors import InvalidInput
from winnow.paths import open_file

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 1 << 16
"""Bytes. NumPy's own limit is lower, and is for headers that it does not trust with more."""


class NpyFile:
    """One `.npy` of (rows, columns) floats. Raises InvalidInput where it is anything else."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name
        self._header = read_header(path, name)
        shape, dtype = self._header.shape, self._header.dtype
        self.rows, self.columns = require_shape(name, path, shape, dtype)
        self.dtype = dtype.name
        self.is_plain = dtype == np.dtype("<f4") and self._map().flags.c_contiguous

    def map(self) -> Features:
        """The rows as they stand in the file, not read yet. For a plain file alone: little-endian float32, by rows."""
        assert self.is_plain
        return cast("Features", self._map())

    def fill(self, out: Features) -> None:
        stored = self._map()
        for rows in blocks(self.rows, self.columns):
            with np.errstate(over="ignore"):  # require_finite says so, with the row
                out[rows] = stored[rows]
            require_finite(self._name, self.path, out[rows], rows.start, self.dtype)

    def coords(self) -> NDArray[Any] | None:
        return None

    def keys(self) -> list[str] | None:
        return None

    def _map(self) -> NDArray[Any]:
        header = self._header
        with open_file(self.path) as file:
            return np.memmap(file, header.dtype, "r", header.start, header.shape, "F" if header.by_columns else "C")


@dataclass(frozen=True)
class Header:
    """What a `.npy` promises, and the byte that its data starts at."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool
    start: int


def read_header(path: Path, name: str) -> Header:
    """What a `.npy` at a resolved path promises. Raises InvalidInput where it cannot be read or the file is shorter."""
    with open_file(path) as file:
        try:
            shape, by_columns, dtype = parse_header(file)
        except ValueError as error:
            raise InvalidInput(name, f"{path.name}: its .npy header cannot be read ({error})") from error
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    header = Header(shape, dtype, by_columns, start)
    if dtype.hasobject:
        return header
    promised, there = int(np.prod(shape, dtype=object)) * dtype.itemsize, size - start
    if there < promised:
        reason = f"is cut short: its header promises {promised} bytes of data, there are {there}"
        raise InvalidInput(name, f"{path.name}: {reason}")
    return header


def parse_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and dtype; `file` then stands at the data. Raises ValueError."""
    stream = cast("BinaryIO", file)
    version = npy.read_magic(stream)
    width = 2 if version == (1, 0) else 4
    length = stream.read(width)
    if int.from_bytes(length, "little") > LONGEST_HEADER:  # NumPy asks for that much memory before it reads
        raise ValueError(f"it says that it has {int.from_bytes(length, 'little')} bytes")
    stream.seek(-len(length), 1)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(stream, max_header_size=LONGEST_HEADER)
    except Exception as error:  # it is Python's syntax: a damaged one makes the parser raise almost anything
        raise ValueError(str(error) or type(error).__name__) from error
    if any(size < 0 for size in shape):
        raise ValueError(f"it promises the shape {shape}")
    return shape, is_fortran, dtype

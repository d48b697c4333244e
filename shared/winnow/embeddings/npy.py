"""`.npy`: the header is read by NumPy's own parser, and the file must be as long as it promises.

A file that is mapped and then made shorter by another program kills the process that reads it (SIGBUS). So rows that
are converted are read and not mapped, and `map` can take a copy of its own.
"""

import os
import tempfile
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from winnow.embeddings.blocks import Features, blocks, require_finite, require_shape
from winnow.errors import InvalidInput
from winnow.paths import open_file

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 1 << 16
"""Bytes. NumPy's own limit is lower, and is for headers that it does not trust with more."""
_CHUNK = 1 << 20


class Header(NamedTuple):
    """What a `.npy` promises, and the byte that its data starts at."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool
    start: int


class NpyFile:
    """One `.npy` of (rows, columns) floats. Raises InvalidInput where it is anything else."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name
        self._header = read_header(path, name)
        self.rows, self.columns = require_shape(name, path, self._header.shape, self._header.dtype)
        self.dtype = self._header.dtype.name
        by_rows = not self._header.by_columns or 1 in self._header.shape
        self.is_plain = self._header.dtype == np.dtype("<f4") and by_rows

    def map(self, private: Path | None = None) -> Features:
        """The rows as they stand in the file, not read yet. For a plain file alone: little-endian float32, by rows.

        Args:
            private: a folder for a copy of the file, which is mapped in its place and has no name: it is safe from
                whoever changes the file, and gone with the array.

        Raises InvalidInput for a file that became shorter, and OSError where there is no room for the copy.
        """
        assert self.is_plain
        shape = self.rows, self.columns
        if private is None:
            with self._data() as file:
                return np.memmap(file, np.float32, "r", offset=self._header.start, shape=shape)
        with tempfile.TemporaryFile(dir=private) as copy, self._data() as file:
            left = _promised(self._header)
            while chunk := file.read(min(left, _CHUNK)):
                left -= copy.write(chunk)
            self._require_whole(left)
            copy.flush()
            return np.memmap(copy, np.float32, "r", shape=shape)

    def fill(self, out: Features) -> None:
        with self._data() as file:
            if self._header.by_columns:
                self._fill_columns(out, file)
            else:
                self._fill_rows(out, file)

    def coords(self) -> NDArray[Any] | None:
        return None

    def keys(self) -> list[str] | None:
        return None

    def _fill_rows(self, out: Features, file: BufferedReader) -> None:
        for rows in blocks(self.rows, self.columns):
            with np.errstate(over="ignore"):  # require_finite says so, with the row
                out[rows] = self._read(file, rows.stop - rows.start, self.columns)
            require_finite(self._name, self.path, out[rows], rows.start, self.dtype)

    def _fill_columns(self, out: Features, file: BufferedReader) -> None:
        for columns in blocks(self.columns, self.rows):
            with np.errstate(over="ignore"):
                out[:, columns] = self._read(file, columns.stop - columns.start, self.rows).T
        for rows in blocks(self.rows, self.columns):
            require_finite(self._name, self.path, out[rows], rows.start, self.dtype)

    def _read(self, file: BufferedReader, lines: int, length: int) -> NDArray[Any]:
        """The next `lines` of `length` numbers that lie side by side, (lines, length)."""
        found = np.empty((lines, length), self._header.dtype)
        self._require_whole(found.nbytes - file.readinto(found.view(np.uint8).data))
        return found

    def _data(self) -> BufferedReader:
        try:
            file = open_file(self.path)
        except OSError as error:
            raise InvalidInput(self._name, f"{self.path.name}: cannot be read ({error.strerror})") from error
        file.seek(self._header.start)
        return file

    def _require_whole(self, missing: int) -> None:
        if missing:
            raise InvalidInput(self._name, f"{self.path.name}: became shorter while it was read")


def read_header(path: Path, name: str) -> Header:
    """What a `.npy` at a resolved path promises. Raises InvalidInput where it cannot be read or the file is shorter."""
    with open_file(path) as file:
        try:
            shape, by_columns, dtype = parse_header(file)
        except ValueError as error:
            raise InvalidInput(name, f"{path.name}: its .npy header cannot be read ({error})") from error
        header, size = Header(shape, dtype, by_columns, file.tell()), os.fstat(file.fileno()).st_size
    if dtype.hasobject:
        return header
    promised, there = _promised(header), size - header.start
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


def _promised(header: Header) -> int:
    return int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize

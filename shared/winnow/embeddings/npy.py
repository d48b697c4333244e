"""`.npy`: the header is read by NumPy's own parser, and the file must be as long as it promises."""

from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from winnow.embeddings.blocks import Features, blocks, require_finite, require_shape
from winnow.errors import InvalidInput

MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 16


class NpyFile:
    """One `.npy` of (rows, columns) floats. Raises InvalidInput where it is anything else."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name
        shape, dtype = read_header(path, name)
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
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


def read_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype that a `.npy` promises. Raises InvalidInput where they cannot be read or the file is shorter."""
    with path.open("rb") as file:
        try:
            version = npy.read_magic(cast("BinaryIO", file))
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(cast("BinaryIO", file), max_header_size=_LONGEST_HEADER)
        except (ValueError, EOFError) as error:
            raise InvalidInput(name, f"{path.name}: its .npy header cannot be read ({error})") from error
        start = file.tell()
    if dtype.hasobject:
        return shape, dtype
    promised, there = int(np.prod(shape, dtype=object)) * dtype.itemsize, path.stat().st_size - start
    if there < promised:
        reason = f"is cut short: its header promises {promised} bytes of data, there are {there}"
        raise InvalidInput(name, f"{path.name}: {reason}")
    return shape, dtype

"""What a file of embeddings must offer, and the checks that every format makes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from winnow.errors import InvalidInput

Features = NDArray[np.float32]
FLOATS = ("float16", "float32", "float64")
MOST_ROWS = 2**31 - 1
"""FAISS numbers the rows of a block, and people's tools those of a table, with 32 bits."""
_BLOCK_BYTES = 1 << 24


class Source(Protocol):
    """One file of embeddings, of which only the header was read."""

    path: Path
    rows: int
    columns: int
    dtype: str

    def fill(self, out: Features) -> None:
        """Write all rows to `out` (rows, columns), converted. Raises InvalidInput for bytes that cannot be read."""
        ...

    def coords(self) -> NDArray[Any] | None:
        """(rows, 2 or more) where each patch lies on its slide, or None."""
        ...

    def keys(self) -> list[str] | None:
        """(rows,) the name of each row, or None."""
        ...


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices that cover `rows` rows, each of some megabytes."""
    step = max(1, _BLOCK_BYTES // (8 * columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def require_shape(name: str, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    """(rows, columns) of an array of features. Raises InvalidInput for another shape or dtype."""
    if dtype.hasobject:
        raise InvalidInput(name, f"{path.name}: holds Python objects, which would have to be unpickled; never done")
    if dtype.name not in FLOATS:
        raise InvalidInput(name, f"{path.name}: needs {', '.join(FLOATS)}, got {dtype.name}")
    if len(shape) != 2:
        raise InvalidInput(name, f"{path.name}: needs 2 dimensions (rows, columns), got shape {shape}")
    if 0 in shape:
        raise InvalidInput(name, f"{path.name}: holds no embeddings, got shape {shape}")
    if shape[0] > MOST_ROWS:
        raise InvalidInput(name, f"{path.name}: needs {MOST_ROWS} rows at most, got {shape[0]}")
    return shape[0], shape[1]


def require_finite(name: str, path: Path, block: Features, first: int, dtype: str) -> None:
    """Raise InvalidInput that names the first row of `block` (whose first row is row `first`) that is not finite."""
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        beyond = " (or a value beyond float32)" if dtype == "float64" else ""
        raise InvalidInput(name, f"{path.name}: NaN or infinity{beyond} in row {first + int(np.argmin(finite))}")

"""HDF5 as TRIDENT and STAMP write it: one file a slide, its patches' features beside their coordinates.

TRIDENT   `features` float32 (n, d), `coords` int64 (n, 2) in pixels of level 0
STAMP     `feats` float16 (n, d), `coords` float32 (n, 2) in micrometres

A file may name data outside itself (external links, external storage, virtual datasets). Such data is refused: a
stranger's file must not make this process read another one.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from winnow.embeddings.blocks import Features, blocks, require_finite, require_shape
from winnow.errors import InvalidInput
from winnow.paths import open_file

MAGIC = b"\x89HDF\r\n\x1a\n"
FEATURES = ("features", "feats")
COORDS = "coords"
_MOST_COORDS = 16
"""Columns of coordinates; a file of nothing but fill values may promise any number of them."""
_LARGEST_CHUNK = 256 << 20
"""Bytes: HDF5 takes that much memory to read one row of a compressed dataset."""


def _again(file: BinaryIO) -> Any:
    """The open file for HDF5's own library: by its descriptor, where that has a name, and no path again."""
    by_descriptor = Path(f"/proc/self/fd/{file.fileno()}")
    return str(by_descriptor) if by_descriptor.exists() else file


class Hdf5File:
    """One HDF5 file with a dataset of features. Raises InvalidInput where there is none, or it is anything else."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name
        with self._open() as file:
            self._features = next((one for one in FEATURES if one in file), "")
            if not self._features:
                there = ", ".join(sorted(file)[:10]) or "nothing"
                raise self._refuse(f"has no dataset {' or '.join(FEATURES)}; it holds {there}")
            stored = self._dataset(file, self._features)
            self.rows, self.columns = require_shape(name, path, stored.shape, stored.dtype)
            self.dtype = stored.dtype.name
            self._has_coords = COORDS in file
            if self._has_coords:
                self._require_coords(self._dataset(file, COORDS))

    def fill(self, out: Features) -> None:
        with self._open() as file:
            stored = self._dataset(file, self._features)
            for rows in blocks(self.rows, self.columns):
                stored.read_direct(out, source_sel=np.s_[rows], dest_sel=np.s_[rows])
                require_finite(self._name, self.path, out[rows], rows.start, self.dtype)

    def coords(self) -> NDArray[Any] | None:
        if not self._has_coords:
            return None
        with self._open() as file:
            return self._dataset(file, COORDS)[()]

    def keys(self) -> list[str] | None:
        return None

    def _require_coords(self, stored: Any) -> None:
        if stored.ndim != 2 or stored.shape[0] != self.rows or not 2 <= stored.shape[1] <= _MOST_COORDS:
            raise self._refuse(f"{COORDS} needs {self.rows} rows of x and y, got shape {stored.shape}")
        if stored.dtype.kind not in "iuf":
            raise self._refuse(f"{COORDS} needs numbers, got {stored.dtype.name}")

    def _dataset(self, file: Any, name: str) -> Any:
        import h5py

        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise self._refuse(f"{name} is a link; only data that the file itself holds is read")
        stored = file[name]
        if not isinstance(stored, h5py.Dataset):
            raise self._refuse(f"{name} is a group, not a dataset")
        if stored.external or stored.is_virtual:
            raise self._refuse(f"{name} lies in other files; only data that the file itself holds is read")
        chunk = math.prod(stored.chunks or ()) * stored.dtype.itemsize
        if chunk > _LARGEST_CHUNK:
            raise self._refuse(f"{name} is stored in chunks of {chunk} bytes; the limit is {_LARGEST_CHUNK}")
        return stored

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise self._refuse("reading HDF5 needs h5py: install winnow with its select extra") from error
        try:
            with open_file(self.path) as opened, h5py.File(_again(opened), "r", locking="best-effort") as file:
                yield file
        except InvalidInput:
            raise
        except Exception as error:  # a damaged file makes h5py raise almost anything
            raise self._refuse(f"cannot be read as HDF5 ({str(error) or type(error).__name__})") from error

    def _refuse(self, reason: str) -> InvalidInput:
        return InvalidInput(self._name, f"{self.path.name}: {reason}")

"""Several files of embeddings as one pool: what they hold, from their headers, and then their rows."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.embeddings import hdf5, npy, parquet
from winnow.embeddings.blocks import MOST_ROWS, Features, Source
from winnow.errors import InvalidInput
from winnow.paths import open_file

SUFFIXES = (".npy", ".h5", ".hdf5", ".parquet")
"""What a folder is searched for. What a file is, its first bytes say."""
_BESIDE_BYTES = 128
"""Of a row: its coordinates or its key."""
_FORMATS: dict[bytes, Callable[[Path, str], Source]] = {
    npy.MAGIC: npy.NpyFile,
    hdf5.MAGIC: hdf5.Hdf5File,
    parquet.MAGIC: parquet.ParquetFile,
}


@dataclass(frozen=True)
class Part:
    """The rows of one file in the pool: from `start` on."""

    name: str
    start: int
    rows: int
    coords: NDArray[Any] | None
    keys: list[str] | None

    def origin(self, row: int) -> dict[str, Any]:
        """Where a row of the pool came from: file and row in it; coords and key where the file has them."""
        at = row - self.start
        found: dict[str, Any] = {"file": self.name, "row": at}
        if self.coords is not None and np.isfinite(self.coords[at]).all():
            found["coords"] = self.coords[at].tolist()
        if self.keys is not None:
            found["key"] = self.keys[at]
        return found


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A pool: features float32 (n, d), and what was converted to get there."""

    features: Features
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """Files that form one pool, of which only the headers were read. `names` are how they are called in answers."""

    sources: tuple[Source, ...]
    names: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def columns(self) -> int:
        return self.sources[0].columns

    @property
    def in_place(self) -> bool:
        """Whether the rows are used as they stand in the file: one `.npy` of little-endian float32."""
        (first, *rest) = self.sources
        return not rest and isinstance(first, npy.NpyFile) and first.is_plain

    @property
    def bytes_to_read(self) -> int:
        """Memory that `read` takes: none for a pool that is mapped in place."""
        return 0 if self.in_place else 4 * self.rows * self.columns

    @property
    def bytes_beside(self) -> int:
        """Memory that `parts` takes: coordinates and keys."""
        return _BESIDE_BYTES * sum(source.rows for source in self.sources if not isinstance(source, npy.NpyFile))

    def read(self, private: Path | None = None) -> Embeddings:
        """The pool. One that would be mapped in place is mapped from a copy in the folder `private`, where it is given.

        Raises InvalidInput for bytes that cannot be read, and the file and row of a value that is not finite; a pool
        that is mapped in place is checked by whoever reads it.
        """
        (first, *_) = self.sources
        if self.in_place and isinstance(first, npy.NpyFile):
            features = first.map(private)
        else:
            features = self._allocate()
            self._fill(features)
        return Embeddings(features, self._notes())

    def parts(self) -> tuple[Part, ...]:
        """The files' rows in the pool, with their coordinates and keys. Raises InvalidInput for what cannot be read."""
        starts = np.cumsum([0, *(source.rows for source in self.sources)]).tolist()
        rows = zip(self.sources, self.names, starts, strict=False)
        return tuple(Part(name, start, source.rows, source.coords(), source.keys()) for source, name, start in rows)

    def keys(self) -> list[str] | None:
        """(rows,) the key of each row, or None where a file has none."""
        found = [source.keys() for source in self.sources]
        return None if None in found else [key for keys in found for key in keys or ()]

    def groups(self, name: str = "groups") -> list[str]:
        """(rows,) the group of each row: its file's stem. Raises InvalidInput naming `name` where two are alike."""
        stems = _stems(self.names)
        if twice := next((one for one, count in Counter(stems).items() if count > 1), None):
            raise InvalidInput(name, f"two files are called {twice}, and would be one group; give the groups as labels")
        both = zip(stems, self.sources, strict=True)
        return [stem for stem, source in both for _ in range(source.rows)]

    def values(self, column: str, name: str) -> list[str]:
        """(rows,) a column of the pool's Parquet files as text. Raises InvalidInput naming `name`."""
        found: list[str] = []
        for source in self.sources:
            if not isinstance(source, parquet.ParquetFile):
                raise InvalidInput(name, f"{source.path.name} is no Parquet file and has no column {column!r}")
            try:
                found += source.values(column)
            except InvalidInput as error:
                raise InvalidInput(name, error.reason) from error
        return found

    def _allocate(self) -> Features:
        try:
            return np.empty((self.rows, self.columns), np.float32)
        except (MemoryError, ValueError) as error:
            size = 4 * self.rows * self.columns
            reason = f"{self.rows} rows of {self.columns} take {size} bytes of memory, more than there is"
            raise InvalidInput("pool", reason) from error

    def _fill(self, features: Features) -> None:
        start = 0
        for source in self.sources:
            source.fill(features[start : start + source.rows])
            start += source.rows

    def _notes(self) -> tuple[str, ...]:
        kinds = sorted({source.dtype for source in self.sources} - {"float32"})
        return tuple(f"{kind} converted to float32" for kind in kinds)


def survey(
    paths: Sequence[Path], *, name: str = "pool", names: Sequence[str] | None = None, follow: bool = True
) -> Survey:
    """What the files hold; a folder stands for all files of a known suffix in it, by name.

    `follow=False` is for paths that were resolved and allowed: a link in the place of one is an error, not followed.

    Raises InvalidInput naming `name`, the file and what is wrong with it: nothing there, not a known format, no
    features, a shape or dtype that cannot be used, files that disagree in their number of columns.
    """
    files, called = list_files(paths, name)
    sources = tuple(_open(file.resolve() if follow else file, name) for file in files)
    widths = {source.columns: source.path.name for source in sources}
    if len(widths) > 1:
        (one, first), (other, second), *_ = widths.items()
        raise InvalidInput(name, f"{first} has {one} columns, {second} has {other}; one pool has one width")
    found = Survey(sources, tuple(names or called))
    if found.rows > MOST_ROWS:
        raise InvalidInput(name, f"needs {MOST_ROWS} rows at most, got {found.rows}")
    return found


def holds_features(path: Path, name: str) -> bool:
    """Whether a path is of embeddings: a folder, HDF5, Parquet or a `.npy` of two dimensions, by its first bytes.

    Raises InvalidInput naming `name` for a path that cannot be read.
    """
    if path.is_dir():
        return True
    path = path.resolve()
    start = _first_bytes(path, name)
    if start.startswith(npy.MAGIC):
        return len(npy.read_header(path, name).shape) == 2
    return any(start.startswith(magic) for magic in _FORMATS)


def list_files(paths: Sequence[Path], name: str = "pool") -> tuple[list[Path], list[str]]:
    """The files that `paths` stand for, and what to call them. Raises InvalidInput for a path that is not there."""
    files: list[Path] = []
    called: list[str] = []
    for path in paths:
        try:
            found = _list(path, name)
        except OSError as error:  # no permission, a name too long
            raise InvalidInput(name, f"{path} cannot be read ({error.strerror})") from error
        files += found.values()
        called += found
    if len(set(called)) < len(called):  # of several folders
        called = [str(file) for file in files]
    return files, called


def _list(path: Path, name: str) -> dict[str, Path]:
    """The files of a folder, or the one file, by what to call them."""
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise InvalidInput(name, f"{path} is not there")
    inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    found = {str(one.relative_to(path)): one for one in inside}
    found = {called: one for called, one in found.items() if not any(p.startswith(".") for p in Path(called).parts)}
    if not found:
        raise InvalidInput(name, f"{path} holds no file of {', '.join(SUFFIXES)}")
    return found


def _open(path: Path, name: str) -> Source:
    start = _first_bytes(path, name)
    if not start:
        raise InvalidInput(name, f"{path.name}: is empty, 0 bytes")
    for magic, kind in _FORMATS.items():
        if start.startswith(magic):
            return kind(path, name)
    if start.startswith((b"\x80", b"PK\x03\x04")):
        hint = "it looks like a pickle or an archive, which is never loaded; save the array with numpy.save"
        raise InvalidInput(name, f"{path.name}: {hint}")
    raise InvalidInput(name, f"{path.name}: is none of .npy, HDF5, Parquet")


def _first_bytes(path: Path, name: str) -> bytes:
    try:
        with open_file(path) as file:
            return file.read(16)
    except OSError as error:
        raise InvalidInput(name, f"{path.name}: cannot be read ({error.strerror})") from error


def _stems(names: Sequence[str]) -> list[str]:
    """The stem of each file; with its folders where two files have the same."""
    stems = [Path(name).stem for name in names]
    if len(set(stems)) == len(stems):
        return stems
    return [str(Path(name).with_suffix("")) for name in names]

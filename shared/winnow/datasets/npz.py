"""MedMNIST-style archives: `{train,val,test}_images` uint8 (n, h, w[, 1|3]) and `..._labels` (n,) or (n, 1).

Images are streamed from the archive one at a time: the larger MedMNIST files do not fit in memory.
"""

import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from winnow.datasets.decode import ArrayPicture, Picture, Unreadable, mark_of, resolve
from winnow.datasets.entries import Allow, Entries, Entry, Listing, require_file, require_splits
from winnow.domain import Role, Source
from winnow.embeddings.npy import parse_header
from winnow.errors import InvalidInput
from winnow.paths import open_file

_SPLITS: dict[str, Role] = {"train": Role.POOL, "val": Role.VALIDATION, "test": Role.TEST}
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, KeyError, IndexError, OverflowError, MemoryError),
    RuntimeError,  # zipfile's for an encrypted member; NotImplementedError for a compression it does not know
)
"""What zipfile and NumPy raise on a damaged archive."""
MOST_IMAGES = 10_000_000
"""Of one split. A header may promise any number, and images of no pixels take no bytes."""


@dataclass(frozen=True)
class _Split:
    name: str
    shape: tuple[int, ...]  # (n, h, w) or (n, h, w, c)


def list_npz(source: Source, number: int, *, allow: Allow, max_pixels: int) -> Listing:
    """Every image of every split, in the archive's order; the label is the class number as text.

    A split's role is the one in `source.splits`, else the source's own, else by its name: pool (train),
    validation (val), test. Without any of these it is refused.

    Raises InvalidInput (no such file, no archive, other shapes or types, pickled members, images above `max_pixels`, no
    such split), PathForbidden.
    """
    path, field = Path(source.path or ""), f"sources.{number}.path"
    try:
        path = resolve(path)
    except Unreadable as error:
        raise InvalidInput(field, str(error)) from None
    allow(path)
    require_file(path, field, "archive")
    try:
        splits = _splits(path, max_pixels)
        labels = [_labels(path, split) for split in splits]
    except _BROKEN as error:
        raise InvalidInput(field, f"{path.name} cannot be used: {error}") from None
    require_splits(source, number, [split.name for split in splits])
    roles = [_role_of(split, source, number) for split in splits]
    entries = Entries.of(chain.from_iterable(map(_entries, splits, roles, labels, repeat(number))))

    def pictures(start: int) -> Iterator[Picture]:
        for split in splits:
            count = split.shape[0]
            if start < count:
                yield from _stream(path, split, start, field)
            start = max(start - count, 0)

    return Listing(entries, pictures)


def split_names(path: Path) -> list[str]:
    """The splits of the archive at `path`: train, val and test first, then the others by name; none where it is broken,
    which `list_npz` says.
    """
    try:
        with open_file(path.resolve()) as file, zipfile.ZipFile(file) as archive:
            return _names(archive)
    except _BROKEN:
        return []


def _splits(path: Path, max_pixels: int) -> list[_Split]:
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        names = _names(archive)
        if not names:
            raise ValueError("it has no `train_images`, `val_images` or `test_images`")
        return [_split(archive, name, max_pixels) for name in names]


def _names(archive: zipfile.ZipFile) -> list[str]:
    members = dict.fromkeys(archive.namelist())  # an archive may hold a name twice; the last one is read
    names = [name.removesuffix("_images.npy") for name in members if name.endswith("_images.npy")]
    return sorted(names, key=lambda name: (list(_SPLITS).index(name) if name in _SPLITS else len(_SPLITS), name))


def _split(archive: zipfile.ZipFile, name: str, max_pixels: int) -> _Split:
    with archive.open(f"{name}_images.npy") as member:
        shape, fortran, dtype = parse_header(member)
        header = member.tell()
    if dtype != np.uint8 or fortran:
        raise ValueError(
            f"{name}_images is {dtype}{' in Fortran order' if fortran else ''}; uint8 in C order is needed"
        )
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        raise ValueError(f"{name}_images has shape {shape}; (n, h, w) or (n, h, w, 3) is needed")
    pixels = shape[1] * shape[2]
    if not 0 < pixels <= max_pixels or shape[0] > MOST_IMAGES:
        most = f"at most {MOST_IMAGES} images of 1 to {max_pixels} pixels (max_pixels) are read"
        raise ValueError(f"{name}_images has shape {shape}; {most}")
    _require_whole(archive, f"{name}_images", header, math.prod(shape))
    return _Split(name, shape)


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with open_file(path) as file, zipfile.ZipFile(file) as archive, archive.open(name) as member:
        yield member


def _require_whole(archive: zipfile.ZipFile, name: str, header: int, promised: int) -> None:
    if archive.getinfo(f"{name}.npy").file_size != header + promised:
        raise ValueError(f"{name} does not hold the {promised} bytes that its header promises")


def _role_of(split: _Split, source: Source, number: int) -> Role:
    role = source.splits.get(split.name) or source.role or _SPLITS.get(split.name)
    if role is None:
        raise InvalidInput(f"sources.{number}.splits", f"no role for the split {split.name!r}; name it here")
    return role


def _entries(split: _Split, role: Role, labels: NDArray[np.int64] | None, number: int) -> Iterator[Entry]:
    for at in range(split.shape[0]):
        label = None if labels is None else str(labels[at])
        yield Entry(f"{split.name}/{at:06d}", role, label, source=number)


def _labels(path: Path, split: _Split) -> NDArray[np.int64] | None:
    """Class numbers, int64 (n,); None where the archive has none for this split."""
    name, count = f"{split.name}_labels", split.shape[0]
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        with archive.open(f"{name}.npy") as member:
            shape, _, dtype = parse_header(member)
            if shape not in ((count,), (count, 1)) or dtype.kind not in "iub":
                wanted = f"integers of shape ({count},) or ({count}, 1) are needed"
                raise ValueError(f"{name} is {dtype} of shape {shape}; {wanted}")
            _require_whole(archive, name, member.tell(), count * dtype.itemsize)
            labels = np.frombuffer(member.read(count * dtype.itemsize), dtype)
    return labels.astype(np.int64)


def _stream(path: Path, split: _Split, start: int, field: str) -> Iterator[Picture]:
    patch = split.shape[1:3] if split.shape[-1] == 1 and len(split.shape) == 4 else split.shape[1:]
    size = math.prod(patch)
    origin = mark_of(path)
    try:
        with _member(path, f"{split.name}_images.npy") as member:
            parse_header(member)
            member.seek(start * size, os.SEEK_CUR)
            for _ in range(start, split.shape[0]):
                data = member.read(size)
                if len(data) != size:
                    raise ValueError(f"{split.name}_images ends early")
                yield ArrayPicture(np.frombuffer(data, np.uint8).reshape(patch), origin)
    except _BROKEN as error:
        raise InvalidInput(field, f"{path.name} cannot be read to its end: {error}") from None

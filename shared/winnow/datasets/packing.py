"""Patches as uint8 shards on disk: written once, read by mmap.

A packed directory holds images-00000.npy, ... (k, S, S, 3) and packed.json, which is stored last: a directory
without it is not packed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from winnow.artefacts import Stored
from winnow.errors import ArtefactCorrupt, InvalidInput
from winnow.failpoints import Failpoint, reach

MANIFEST = "packed.json"
VERSION = 1
_SHARD = re.compile(r"images-\d{5,}\.npy")
_SHARD_PARTS = ("name", "count", "size", "sha256")
_STORED_AT_ONCE = 2  # one is synced while another is written; so many wait in scratch


@dataclass(frozen=True)
class Shard:
    """One file of a packed directory, as packed.json has it."""

    name: str
    count: int
    size: int
    sha256: str


class PackedImages:
    """Read-only patches of a packed directory, by sample index."""

    def __init__(self, directory: Path, shards: list[NDArray[np.uint8]], image_size: int) -> None:
        self.directory = directory
        self.image_size = image_size
        self._shards = shards
        self._starts = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])]).astype(np.int64)

    @classmethod
    def open(cls, directory: Path, *, locate: Callable[[Shard], Path] | None = None) -> Self:
        """Open a packed directory; shapes, types and sizes are held against packed.json.

        `locate` says where the bytes of a shard are, if not in the directory.

        Raises InvalidInput where there is no packed.json, ArtefactCorrupt where a shard is missing, truncated or
        of another shape. Bytes are compared by `verify` and `verify_once`.
        """
        manifest = _read_manifest(directory)
        size = int(manifest["image_size"])
        listed = _shards_of(directory, manifest)
        paths = [locate(shard) if locate else directory / shard.name for shard in listed]
        shards = [_open_shard(path, shard, size) for path, shard in zip(paths, listed, strict=True)]
        if sum(len(shard) for shard in shards) != manifest["count"]:
            raise ArtefactCorrupt(f"{directory / MANIFEST}: the shards do not add up to {manifest['count']} images")
        return cls(directory, shards, size)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Copies of patches in the order asked: int64 (n,) → uint8 (n, S, S, 3), C-contiguous, in `out` if given.

        Reads each shard once, in ascending order. Raises IndexError for an index outside 0..len-1, ValueError for an
        `out` of another shape or type.
        """
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise IndexError(f"indices must be integers of shape (n,), not {wanted.dtype} of shape {wanted.shape}")
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"indices reach from {wanted.min()} to {wanted.max()}; there are {len(self)} images")
        shape = wanted.size, self.image_size, self.image_size, 3
        out = np.empty(shape, np.uint8) if out is None else out
        if out.shape != shape or out.dtype != np.uint8:
            raise ValueError(f"out must be uint8 {shape}, not {out.dtype} {out.shape}")
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order].astype(np.int64)
        is_ordered = np.array_equal(order, np.arange(len(order)))
        cuts = np.searchsorted(ascending, self._starts)
        for shard, start, low, high in zip(self._shards, self._starts, cuts, cuts[1:], strict=False):
            if low == high:
                continue
            rows = ascending[low:high] - start
            if is_ordered:
                np.take(shard, rows, axis=0, out=out[low:high], mode="clip")  # the mode that copies once
            else:
                out[order[low:high]] = shard[rows]
        return out

    def verify(self, should_stop: Callable[[], bool] | None = None) -> bool:
        """Compare every byte with the sha256 of packed.json; False when `should_stop` ended it between two shards.

        Raises ArtefactCorrupt.
        """
        for shard in _shards_of(self.directory, _read_manifest(self.directory)):
            if should_stop is not None and should_stop():
                return False
            if _digest(self.directory / shard.name) != shard.sha256:
                raise ArtefactCorrupt(f"{self.directory / shard.name} does not match its sha256; ingest again")
        return True

    def verify_once(self, records: Path, should_stop: Callable[[], bool] | None = None) -> bool:
        """Verify, unless `records` (a directory of this machine) says that these very files were; whether it did.

        The record is of the directory, its packed.json, and each shard's size and time of writing: a shard that is
        written anew is verified anew. Raises ArtefactCorrupt.
        """
        record = records / self._fingerprint()
        if record.exists() or not self.verify(should_stop):
            return False
        records.mkdir(parents=True, exist_ok=True)
        record.touch()
        return True

    def _fingerprint(self) -> str:
        manifest = self.directory / MANIFEST
        shards = [self.directory / shard.name for shard in _shards_of(self.directory, _read_manifest(self.directory))]
        seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in shards]
        return hashlib.sha256(repr((str(self.directory.resolve()), _digest(manifest), seen)).encode()).hexdigest()


class PackWriter:
    """Writes patches one by one into shards in `scratch`, and has each full one stored while the next is written.

    `put(name, source)` stores a shard, and behind all of them packed.json, under its name; a few threads call it.
    `stored` are the shards that are there already. Memory is one patch, whatever the shard size: patches are appended
    to an open file whose header, padded by NumPy for that purpose, gets its final length at the end. Left by an
    exception, it stores what is full still; nothing stays in `scratch`.
    """

    def __init__(
        self,
        scratch: Path,
        put: Callable[[str, Path | bytes], Stored],
        *,
        image_size: int,
        shard_size: int,
        stored: Sequence[Shard] = (),
    ) -> None:
        self.count = sum(shard.count for shard in stored)
        self._scratch = scratch
        self._put = put
        self._image_size = image_size
        self._shard_size = shard_size
        self._storing = ThreadPoolExecutor(_STORED_AT_ONCE, thread_name_prefix="store")
        self._stored = [*stored]
        self._full: list[Future[Shard]] = []
        self._file: BinaryIO | None = None
        self._filled = 0

    def __enter__(self) -> Self:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._storing.shutdown()
        finally:
            if self._file is not None:
                with suppress(OSError):  # it writes what it held back, and the disk may be full
                    self._file.close()
            for path in self._scratch.glob("images-*.npy"):
                path.unlink(missing_ok=True)

    def append(self, patch: NDArray[np.uint8], then: Callable[[Shard], None] | None = None) -> None:
        """Add one patch, uint8 (S, S, 3). A thread calls `then` with the shard that it fills, once that is stored.

        Raises OSError when the disk is full, here or where shards are stored.
        """
        if patch.shape != (self._image_size, self._image_size, 3) or patch.dtype != np.uint8:
            raise ValueError(f"a patch must be uint8 {(self._image_size, self._image_size, 3)}, not {patch.shape}")
        file = self._file or self._start_shard()
        file.write(np.ascontiguousarray(patch).data)
        self._filled += 1
        self.count += 1
        if self._filled == self._shard_size:
            self._close_shard(file, then)

    def finish(self) -> None:
        """Have the last shard stored, and behind all of them packed.json: from here on they can be opened."""
        if self._file is not None:
            self._close_shard(self._file, None)
        manifest = {
            "version": VERSION,
            "count": self.count,
            "image_size": self._image_size,
            "dtype": "uint8",
            "shards": [asdict(shard) for shard in (*self._stored, *(full.result() for full in self._full))],
        }
        self._put(MANIFEST, json.dumps(manifest, indent=1).encode())
        reach(Failpoint.PACK_FINISHED)

    def _start_shard(self) -> BinaryIO:
        name = shard_name(len(self._stored) + len(self._full))
        self._file = (self._scratch / name).open("wb")
        self._filled = 0
        self._write_header(self._file, self._shard_size)
        return self._file

    def _close_shard(self, file: BinaryIO, then: Callable[[Shard], None] | None) -> None:
        if self._filled != self._shard_size:
            file.seek(0)
            self._write_header(file, self._filled)
        file.close()
        self._file = None
        if len(self._full) >= _STORED_AT_ONCE:
            self._full[-_STORED_AT_ONCE].result()  # scratch holds few, and a disk that is full is heard of
        self._full.append(self._storing.submit(self._store, Path(file.name), self._filled, then))

    def _store(self, path: Path, count: int, then: Callable[[Shard], None] | None) -> Shard:
        stored = self._put(path.name, path)
        path.unlink()
        shard = Shard(path.name, count, stored.size, stored.sha256)
        reach(Failpoint.SHARD_STORED)
        if then is not None:
            then(shard)
        return shard

    def _write_header(self, file: BinaryIO, count: int) -> None:
        shape = (count, self._image_size, self._image_size, 3)
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def shard_name(number: int) -> str:
    """What the shard in this place, from 0, is called."""
    return f"images-{number:05d}.npy"


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput("directory", f"{directory} holds no {MANIFEST}: nothing was packed there") from None
    except ValueError as error:
        raise ArtefactCorrupt(f"{path} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or not {"version", "count", "image_size", "shards"} <= manifest.keys():
        raise ArtefactCorrupt(f"{path} lacks version, count, image_size or shards")
    found = cast("dict[str, Any]", manifest)
    if found["version"] != VERSION:
        raise InvalidInput("directory", f"{path} has version {found['version']}; this program reads {VERSION}")
    return found


def _shards_of(directory: Path, manifest: dict[str, Any]) -> list[Shard]:
    try:
        shards = [Shard(**{name: shard[name] for name in _SHARD_PARTS}) for shard in manifest["shards"]]
    except (KeyError, TypeError) as error:
        raise ArtefactCorrupt(f"{directory / MANIFEST} describes a shard without {', '.join(_SHARD_PARTS)}") from error
    for shard in shards:
        if not _SHARD.fullmatch(shard.name):
            raise ArtefactCorrupt(f"{directory / MANIFEST} names a shard {shard.name!r}")
    return shards


def _open_shard(path: Path, shard: Shard, image_size: int) -> NDArray[np.uint8]:
    shape = (shard.count, image_size, image_size, 3)
    try:
        pixels = cast("NDArray[np.uint8]", np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtefactCorrupt(f"{path} is missing or truncated: {error}") from None
    if pixels.shape != shape or pixels.dtype != np.uint8 or path.stat().st_size != shard.size:
        raise ArtefactCorrupt(f"{path} holds {pixels.dtype} {pixels.shape}; {MANIFEST} says uint8 {shape}")
    return pixels


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

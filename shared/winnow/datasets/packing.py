"""Patches as uint8 shards on disk: written once, read by mmap.

A packed directory holds images-00000.npy, ... (k, S, S, 3) and packed.json, which is written last: a directory
without it is not packed. Each file is written under a temporary name, fsynced, renamed, and the directory fsynced.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from winnow.errors import ArtefactCorrupt, InvalidInput
from winnow.failpoints import Failpoint, reach

MANIFEST = "packed.json"
VERSION = 1
_SHARD = re.compile(r"images-\d{5,}\.npy")
_SHARD_PARTS = ("name", "count", "size", "sha256")


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
    """Writes patches one by one into shards. Left by an exception, or without `finish`, it removes all it wrote.

    Memory is one patch, whatever the shard size: patches are appended to an open file whose header, padded by
    NumPy for that purpose, gets its final length at the end. A full shard is synced, read for its digest and named by a
    thread while the next one is written.
    """

    def __init__(self, directory: Path, *, image_size: int, shard_size: int) -> None:
        self.directory = directory
        self.count = 0
        self._image_size = image_size
        self._shard_size = shard_size
        self._sealing = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._shards: list[Future[dict[str, Any]]] = []
        self._file: BinaryIO | None = None
        self._filled = 0
        self._finished = False

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MANIFEST).unlink(missing_ok=True)  # an older pack ends where its shards are overwritten
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._sealing.shutdown()
        finally:
            if not self._finished:
                self._discard()

    def append(self, patch: NDArray[np.uint8]) -> None:
        """Add one patch, uint8 (S, S, 3). Raises OSError when the disk is full."""
        if patch.shape != (self._image_size, self._image_size, 3) or patch.dtype != np.uint8:
            raise ValueError(f"a patch must be uint8 {(self._image_size, self._image_size, 3)}, not {patch.shape}")
        file = self._file or self._start_shard()
        file.write(np.ascontiguousarray(patch).data)
        self._filled += 1
        self.count += 1
        if self._filled == self._shard_size:
            self._close_shard(file)

    def finish(self) -> dict[str, Any]:
        """Close the last shard and write packed.json, which is returned: from here on the directory can be opened."""
        if self._file is not None:
            self._close_shard(self._file)
        manifest = {
            "version": VERSION,
            "count": self.count,
            "image_size": self._image_size,
            "dtype": "uint8",
            "shards": [shard.result() for shard in self._shards],
        }
        _write_atomically(self.directory / MANIFEST, json.dumps(manifest, indent=1).encode())
        reach(Failpoint.PACK_FINISHED)
        self._finished = True
        return manifest

    def _start_shard(self) -> BinaryIO:
        self._file = _temporary(self._target(len(self._shards))).open("xb")
        self._filled = 0
        self._write_header(self._file, self._shard_size)
        return self._file

    def _close_shard(self, file: BinaryIO) -> None:
        if self._filled != self._shard_size:
            file.seek(0)
            self._write_header(file, self._filled)
        if self._shards:
            self._shards[-1].result()  # no more than one waits, and a disk that is full is heard of
        self._file = None
        self._shards.append(self._sealing.submit(self._seal, file, self._target(len(self._shards)), self._filled))

    def _seal(self, file: BinaryIO, target: Path, count: int) -> dict[str, Any]:
        temporary = Path(file.name)
        with file:
            _sync(file)
        size, digest = temporary.stat().st_size, _digest(temporary)
        reach(Failpoint.SHARD_WRITTEN)
        temporary.replace(target)
        _sync_directory(self.directory)
        reach(Failpoint.SHARD_RENAMED)
        return {"name": target.name, "count": count, "size": size, "sha256": digest}

    def _target(self, number: int) -> Path:
        return self.directory / f"images-{number:05d}.npy"

    def _write_header(self, file: BinaryIO, count: int) -> None:
        shape = (count, self._image_size, self._image_size, 3)
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    def _discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # it writes what it held back, and the disk may be full
                self._file.close()
        for number in range(len(self._shards) + 1):
            target = self._target(number)
            target.unlink(missing_ok=True)
            for temporary in self.directory.glob(f".{target.name}.*"):
                temporary.unlink(missing_ok=True)


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


def _write_atomically(target: Path, content: bytes) -> None:
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            _sync(file)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

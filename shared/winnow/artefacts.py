"""Arrays, weights and reports by key: put, get, stat, list.

A key is a relative path (`experiments/ID/rounds/0003/a2/candidates.npy`). An artefact is written once under a
temporary name in its own directory, fsynced, renamed, and the directory fsynced: a reader sees all of it or none.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from winnow.errors import ArtefactCorrupt, InvalidInput, NotFound
from winnow.failpoints import Failpoint, reach
from winnow.paths import open_file

LONGEST_NAME = 220
"""Letters of one part of a key: a file system takes 255, and a file that is being written has some more."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """What is known of an artefact: its key, size in bytes and sha256."""

    key: str
    size: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Lying:
    """A file as it lies in the store, named by a manifest or not. `mark` is another one once its bytes are."""

    name: str
    size: int
    mark: str


class ArtefactStore(Protocol):
    """The seam: a directory today, an object store beside it."""

    def put(self, key: str, source: Path | bytes) -> Stored:
        """Store a file's or a string's bytes under `key`. Raises OSError, with the file name that could not be written,
        when the disk is full; nothing remains."""
        ...

    def local(self, key: str) -> Path:
        """A readable local file with the bytes of `key`. Raises NotFound."""
        ...

    def stat(self, key: str) -> Stored | None:
        """Size and sha256 of `key`, or None."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Keys below `prefix`, sorted."""
        ...

    def lying(self, prefix: str) -> Sequence[Lying]:
        """Every file below `prefix`, what killed writers left under temporary names included."""
        ...

    def free(self) -> int:
        """Bytes that can be written yet."""
        ...

    def delete(self, prefix: str) -> None:
        """Remove `prefix` and all below it; removing nothing is no error."""
        ...

    def move(self, prefix: str, target: str) -> None:
        """In one step, have all that lies below `prefix` below `target`, where nothing lies. Raises NotFound."""
        ...

    def remove(self, file: Lying, *, with_folder: bool = False) -> None:
        """Remove a file that lies there, and its folder if that is empty then; removing nothing is no error."""
        ...


def require_key(key: str) -> str:
    """`key`, if it is a clean relative path. Raises InvalidInput for `..`, absolute or odd names."""
    parts = key.split("/")
    if not _KEY.fullmatch(key) or ".." in parts or max(map(len, parts)) > LONGEST_NAME:
        wanted = f"parts of letters, digits, '.', '_', '-', {LONGEST_NAME} at most, joined by '/'"
        raise InvalidInput("key", f"{key!r} is not an artefact key: {wanted}")
    return key


class DirectoryStore:
    """Artefacts as files below one directory."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()

    def put(self, key: str, source: Path | bytes) -> Stored:
        target = self._path(key)
        try:
            return self._put(key, target, source)
        except OSError as error:
            error.filename = error.filename or str(target)  # a failed write names no file, and there are other disks
            raise

    def _put(self, key: str, target: Path, source: Path | bytes) -> Stored:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        digest = hashlib.sha256()
        size = 0
        try:
            with temporary.open("xb") as out:
                for chunk in _chunks(source):
                    digest.update(chunk)
                    size += out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            reach(Failpoint.ARTEFACT_WRITTEN)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(target.parent)
        reach(Failpoint.ARTEFACT_RENAMED)
        return Stored(key, size, digest.hexdigest())

    def local(self, key: str) -> Path:
        path = self._path(key)
        if path.is_symlink() or not path.is_file():  # the store makes no links: one that is there is not its own
            raise NotFound("artefact", key)
        return path

    def stat(self, key: str) -> Stored | None:
        path = self._path(key)
        is_there = path.is_file() and not path.is_symlink()
        return Stored(key, path.stat().st_size, digest_of(path)) if is_there else None

    def list(self, prefix: str) -> list[str]:
        start = self._path(prefix)
        if start.is_symlink():
            return []
        found = [start] if start.is_file() else start.rglob("*")
        return sorted(str(p.relative_to(self.root)) for p in found if p.is_file() and not p.name.startswith("."))

    def lying(self, prefix: str) -> Sequence[Lying]:
        start = self._path(prefix)
        if start.is_symlink():  # the store makes no links: what lies behind one is not its own
            return []
        found = (Path(folder, name) for folder, _, names in os.walk(start, onerror=_unless_gone) for name in names)
        return [Lying(str(path.relative_to(self.root)), *seen) for path in found if (seen := _look(path))]

    def free(self) -> int:
        return shutil.disk_usage(self.root).free

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        for folder, folders, names in os.walk(path, topdown=False, onerror=_unless_gone):
            links = (name for name in folders if Path(folder, name).is_symlink())
            for name in (*names, *links):
                Path(folder, name).unlink(missing_ok=True)
            with suppress(FileNotFoundError):  # somebody else deletes it, too
                Path(folder).rmdir()

    def move(self, prefix: str, target: str) -> None:
        source, goal = self._path(prefix), self._path(target)
        if source.is_symlink() or not source.is_dir():
            raise NotFound("artefact", prefix)
        goal.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(goal)
        except FileNotFoundError:  # somebody else moved it
            raise NotFound("artefact", prefix) from None
        for folder in {goal.parent, source.parent}:
            _sync_directory(folder)

    def remove(self, file: Lying, *, with_folder: bool = False) -> None:
        path = self.root / file.name
        if not path.parent.resolve().is_relative_to(self.root.resolve()):
            return  # a link took the folder's place
        path.unlink(missing_ok=True)
        if with_folder:
            with suppress(OSError):  # others lie there
                path.parent.rmdir()

    def _path(self, key: str) -> Path:
        """Where `key` is. Raises InvalidInput for an odd key, and for one whose folder is a link out of the store."""
        path = self.root / require_key(key)
        if not path.parent.resolve().is_relative_to(self.root):
            raise InvalidInput("key", f"{key!r} leads out of the artefact store through a link; remove the link")
        return path


def put_array(store: ArtefactStore, key: str, array: NDArray[Any]) -> Stored:
    """Store `array` as `.npy`."""
    import io

    buffer = io.BytesIO()
    np.save(cast("BinaryIO", buffer), array, allow_pickle=False)
    return store.put(key, buffer.getvalue())


def get_array(store: ArtefactStore, key: str, *, sha256: str | None = None) -> NDArray[Any]:
    """The `.npy` under `key`, memory-mapped. Raises NotFound, and ArtefactCorrupt if `sha256` is given and differs."""
    path = store.local(key)
    if sha256 is not None and digest_of(path) != sha256:
        raise ArtefactCorrupt(f"{key}: its bytes no longer match the sha256 recorded when it was written")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ArtefactCorrupt(f"{key}: not a readable .npy ({error})") from error


def put_json(store: ArtefactStore, key: str, value: object) -> Stored:
    """Store `value` as JSON with sorted keys."""
    return store.put(key, json.dumps(value, sort_keys=True, indent=1).encode())


def get_json(store: ArtefactStore, key: str) -> Any:
    """The JSON under `key`. Raises NotFound, and ArtefactCorrupt when it does not parse."""
    try:
        return json.loads(store.local(key).read_bytes())
    except ValueError as error:
        raise ArtefactCorrupt(f"{key}: not readable JSON ({error})") from error


def digest_of(path: Path) -> str:
    """sha256 of the file at a resolved path, in hexadecimal. A link there is an error, not followed."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one; one that went meanwhile, or is a file, is."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _look(path: Path) -> tuple[int, str] | None:
    """Size and mark of a file; None when it went meanwhile. The time in the mark is compared with itself alone."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_size, f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

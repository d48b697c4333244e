"""Digests of files, computed once for each state of a file, and what tells one state from the next."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from winnow.errors import InvalidInput
from winnow.paths import open_file

Mark = tuple[str, int, int, int]
"""What tells one state of a file from the next without reading it: path, inode, size, time of change.

That of change (ctime), not of writing (mtime), which `cp -p`, `rsync -t` and others set to what they like.
"""
Stop = Callable[[], bool]
REMEMBERED = 100_000
_CHUNK = 1 << 22


class Stopped(Exception):
    """The caller no longer wants the digest."""


class Digests:
    """sha256 of files."""

    def __init__(self) -> None:
        self._known: dict[Mark, str] = {}
        self._lock = threading.Lock()

    def known(self, mark: Mark) -> str | None:
        """The digest of a file in the state `mark`, if it was computed already."""
        with self._lock:
            return self._known.get(mark)

    def compute(self, mark: Mark, name: str, stop: Stop) -> str:
        """The digest of a file in the state `mark`. It takes a second or two a gigabyte.

        Raises InvalidInput naming `name` for a file that cannot be read or is in another state by now, and Stopped.
        """
        found = self.known(mark) or _hash(Path(mark[0]), name, stop)
        require_unchanged(mark, name)
        with self._lock:
            self._known[mark] = found
            while len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]
        return found


def mark_of(path: Path) -> Mark:
    """The state that a file is in."""
    try:
        status = path.stat()
    except OSError:  # gone: no state of the file is this one
        return (str(path), 0, -1, 0)
    return (str(path), status.st_ino, status.st_size, status.st_ctime_ns)


def require_unchanged(mark: Mark, name: str) -> None:
    """Raise InvalidInput naming `name` unless the file is in the state `mark` still."""
    path = Path(mark[0])
    if mark_of(path) != mark:
        raise InvalidInput(name, f"{path.name} changed while it was read; send the request again")


def _hash(path: Path, name: str, stop: Stop) -> str:
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            while chunk := file.read(_CHUNK):
                if stop():
                    raise Stopped
                digest.update(chunk)
    except OSError as error:
        raise InvalidInput(name, f"{path.name}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()

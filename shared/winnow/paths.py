"""Opening the file that was checked, and no other.

Between a check of a path and its opening somebody may put a link in the path's place. So a path is resolved first,
checked as resolved, and opened folder by folder without following a link: one that appeared since then is an error.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe's opening would wait for ever
REPLACED = (errno.ELOOP, errno.ENOTDIR)
"""What the kernel says of a link where a folder or a file was."""


def open_file(path: Path) -> io.BufferedReader:
    """The regular file at `path`, absolute and resolved, to be read.

    Raises OSError: as `open` does, for anything but a regular file, and for a link anywhere in the path.
    """
    handle = _open(path, _READ)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder at `path`, absolute and resolved, for os.scandir. Raises OSError like `open_file`."""
    handle = _open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def as_text(name: str) -> str:
    """A name, or words that have one in them, as it can be sent and stored: bytes that are no UTF-8 are written as
    escapes, and so is NUL, which Postgres refuses.
    """
    if not name.isascii():
        try:
            stored = os.fsencode(name)
        except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte of a file name
            stored = name.encode("utf-8", "surrogatepass")
        name = stored.decode("utf-8", "backslashreplace")
    return name.replace("\0", "\\x00")


def is_replaced(error: OSError) -> bool:
    """Whether a link was where none had been."""
    return error.errno in REPLACED


def _open(path: Path, flags: int) -> int:
    if not path.is_absolute() or ".." in path.parts:
        raise OSError(errno.EINVAL, "not a resolved path", str(path))
    try:
        at = os.open(path.anchor, _FOLDER)
        for name in path.parts[1:-1]:
            at = _step(at, name, _FOLDER)
        return _step(at, path.name or ".", flags)
    except OSError as error:
        error.filename = str(path)
        raise


def _step(at: int, name: str, flags: int) -> int:
    """Open `name` in the folder `at`, which is closed."""
    try:
        return os.open(name, flags, dir_fd=at)
    finally:
        os.close(at)

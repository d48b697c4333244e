"""The disk that artefacts and scratch lie on, small enough to be filled up."""

import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from processes import Member

RESERVE_MIB = 3072


class Volume:
    """A tmpfs of its own where this process may mount one; else a plain folder, whose writers get a file-size limit.

    A full tmpfs answers ENOSPC as a full disk does. A file-size limit (RLIMIT_FSIZE) answers EFBIG, and only for files
    above a megabyte: less true, and needs no privilege over the mount table.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        self.is_tmpfs = _run("mount", "-t", "tmpfs", "-o", f"size={RESERVE_MIB}m", "tmpfs", str(root))
        self._ballast = root / "ballast"

    @property
    def artefacts(self) -> Path:
        return self.root / "artefacts"

    @property
    def kind(self) -> str:
        """How it gets full, for the report."""
        return "a tmpfs filled up (ENOSPC)" if self.is_tmpfs else "a file-size limit on the trainers (EFBIG)"

    def fill(self, writers: Sequence[Member]) -> None:
        """From now on nothing more can be written."""
        if not self.is_tmpfs:
            self._limit(writers, 1 << 20)
            return
        with self._ballast.open("wb") as file, suppress(OSError):
            room = os.statvfs(self.root)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)

    def empty(self, writers: Sequence[Member]) -> None:
        """There is room again."""
        if self.is_tmpfs:
            self._ballast.unlink(missing_ok=True)
        else:
            self._limit(writers, resource.RLIM_INFINITY)

    def close(self) -> None:
        """Unmount, which lets everything on it go."""
        if self.is_tmpfs:
            _run("umount", "--lazy", str(self.root))

    @staticmethod
    def _limit(writers: Sequence[Member], size: int) -> None:
        for process in (process for member in writers for process in member.family()):
            with suppress(psutil.Error):
                process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _run(program: str, *arguments: str) -> bool:
    """Whether a program is there and succeeds."""
    found = shutil.which(program)
    return found is not None and subprocess.run([found, *arguments], capture_output=True, check=False).returncode == 0

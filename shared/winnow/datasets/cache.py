"""Packed shards on this machine's own disk: named by their sha256, verified once, bounded, shared by its workers.

Shards on the file system of the cache are read where they lie. Those on another one, a network mount, are copied
first, and compared with their sha256 on the way. Whatever stands in the way of a copy, the shard is read where it
lies, and the reason is noted: a cache makes training sooner, never impossible.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from winnow.datasets.packing import PackedImages, Shard
from winnow.errors import ArtefactCorrupt
from winnow.failpoints import Failpoint, reach

SPARE_SHARE = 0.1
_CHUNK = 4 << 20
_PAUSE = 0.1
Stop = Callable[[], bool]


class ShardCache:
    """Shards kept in one directory by any number of processes of this machine.

    Args:
        directory: made when needed. capacity: bytes of copies; those unused for longest go first, and never those that
            a living process has open.
        spare_share: of the disk, what copies leave free for others.
        note: hears why a shard was not copied.
    """

    def __init__(
        self,
        directory: Path,
        capacity: int,
        *,
        spare_share: float = SPARE_SHARE,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory = directory
        self._capacity = capacity
        self._spare_share = spare_share
        self._note = note
        self._in_use: list[BinaryIO] = []

    def open(self, packed: Path, should_stop: Stop = lambda: False) -> PackedImages:
        """The patches of a packed directory, each shard from here where that is another file system.

        What this cache opened before may be removed from now on. A stop leaves the rest where it lies, unverified.

        Raises InvalidInput, ArtefactCorrupt.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.close()
        found: list[Path] = []

        def locate(shard: Shard) -> Path:
            found.append(self._fetch(packed / shard.name, shard, should_stop))
            return found[-1]

        is_near = packed.stat().st_dev == self.directory.stat().st_dev
        images = PackedImages.open(packed, locate=None if is_near else locate)
        if is_near or any(path.parent == packed for path in found):
            images.verify_once(self.directory / "verified", should_stop)
        return images

    def close(self) -> None:
        """Hold on to nothing."""
        for file in self._in_use:
            file.close()
        self._in_use.clear()

    def _fetch(self, source: Path, shard: Shard, should_stop: Stop) -> Path:
        entry = self.directory / f"{shard.sha256}.npy"
        with self._alone(should_stop) as mine:
            if not mine:
                return source
            if not (entry.exists() and entry.stat().st_size == shard.size):
                reason = self._copy(source, entry, shard, should_stop)
                if reason:
                    self._note(f"{source.name} is read where it lies: {reason}")
                    return source
            self._use(entry)
        return entry

    @contextlib.contextmanager
    def _alone(self, should_stop: Stop) -> Iterator[bool]:
        """One process at a time looks for room and copies; False when it is time to stop instead."""
        with (self.directory / "lock").open("wb") as lock:
            while not _locks(lock, fcntl.LOCK_EX):
                if should_stop():
                    yield False
                    return
                time.sleep(_PAUSE)  # the kernel has no wait for a file's lock that a stop could end
            yield True

    def _use(self, entry: Path) -> None:
        file = entry.open("rb")
        fcntl.flock(file, fcntl.LOCK_SH)  # for as long as this process has it open
        self._in_use.append(file)
        os.utime(entry)

    def _copy(self, source: Path, entry: Path, shard: Shard, should_stop: Stop) -> str:
        """Copy a shard; why not, if not. Raises ArtefactCorrupt."""
        for left in self.directory.glob(".*.part"):
            left.unlink(missing_ok=True)  # of a process that died: nobody else copies now
        if not self._makes_room(shard.size):
            return f"copies may take {self._capacity} bytes, and leave {self._spare_share:.0%} of the disk free"
        temporary = self.directory / f".{entry.name}.part"
        try:
            digest = _copied(source, temporary, should_stop)
            if digest is None:
                return "it is time to stop"
            if digest != shard.sha256:
                raise ArtefactCorrupt(f"{source} does not match its sha256; ingest again")
            reach(Failpoint.PATCHES_COPIED)
            temporary.replace(entry)
            reach(Failpoint.PATCHES_CACHED)
        except OSError as error:
            return str(error)
        finally:
            temporary.unlink(missing_ok=True)
        return ""

    def _makes_room(self, size: int) -> bool:
        """Remove what was unused for longest until `size` more bytes fit; whether they do."""
        entries = sorted(self.directory.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        held = sum(path.stat().st_size for path in entries)
        while held + size > self._capacity or self._free() < size:
            if not entries:
                return False
            entry = entries.pop(0)
            with entry.open("rb") as file:
                if _locks(file, fcntl.LOCK_EX):
                    held -= entry.stat().st_size
                    entry.unlink()
        return True

    def _free(self) -> int:
        disk = shutil.disk_usage(self.directory)
        return disk.free - int(disk.total * self._spare_share)


def _copied(source: Path, target: Path, should_stop: Stop) -> str | None:
    """Copy a file; its sha256, or None when it was stopped."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(_CHUNK):
            if should_stop():
                return None
            digest.update(chunk)
            write.write(chunk)
        write.flush()
        os.fsync(write.fileno())
    return digest.hexdigest()


def _locks(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

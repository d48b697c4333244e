"""Files of embeddings that people send: streamed to disk, checked, kept under the digest of their bytes and name."""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from winnow import embeddings
from winnow.artefacts import DirectoryStore, get_json, put_json
from winnow.embeddings import Survey
from winnow.errors import InvalidInput, NotFound, Unavailable
from winnow.failpoints import Failpoint, reach
from winnow.problems import TooLarge

FOLDER = "embeddings"
INCOMING = ".incoming-"
_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}")


@dataclass(frozen=True)
class Upload:
    """One kept file: what it is called, where its bytes are, and their digest."""

    id: str
    name: str
    path: Path
    sha256: str


class Uploads:
    """All kept files. Together they hold `kept` bytes at most; the one unused for longest goes first.

    `held` names those that work under way is about: they do not go.
    """

    def __init__(self, store: DirectoryStore, largest: int, kept: int, held: Callable[[], Set[str]]) -> None:
        self._store, self._kept, self._held = store, kept, held
        self.largest = min(largest, kept)
        self._lock = threading.Lock()
        self._sweep()

    def begin(self, name: str, length: int | None) -> "Incoming":
        """A place for the bytes of an upload. Raises InvalidInput for a name, and TooLarge by its Content-Length."""
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise InvalidInput("name", "needs the file's name: 1 to 200 characters, no path, no dot at its start")
        if length is not None and length > self.largest:
            raise TooLarge("body", f"{length} bytes; the limit is {self.largest}. Nothing of it was read")
        return Incoming(self._store.root / f"{INCOMING}{secrets.token_hex(8)}", name, self.largest)

    def keep(self, incoming: "Incoming") -> tuple[dict[str, Any], bool]:
        """What was kept, and whether it is new.

        Raises InvalidInput for a file that holds no embeddings, and Unavailable where there is no room for it.
        """
        id, found = incoming.id, self._survey(incoming)
        with self._lock:
            try:
                return self.about(id), False
            except NotFound:
                self._make_room(incoming.size)
                return self._put(id, incoming, found), True

    def about(self, id: str) -> dict[str, Any]:
        """What is known of an upload. Raises NotFound."""
        return self._look(id)[0]

    def find(self, id: str) -> Upload:
        """The file of an upload, which counts as used now. Raises NotFound."""
        known, path = self._look(id)
        with contextlib.suppress(OSError, NotFound):
            os.utime(self._store.local(_about(id)))
        return Upload(id, known["name"], path, known["sha256"])

    def delete(self, id: str) -> None:
        """Remove an upload. Raises NotFound."""
        with self._lock:
            self._look(id)
            self._delete(id)

    def _look(self, id: str) -> tuple[dict[str, Any], Path]:
        """What is known of an upload, and its file. Raises NotFound unless both are there."""
        _require_id(id)
        try:
            known = get_json(self._store, _about(id))
            return known, self._store.local(f"{FOLDER}/{id}/{_safe(known['name'])}")
        except NotFound:
            raise NotFound("embeddings", id) from None

    def _delete(self, id: str) -> None:
        self._store.delete(_about(id))  # first: a file that is described is there
        self._store.delete(f"{FOLDER}/{id}")

    def _survey(self, incoming: "Incoming") -> Survey:
        try:
            return embeddings.survey([incoming.path], name="body", names=[incoming.name])
        except InvalidInput as error:
            raise InvalidInput(error.field, error.reason.replace(incoming.path.name, incoming.name)) from error

    def _put(self, id: str, incoming: "Incoming", found: Survey) -> dict[str, Any]:
        about = {
            "id": id,
            "name": incoming.name,
            "rows": found.rows,
            "columns": found.columns,
            "dtype": found.sources[0].dtype,
        }
        with _needing_room():
            stored = self._store.put(f"{FOLDER}/{id}/{_safe(incoming.name)}", incoming.path)
            reach(Failpoint.UPLOAD_STORED)
            about |= {"bytes": stored.size, "sha256": stored.sha256}
            put_json(self._store, _about(id), about)
        reach(Failpoint.UPLOAD_DESCRIBED)
        return about

    def _make_room(self, size: int) -> None:
        """Remove what was unused for longest until `size` bytes fit. Raises Unavailable where what is held is too much.

        A file that is open keeps its bytes until it is closed. The lock is held.
        """
        sizes: dict[str, int] = {}
        used: dict[str, float] = {}
        for key in self._store.list(FOLDER):
            _, id, name = key.split("/", maxsplit=2)
            status = self._store.local(key).stat()
            sizes[id] = sizes.get(id, 0) + status.st_size
            if name == "about.json":
                used[id] = status.st_mtime
        held = self._held()
        left = self._kept - size - sum(size for id, size in sizes.items() if id in held)
        if left < 0:
            raise Unavailable("uploads that jobs work on leave no room for this one; send it when they have ended")
        for id in sorted(sizes.keys() - held, key=lambda one: used.get(one, 0.0), reverse=True):
            left -= sizes[id]
            if left < 0:
                self._delete(id)

    def _sweep(self) -> None:
        """Remove what uploads that were cut off left behind: nobody holds their locks any more, whatever the time."""
        for left in self._store.root.glob(f"{INCOMING}*"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


class Incoming:
    """An upload while it arrives. As a context manager: its file is gone at the end, whatever happened."""

    def __init__(self, path: Path, name: str, largest: int) -> None:
        self.path, self.name = path, name
        self._largest, self.size = largest, 0
        self._digest = hashlib.sha256()
        with _needing_room():
            self._file = _open_locked(path)

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what could not be written was told of
            self._file.close()
        self.path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Take more bytes. Raises TooLarge with the first byte beyond the limit."""
        self.size += len(chunk)
        if self.size > self._largest:
            raise TooLarge("body", f"more than {self._largest} bytes, which is the limit; the rest was not read")
        self._digest.update(chunk)
        with _needing_room():
            self._file.write(chunk)

    def finish(self) -> None:
        """All bytes are here. The file stays open, and with it locked, until it is no longer needed."""
        with _needing_room():
            self._file.flush()

    @property
    def id(self) -> str:
        """Digest of the name and of the bytes: the same file has the same id."""
        return hashlib.sha256(f"{self.name}\0{self._digest.hexdigest()}".encode()).hexdigest()


@contextlib.contextmanager
def _needing_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the file could not be stored ({error.strerror}); send it again once it can be") from error


def _open_locked(path: Path) -> BinaryIO:
    """A new file, locked for as long as it is open. The lock is shared: HDF5 takes another one of that kind to read."""
    while True:
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_SH)
        if path.exists():
            return file
        file.close()  # a sampler that started at this moment found it before it was locked


def _require_id(id: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", id):
        raise NotFound("embeddings", id)


def _about(id: str) -> str:
    """The key of what is known of an upload."""
    return f"{FOLDER}/{id}/about.json"


def _safe(name: str) -> str:
    """The name as part of an artefact's key."""
    return "f-" + re.sub(r"[^A-Za-z0-9._-]", "_", name)

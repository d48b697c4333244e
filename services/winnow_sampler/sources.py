"""From references to arrays: where each lies, its digest before it is read, and what reading it takes."""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from winnow import embeddings
from winnow.artefacts import DirectoryStore, digest_of
from winnow.embeddings import Embeddings, Survey
from winnow.errors import ArtefactCorrupt, InvalidInput, PathForbidden
from winnow.problems import TooLarge
from winnow.settings import Settings
from winnow_sampler.schemas import ArrayRef, LabelsRef
from winnow_sampler.uploads import Uploads

Features = NDArray[np.float32]
Mark = tuple[str, int, int, int]
"""What tells one state of a file from the next without reading it."""


class Input(Protocol):
    """An array that was not read yet."""

    @property
    def digest(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def bytes_to_read(self) -> int: ...

    def read(self) -> Embeddings:
        """Its rows, and where they came from. Raises InvalidInput for bytes that cannot be used."""
        ...

    def require_unchanged(self, name: str) -> None:
        """Raise InvalidInput naming `name` where the rows are no longer those that the digest was taken of."""
        ...


@dataclass(frozen=True, eq=False)
class Inline:
    """Numbers that came in the request."""

    array: Features

    @property
    def digest(self) -> str:
        return hashlib.sha256(str(self.array.shape).encode() + self.array.tobytes()).hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    @property
    def bytes_to_read(self) -> int:
        return self.array.nbytes

    def read(self) -> Embeddings:
        return Embeddings(self.array, (), ())

    def require_unchanged(self, name: str) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Stored:
    """Files: artefacts, uploads, or files under the data roots. `says_where`: whether picks name their files."""

    survey: Survey
    sha256: str
    marks: tuple[Mark, ...]
    says_where: bool

    @property
    def digest(self) -> str:
        return self.sha256

    @property
    def shape(self) -> tuple[int, int]:
        return self.survey.rows, self.survey.columns

    @property
    def bytes_to_read(self) -> int:
        return self.survey.bytes_to_read

    def read(self) -> Embeddings:
        found = self.survey.read()
        return found if self.says_where else Embeddings(found.features, (), found.notes)

    def require_unchanged(self, name: str) -> None:
        for source, mark in zip(self.survey.sources, self.marks, strict=True):
            if _mark(source.path) != mark:
                raise InvalidInput(name, f"{source.path.name} changed while it was read; send the request again")


class Sources:
    """Finds what requests refer to."""

    def __init__(self, settings: Settings, store: DirectoryStore, uploads: Uploads) -> None:
        self._settings, self._store, self._uploads = settings, store, uploads
        self._digests: dict[Mark, str] = {}
        self._lock = threading.Lock()

    def find(self, name: str, reference: ArrayRef) -> Input:
        """The array that a reference means, of which only the headers were read.

        Raises InvalidInput naming `name`, TooLarge, NotFound, PathForbidden, ArtefactCorrupt.
        """
        if reference.key is not None:
            return self._artefact(name, reference.key, reference.sha256)
        if reference.upload is not None:
            found = [self._uploads.find(id) for id in _listed(reference.upload)]
            return self._files(name, [one.path for one in found], [one.name for one in found])
        if reference.path is not None:
            paths = [require_inside(Path(path), self._settings.data_roots) for path in _listed(reference.path)]
            files, names = embeddings.list_files(paths, name)
            return self._files(name, [require_inside(file, self._settings.data_roots) for file in files], names)
        return self._inline(name, reference)

    def digest(self, path: Path) -> str:
        """sha256 of a file; computed again only when the file has changed."""
        known = _mark(path)
        with self._lock:
            found = self._digests.get(known)
        if found is None:
            found = digest_of(path)
            with self._lock:
                self._digests[known] = found
        return found

    def _artefact(self, name: str, key: str, sha256: str | None) -> Input:
        path = self._store.local(key)
        marks = (_mark(path),)
        digest = self.digest(path)
        if sha256 is not None and digest != sha256:
            raise ArtefactCorrupt(f"{key}: its bytes no longer match the sha256 recorded when it was written")
        return Stored(embeddings.survey([path], name=name, follow=False), digest, marks, says_where=False)

    def _files(self, name: str, files: Sequence[Path], names: Sequence[str]) -> Input:
        try:
            return self._surveyed(name, files, names)
        except OSError as error:  # gone since it was found, or a link took its place
            called = Path(str(error.filename or files[0])).name
            raise InvalidInput(name, f"{called} cannot be read ({error.strerror}); send the request again") from error

    def _surveyed(self, name: str, files: Sequence[Path], names: Sequence[str]) -> Input:
        marks = tuple(_mark(file) for file in files)
        survey = embeddings.survey(files, name=name, names=names, follow=False)
        both = zip(names, files, strict=True)
        text = "\n".join(f"{called}\0{self.digest(file)}" for called, file in both)
        return Stored(survey, hashlib.sha256(text.encode()).hexdigest(), marks, says_where=True)

    def _inline(self, name: str, reference: ArrayRef) -> Input:
        numbers = sum(len(row) for row in reference.inline or [])
        limit = self._settings.inline_limit
        if numbers > limit:
            raise TooLarge(name, f"{numbers} inline numbers; the limit is {limit}. Upload the array, or send its key")
        array = reference.inline_array()
        if array.size == 0:
            raise InvalidInput(name, f"is empty, got shape {array.shape}")
        return Inline(array)


def labels_of(name: str, wanted: LabelsRef, pool: Input | None, rows: int) -> list[str]:
    """(rows,) one label a candidate. Raises InvalidInput naming `name`."""
    if wanted.inline is not None:
        found = [str(label) for label in wanted.inline]
    elif not isinstance(pool, Stored) or not pool.says_where:
        raise InvalidInput(name, "needs a pool that came from files; send the labels inline")
    elif wanted.by is not None:
        found = pool.survey.groups()
    else:
        assert wanted.column is not None
        found = pool.survey.values(wanted.column, name)
    if len(found) != rows:
        raise InvalidInput(name, f"needs {rows} labels, one for each candidate, got {len(found)}")
    return found


def require_inside(path: Path, roots: Sequence[Path]) -> Path:
    """`path` with its root resolved, if it lies under one of `roots` by its own name: no `..`, no link below the root.

    Whoever opens it follows no link: one that was put there since is an error.

    Raises PathForbidden.
    """
    allowed = [str(root) for root in roots]
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise PathForbidden(str(path), allowed)
    for root in roots:
        if path.is_relative_to(root):
            plain = root.resolve() / path.relative_to(root)
            if os.path.realpath(path) == str(plain):
                return plain
    raise PathForbidden(str(path), allowed)


def _mark(path: Path) -> Mark:
    try:
        status = path.stat()
    except OSError:  # gone: no state of the file is this one
        return (str(path), 0, -1, 0)
    return (str(path), status.st_ino, status.st_size, status.st_mtime_ns)


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def digest_json(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

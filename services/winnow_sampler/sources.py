"""From references to arrays: where each lies, its digest before it is read, and what reading it takes."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from winnow import embeddings
from winnow.artefacts import DirectoryStore
from winnow.embeddings import Embeddings, Survey
from winnow.errors import ArtefactCorrupt, InvalidInput, PathForbidden, Unavailable
from winnow.problems import TooLarge
from winnow.settings import Settings
from winnow_sampler.digests import Digests, Mark, Stop, mark_of, require_unchanged
from winnow_sampler.schemas import ArrayRef, LabelsRef
from winnow_sampler.uploads import Uploads

Features = NDArray[np.float32]


class Input(Protocol):
    """An array that was not read yet."""

    @property
    def known_digest(self) -> str | None:
        """Of its bytes, where that takes no reading of them."""
        ...

    @property
    def state(self) -> str:
        """What stands for the digest as long as that is not known: it changes whenever the bytes do."""
        ...

    def digest(self, name: str, stop: Stop) -> str:
        """Of its bytes, which are read if need be. Raises InvalidInput naming `name`, ArtefactCorrupt, Stopped."""
        ...

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
    def known_digest(self) -> str:
        return hashlib.sha256(str(self.array.shape).encode() + self.array.tobytes()).hexdigest()

    @property
    def state(self) -> str:
        return self.known_digest

    def digest(self, name: str, stop: Stop) -> str:
        return self.known_digest

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    @property
    def bytes_to_read(self) -> int:
        return self.array.nbytes

    def read(self) -> Embeddings:
        return Embeddings(self.array, ())

    def require_unchanged(self, name: str) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Stored:
    """Files that this service keeps, artefacts or uploads, or that are other people's, under the data roots.

    survey    what they hold
    marks     the state that each was in when it was surveyed
    said      the digest of each, where someone else vouches for it: the request, or the upload's record
    private   where other people's files are copied to before they are mapped, or None for files that nobody changes
    is_named  whether the files' names are part of the digest, and of the answer
    """

    survey: Survey
    marks: tuple[Mark, ...]
    digests: Digests
    said: tuple[str | None, ...]
    private: Path | None = None
    is_named: bool = True

    @property
    def known_digest(self) -> str | None:
        found = [said or self.digests.known(mark) for said, mark in zip(self.said, self.marks, strict=True)]
        known = [one for one in found if one is not None]
        return self._joined(known) if len(known) == len(found) else None

    @property
    def state(self) -> str:
        return digest_json([self.survey.names, self.marks])

    def digest(self, name: str, stop: Stop) -> str:
        found: list[str] = []
        for said, mark in zip(self.said, self.marks, strict=True):
            found.append(self.digests.compute(mark, name, stop))
            if said is not None and said != found[-1]:
                reason = "its bytes no longer match the sha256 recorded when it was written"
                raise ArtefactCorrupt(f"{Path(mark[0]).name}: {reason}")
        return self._joined(found)

    def _joined(self, digests: Sequence[str]) -> str:
        if not self.is_named:
            return "\n".join(digests)
        both = zip(self.survey.names, digests, strict=True)
        return hashlib.sha256("\n".join(f"{name}\0{digest}" for name, digest in both).encode()).hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        return self.survey.rows, self.survey.columns

    @property
    def bytes_to_read(self) -> int:
        return self.survey.bytes_to_read

    def read(self) -> Embeddings:
        try:
            return self.survey.read(self.private)
        except OSError as error:
            reason = f"no room in {self.private} for the copy that is picked from ({error.strerror})"
            raise Unavailable(f"{reason}; make some, or send the file to /v1/embeddings") from error

    def require_unchanged(self, name: str) -> None:
        for mark in self.marks:
            require_unchanged(mark, name)


class Sources:
    """Finds what requests refer to."""

    def __init__(self, settings: Settings, store: DirectoryStore, uploads: Uploads) -> None:
        self._settings, self._store, self._uploads = settings, store, uploads
        self._digests = Digests()

    def find(self, name: str, reference: ArrayRef) -> Input:
        """The array that a reference means, of which only the headers were read.

        Raises InvalidInput naming `name`, TooLarge, NotFound, PathForbidden.
        """
        if reference.key is not None:
            return self._artefact(name, reference.key, reference.sha256)
        if reference.upload is not None:
            return self._upload(name, listed(reference.upload))
        if reference.path is not None:
            return self._path(name, [Path(path) for path in listed(reference.path)])
        return self._inline(name, reference)

    def _artefact(self, name: str, key: str, sha256: str | None) -> Input:
        path = self._store.local(key)
        marks = (mark_of(path),)
        survey = self._survey(name, [path])
        return Stored(survey, marks, self._digests, (sha256,), is_named=False)

    def _upload(self, name: str, ids: list[str]) -> Input:
        found = [self._uploads.find(id) for id in ids]
        paths = [one.path for one in found]
        marks = tuple(mark_of(path) for path in paths)
        survey = self._survey(name, paths, [one.name for one in found])
        return Stored(survey, marks, self._digests, tuple(one.sha256 for one in found))

    def _path(self, name: str, given: list[Path]) -> Input:
        roots = self._settings.data_roots
        files, names = embeddings.list_files([require_inside(path, roots) for path in given], name)
        files = [require_inside(file, roots) for file in files]
        marks = tuple(mark_of(file) for file in files)
        survey = self._survey(name, files, names)
        return Stored(survey, marks, self._digests, (None,) * len(files), private=self._store.root)

    def _survey(self, name: str, files: Sequence[Path], names: Sequence[str] | None = None) -> Survey:
        try:
            return embeddings.survey(files, name=name, names=names, follow=False)
        except OSError as error:  # gone since it was found, or a link took its place
            called = Path(str(error.filename or files[0])).name
            raise InvalidInput(name, f"{called} cannot be read ({error.strerror}); send the request again") from error

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
    elif not isinstance(pool, Stored) or not pool.is_named:
        raise InvalidInput(name, "needs a pool that came from files; send the labels inline")
    elif wanted.by is not None:
        found = pool.survey.groups(name)
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


def listed(given: str | list[str]) -> list[str]:
    """One or several, as several."""
    return [given] if isinstance(given, str) else given


def digest_json(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

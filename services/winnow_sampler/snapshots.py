"""The arrays that one request is about: found, sized and digested before anything is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from winnow.embeddings import Embeddings, Part
from winnow.errors import InvalidInput
from winnow.selection import PICKS, Constraints, NearDuplicates, Requirements, requirements
from winnow_sampler.digests import Stop
from winnow_sampler.memory import ORIGIN, PICK, Size, estimate
from winnow_sampler.schemas import ARRAYS, ConstraintsRequest, LabelsRef, NearDuplicatesRequest, Snapshot
from winnow_sampler.sources import Input, Sources, Stored, digest_json, labels_of, listed

Features = NDArray[np.float32]
LABEL_BYTES = 128
"""Of one candidate's group: as text of some 20 letters, and its number."""


@dataclass(frozen=True)
class Wanted:
    """What decides a run beside the snapshot."""

    strategy: str
    constraints: ConstraintsRequest | None
    near_duplicates: NearDuplicatesRequest | None

    @property
    def needs(self) -> Requirements:
        return requirements(self.strategy)

    def reads(self) -> set[str]:
        """The arrays that the run looks at."""
        found = set[str]() if self.needs.counts_rows else {*self.needs.requires, *self.needs.reads}
        keeps_away = self.constraints is not None and self.constraints.minimum_distance is not None
        if keeps_away or self.near_duplicates is not None:
            found |= {"pool"} | ({"centers"} if keeps_away else set())
        return found & set(ARRAYS)


@dataclass(frozen=True, eq=False)
class Arrays:
    """What was read of a snapshot."""

    read: dict[str, Embeddings]
    rows: int

    @property
    def pool(self) -> Features | None:
        return self.given("pool")

    def given(self, name: str) -> Features | None:
        found = self.read.get(name)
        return None if found is None else found.features

    def named(self) -> dict[str, Any]:
        """As `select` takes them."""
        return {name: self.given(name) for name in ARRAYS} | {"n": self.rows}

    def notes(self) -> list[str]:
        """What was converted to get here."""
        return [f"{name}: {note}" for name, one in self.read.items() for note in one.notes]


class Found:
    """A request's arrays, of which only the headers were read."""

    def __init__(self, request: Snapshot, sources: Sources) -> None:
        self.inputs: dict[str, Input] = {
            name: sources.find(name, getattr(request, name)) for name in ARRAYS if getattr(request, name) is not None
        }
        self.size = request.size
        self.groups = request.groups
        given = [getattr(request, name).upload for name in self.inputs]
        self.uploads = frozenset(id for one in given if one is not None for id in listed(one))

    @property
    def rows(self) -> int:
        """How many candidates there are. Raises InvalidInput where nothing says so, or two inputs disagree."""
        counts = {name: self.inputs[name].shape[0] for name in ("pool", "probabilities") if name in self.inputs}
        if self.size is not None:
            counts["size"] = self.size
        if not counts:
            raise InvalidInput("pool", "needs the candidates: pool, or probabilities, or size")
        (one, first), *others = counts.items()
        for other, count in others:
            if count != first:
                raise InvalidInput(other, f"needs a row for each of {one}'s {first}, got {count}")
        return first

    def identify(self, kind: str, asked: dict[str, Any]) -> str:
        """sha256 of everything that the answer depends on; or what stands for it, while a file's digest is not known.

        Nothing is read here.
        """
        known = {name: one.known_digest for name, one in self.inputs.items()}
        if None in known.values():
            known = {name: one.state for name, one in self.inputs.items()}
        return self._digest(kind, asked, known)

    def settle(self, kind: str, asked: dict[str, Any], stop: Stop) -> str:
        """The same, from the bytes of every array. Raises InvalidInput, ArtefactCorrupt, Stopped."""
        return self._digest(kind, asked, {name: one.digest(name, stop) for name, one in self.inputs.items()})

    def _digest(self, kind: str, asked: dict[str, Any], arrays: Mapping[str, str | None]) -> str:
        rest = {name: value for name, value in asked.items() if name not in ARRAYS}
        made_by = PICKS, faiss.__version__, np.__version__  # the draws are NumPy's
        return digest_json({"kind": kind, **rest, "arrays": arrays, "made_by": made_by})

    def need(self, wanted: Wanted, budget: int) -> int:
        """Bytes that a run takes beyond its inputs. Raises InvalidInput for inputs that disagree."""
        size = self._size(budget)
        stage = 0 if wanted.near_duplicates is None else estimate("near_duplicates", size)
        labels = 0 if self.groups is None else LABEL_BYTES * size.n
        return max(stage, estimate(wanted.strategy, size)) + labels

    def need_to_answer(self, picks: int) -> int:
        """Bytes that an answer of so many picks takes until it is stored."""
        return picks * PICK

    def need_to_name(self, picks: int) -> int:
        """Bytes that it takes to say where so many picks come from: what the files have beside their features, too."""
        pool = self._named_pool()
        return 0 if pool is None else pool.survey.bytes_beside + picks * ORIGIN

    def need_to_measure(self, budget: int) -> int:
        """Bytes that holding a batch against others takes."""
        return estimate("measures", self._size(budget))

    def _size(self, budget: int) -> Size:
        (_, d), (_, c), (m, _) = (self._shape(name) for name in ("pool", "probabilities", "centers"))
        return Size(self.rows, d, c, m, budget)

    def _shape(self, name: str) -> tuple[int, int]:
        return self.inputs[name].shape if name in self.inputs else (0, 0)

    def bytes_to_read(self, names: set[str]) -> int:
        """Bytes that reading these arrays takes."""
        return sum(one.bytes_to_read for name, one in self.inputs.items() if name in names)

    def read(self, names: set[str]) -> Arrays:
        """The arrays, read. Raises InvalidInput for bytes that cannot be used."""
        return Arrays({name: one.read() for name, one in self.inputs.items() if name in names}, self.rows)

    def parts(self) -> tuple[Part, ...] | None:
        """The files of the pool, to say where picks come from; None where it is not of files with names."""
        pool = self._named_pool()
        return None if pool is None else pool.survey.parts()

    def _named_pool(self) -> Stored | None:
        pool = self.inputs.get("pool")
        return pool if isinstance(pool, Stored) and pool.is_named else None

    def require_unchanged(self) -> None:
        """Raise InvalidInput where a file is no longer what its digest says: the answer would be kept as another's."""
        for name, one in self.inputs.items():
            one.require_unchanged(name)

    def labels(self, name: str, wanted: LabelsRef | None) -> list[str] | None:
        """(n,) one label a candidate, or None where none are wanted."""
        return None if wanted is None else labels_of(name, wanted, self.inputs.get("pool"), self.rows)

    def constraints(self, asked: ConstraintsRequest | None) -> Constraints | None:
        """As the library takes them. Raises InvalidInput for labels that do not fit, whether or not they are used."""
        groups = self.labels("groups", self.groups)
        if asked is None:
            return None
        return Constraints(
            groups=groups,
            cap=asked.cap,
            quota=asked.quota,
            quota_is_exact=asked.quota_is_exact,
            exclude=asked.exclude,
            pinned=asked.pinned,
            minimum_distance=asked.minimum_distance,
        )


def near_duplicates_of(asked: NearDuplicatesRequest | None) -> NearDuplicates | None:
    """As the library takes them."""
    return None if asked is None else NearDuplicates(asked.threshold, asked.metric)

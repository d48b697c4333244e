"""Holds an experiment against itself: bytes against their manifests, batches against what they were picked from.

All of it over REST, so that whoever has the address and a key with scope read may do it, with the library of their own
machine. What is replayed is what the steward asked the sampler for (winnow_coordinator.orders).
"""

import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.client import ApiProblem, Client
from winnow.domain import Arm, ExperimentSpec, Role, derive_seed
from winnow.errors import NotFound
from winnow.selection import select
from winnow.selection.draws import draw_candidates, draw_initial
from winnow_coordinator.orders import inputs_of, terms

Json = dict[str, Any]
Indices = NDArray[np.int64]
INDEX, SELECTED, WEIGHTS = "candidates/index", "selected/index", "state/weights"
ROLES = tuple(Role)
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Scores of another machine's arithmetic."""


@dataclass(frozen=True)
class Problem:
    """One thing that differs."""

    round: int
    what: str
    reason: str


@dataclass
class Verdict:
    """What was looked at of one round. `replay` is same, differs, or why nothing was replayed."""

    round: int
    files: int = 0
    bytes: int = 0
    picks: int = 0
    replay: str = ""
    problems: list[Problem] = field(default_factory=list[Problem])

    def blame(self, what: str, reason: str) -> None:
        """Note what differs."""
        self.problems.append(Problem(self.round, what, reason))


class Unexplained(Exception):
    """Something that a replay needs is not there; `what` was reported already, or is now."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.what, self.reason = what, reason


class Verification:
    """One experiment, looked at round by round."""

    def __init__(self, client: Client, id: str) -> None:
        self._client, self.id = client, id
        self.experiment = client.experiment(id)
        self._spec = ExperimentSpec.model_validate(self.experiment["spec"])
        self._rounds = list(client.rounds(id))
        self._listed: dict[int, dict[str, Json]] = {}
        self._replayed = {INDEX, SELECTED, *inputs_of(self._spec).values()} if self._picks else set[str]()
        self._folder = Path()
        self._fetched: dict[tuple[int, str], str] = {}
        self._idx, self._roles, labels = self._read_samples()
        in_pool = self._roles == ROLES.index(Role.POOL)
        self._pool, self._labels = self._idx[in_pool], labels[in_pool]
        self._batches = [client.selection(id, row["number"]) for row in self._rounds] if self._picks else []

    def _read_samples(self) -> tuple[Indices, Indices, Indices]:
        """The idx of all samples, ascending, the number of each one's role in ROLES, and that of its label among the
        dataset's classes, -1 where it has none: all (n,), of millions.
        """
        dataset = self._client.dataset(self.experiment["dataset"])
        labels = {None: -1} | {label: number for number, label in enumerate(dataset["classes"])}
        roles = {role.value: number for number, role in enumerate(ROLES)}
        found = array("q"), array("q"), array("q")
        for one in self._client.samples(dataset["id"]):
            for column, number in zip(found, (one["idx"], roles[one["role"]], labels[one["label"]]), strict=True):
                column.append(number)
        idx, role, label = (np.frombuffer(column, np.int64) for column in found)
        return idx, role, label

    def _role(self, idx: int) -> str:
        place = int(np.searchsorted(self._idx, idx))
        return ROLES[self._roles[place]] if place < len(self._idx) and self._idx[place] == idx else "no"

    @property
    def _picks(self) -> bool:
        return self._spec.arm is not Arm.FULL

    def run(self, number: int | None = None) -> Iterator[Verdict]:
        """Verdicts on every round, or on round `number` alone. Raises NotFound."""
        if number is not None and number >= len(self._rounds):
            raise NotFound("round", f"{self.id}/{number}")
        with TemporaryDirectory() as folder:
            self._folder, self._fetched = Path(folder), {}
            for row in self._rounds if number is None else self._rounds[number : number + 1]:
                yield self._look(row)
                shutil.rmtree(self._folder / str(row["number"] - 1), ignore_errors=True)

    def _look(self, row: Json) -> Verdict:
        verdict = Verdict(row["number"])
        self._weigh(row, verdict)
        if not self._picks:
            verdict.replay = "the full arm picks nothing"
            return verdict
        batch = self._batches[row["number"]]
        verdict.picks = len(batch)
        self._check_batch(row, batch, verdict)
        try:
            verdict.replay = "same" if self._is_replayed(row["number"], batch, verdict) else "differs"
        except Unexplained as error:
            verdict.replay = "impossible"
            verdict.blame(error.what, error.reason)
        return verdict

    def _weigh(self, row: Json, verdict: Verdict) -> None:
        """Hold the bytes of each of a round's artefacts against its manifest."""
        listed = self._manifests(row["number"])
        for kind, manifest in listed.items():
            if reason := self._fetch(row["number"], manifest):
                verdict.blame(kind, reason)
            if kind not in self._replayed:
                self._path(row["number"], kind).unlink()
            verdict.files += 1
            verdict.bytes += manifest["size"]
        if row["metrics"] and row["number"] == self._newest_evaluated() and WEIGHTS not in listed:
            verdict.blame(WEIGHTS, "no manifest names the encoder of the newest evaluated round")

    def _newest_evaluated(self) -> int:
        return max(row["number"] for row in self._rounds if row["metrics"])

    def _check_batch(self, row: Json, batch: Sequence[Json], verdict: Verdict) -> None:
        """Ranks without gaps, every pick of the pool and new, and as many as the round says."""
        ranks = [pick["rank"] for pick in batch]
        if ranks != list(range(len(batch))):
            wrong = next(place for place, rank in enumerate([*ranks, -1]) if rank != place)
            verdict.blame("picks", f"ranks are not 0 to {len(batch) - 1} without gaps: rank {wrong} is not there")
        before = set(self._selected(row["number"] - 1).tolist())
        for pick in batch:
            role = self._role(pick["idx"])
            if role != Role.POOL:
                verdict.blame("picks", f"rank {pick['rank']}: sample {pick['idx']} is a {role} sample, not of the pool")
            if pick["idx"] in before:
                verdict.blame("picks", f"rank {pick['rank']}: sample {pick['idx']} was picked before")
            before.add(pick["idx"])
        if len(before) != row["samples"]:
            verdict.blame("picks", f"{len(before)} samples are selected so far, the round says {row['samples']}")

    def _is_replayed(self, number: int, batch: Sequence[Json], verdict: Verdict) -> bool:
        """Whether the library picks this batch again, from what it was picked from."""
        if number == 0:
            indices, scores = self._first(), np.zeros(len(batch))
        else:
            indices, scores = self._replay(number - 1, verdict)
        stored = [pick["idx"] for pick in batch]
        for rank, (was, now) in enumerate(zip(stored, indices.tolist(), strict=False)):
            if was != now:
                verdict.blame("picks", f"rank {rank}: sample {was} is stored, the replay picks {now}")
                return False
        if len(stored) != len(indices):
            verdict.blame("picks", f"{len(stored)} are stored, the replay picks {len(indices)}")
            return False
        off = ~np.isclose([pick["score"] for pick in batch], scores, rtol=RELATIVE, atol=ABSOLUTE)
        for rank in np.flatnonzero(off)[:1].tolist():
            verdict.blame(
                "picks", f"rank {rank}: score {batch[rank]['score']:g} is stored, the replay has {scores[rank]:g}"
            )
        return not off.any()

    def _first(self) -> Indices:
        spec = self._spec
        seed = derive_seed(spec.seed, "initial")
        return draw_initial(self._pool, spec.budget, seed=seed, by=spec.initial, labels=self._labels)

    def _replay(self, number: int, verdict: Verdict) -> tuple[Indices, NDArray[np.float32]]:
        """What round `number` picks: the batch of the next. Raises Unexplained."""
        spec, inputs = self._spec, inputs_of(self._spec)
        candidates = self._candidates(number, verdict)
        given = terms(spec, number, len(candidates))
        given |= {name: self._array(number, kind) for name, kind in inputs.items()}
        given |= {} if inputs else {"n": len(candidates)}
        try:
            picked = select(**given)
        except ValueError as error:
            raise Unexplained("picks", f"cannot be replayed from round {number}: {error}") from error
        return np.asarray(candidates[picked.indices]), picked.scores

    def _candidates(self, number: int, verdict: Verdict) -> Indices:
        """What round `number` picked from, compared with the seeded draw. Raises Unexplained."""
        spec, selected = self._spec, self._selected(number)
        rest = np.setdiff1d(self._pool, selected)
        if spec.arm is Arm.RANDOM and spec.random_from == "pool":
            return rest
        stored = np.array(self._array(number, INDEX), np.int64)
        seed = derive_seed(spec.seed, "candidates", number)
        if not np.array_equal(stored, draw_candidates(self._pool, selected, spec.candidates, seed=seed)):
            verdict.blame(INDEX, f"of round {number}: not what the seed draws from the pool without the picks so far")
        if SELECTED in self._manifests(number):
            kept = self._array(number, SELECTED)
            if not np.array_equal(kept, selected):
                verdict.blame(SELECTED, f"of round {number}: not the picks of rounds 0 to {number}")
        return stored

    def _selected(self, up_to: int) -> Indices:
        found = [pick["idx"] for batch in self._batches[: up_to + 1] for pick in batch] if up_to >= 0 else []
        return np.array(sorted(found), np.int64)

    def _array(self, number: int, kind: str) -> NDArray[Any]:
        """A stored array that a replay needs. Raises Unexplained."""
        manifest = self._manifests(number).get(kind)
        if manifest is None:
            raise Unexplained(kind, f"of round {number}: no manifest names it, so the picks cannot be replayed")
        if reason := self._fetch(number, manifest):
            raise Unexplained(kind, f"of round {number}: {reason}, so the picks cannot be replayed")
        return np.load(self._path(number, kind), mmap_mode="r", allow_pickle=False)

    def _manifests(self, number: int) -> Mapping[str, Json]:
        if number not in self._listed:
            listed = self._client.round(self.id, number)["artefacts"]
            self._listed[number] = {one["kind"]: one for one in listed}
        return self._listed[number]

    def _fetch(self, number: int, manifest: Json) -> str:
        """Have an artefact in its file, fetched once; what is wrong with it, if anything is."""
        asked = number, manifest["kind"]
        if asked not in self._fetched:
            self._fetched[asked] = self._download(number, manifest)
        return self._fetched[asked]

    def _download(self, number: int, manifest: Json) -> str:
        path = self._path(number, manifest["kind"])
        path.parent.mkdir(exist_ok=True)
        try:
            with path.open("wb") as file:
                digest, _ = self._client.measure(self.id, number, manifest["kind"], file)
        except ApiProblem as error:
            if error.status != 404:
                raise
            return f"its file {manifest['key']} is not there"
        if digest != manifest["sha256"]:
            return f"its bytes have sha256 {digest}, the manifest says {manifest['sha256']}"
        return ""

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / str(number) / f"{kind.replace('/', '-')}.npy"

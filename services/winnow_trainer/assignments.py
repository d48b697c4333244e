"""The two kinds of work: what a claimed row asks of a child, and what becomes of the child's messages."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sqlalchemy.orm import Session

from winnow.artefacts import ArtefactStore, Stored
from winnow.domain import Arm, ExperimentSpec, ExperimentStatus, Role, RoundStatus, derive_seed, is_final
from winnow.errors import ArtefactCorrupt, InvalidInput
from winnow.selection.draws import draw_candidates
from winnow.settings import Settings
from winnow.store import artefacts, claims, datasets, experiments, picks, rounds
from winnow.store.claims import INGEST, TRAIN, Work
from winnow.store.rounds import Cause, Patience
from winnow.store.tables import Artefact, Dataset, Round
from winnow_trainer.protocol import Message


class Assignment(Protocol):
    """A claimed row in the terms of the supervisor. What takes a session works inside the caller's transaction."""

    work: Work
    id: str
    attempt: int

    def prepare(self, session: Session, scratch: Path) -> dict[str, Any]:
        """The job for the child; arrays go into `scratch`. Only reads. Raises InvalidInput for what can never work."""
        ...

    def start(self, session: Session) -> None:
        """Say that the work begins, and renew the claim. Raises Fenced."""
        ...

    def wanted(self, session: Session) -> ExperimentStatus:
        """CREATED or RUNNING to go on, anything else to stop."""
        ...

    def record(self, session: Session, message: Message) -> list[str]:
        """Keep a checkpoint's manifests; the keys of the ones it replaces. Raises Fenced."""
        ...

    def slices(self, message: Message) -> Iterator[Callable[[Session], bool]]:
        """What of a result is stored before the work is complete, in transactions that each renew the claim: to be
        called once, and again for as long as one returns True. Raises Fenced.
        """
        ...

    def complete(self, session: Session, message: Message) -> Iterable[str]:
        """Store the result and leave the working status; the prefixes no longer needed, to be asked for behind the
        transaction. Raises Fenced.
        """
        ...

    def give_back(self, session: Session, cause: Cause, message: str | None, patience: Patience) -> Iterable[str]:
        """End the claim without a result; the prefixes no longer needed, as above. Raises Fenced."""
        ...


class Ingest:
    """A dataset to decode and pack."""

    work = INGEST

    def __init__(self, row: Dataset, settings: Settings) -> None:
        self.id, self.attempt = row.id, row.attempt
        self._row, self._settings = row, settings

    def prepare(self, session: Session, scratch: Path) -> dict[str, Any]:
        return {
            "kind": "ingest",
            "spec": self._row.spec,
            "prefix": self._prefix(self.attempt),
            "earlier": self._prefixes(),
            "data_roots": [str(root) for root in self._settings.data_roots],
            "memory": int(self._settings.ingest_memory_gib * 2**30),
            "decode_seconds": self._settings.decode_seconds,
        }

    def start(self, session: Session) -> None:
        claims.renew(session, INGEST, self.id, self.attempt, self._settings.lease_seconds, None)

    def wanted(self, session: Session) -> ExperimentStatus:
        return ExperimentStatus.RUNNING

    def record(self, session: Session, message: Message) -> list[str]:
        return []

    def slices(self, message: Message) -> Iterator[Callable[[Session], bool]]:
        mine, total = (self.id, self.attempt, self._settings.lease_seconds), message["total"]
        with Path(message["samples"]).open() as lines:
            while samples := [json.loads(line) for line in islice(lines, datasets.SLICE)]:

                def store(session: Session, samples: list[dict[str, Any]] = samples) -> bool:
                    datasets.store(session, *mine, samples, total=total)
                    return False

                yield store
        yield lambda session: datasets.clear(session, *mine, above=total)

    def complete(self, session: Session, message: Message) -> Iterable[str]:
        result = {name: message[name] for name in ("classes", "counts", "report", "location")}
        datasets.complete(session, self.id, self.attempt, **result)
        return [*self._prefixes(), message["parts"]]

    def give_back(self, session: Session, cause: Cause, message: str | None, patience: Patience) -> Iterable[str]:
        rounds.give_back(session, INGEST, self.id, self.attempt, cause, message, patience)
        return []  # the next attempt goes on from its shards, also of one that failed and is added again

    def _prefixes(self) -> list[str]:
        return [self._prefix(attempt) for attempt in range(1, self.attempt)]

    def _prefix(self, attempt: int) -> str:
        return f"datasets/{self.id}/a{attempt}"


class Train:
    """A round to train."""

    work = TRAIN

    def __init__(self, row: Round, settings: Settings, store: ArtefactStore) -> None:
        self.id, self.attempt = row.id, row.attempt
        self._row, self._settings, self._store = row, settings, store

    def prepare(self, session: Session, scratch: Path) -> dict[str, Any]:
        row = self._row
        experiment = experiments.get(session, row.experiment_id)
        spec = experiments.spec_of(experiment)
        dataset = session.get_one(Dataset, experiment.dataset_id)
        picks_next = spec.arm is not Arm.FULL and row.number + 1 < spec.total_rounds
        self._write_arrays(session, scratch, spec, dataset, picks_next)
        before = rounds.get(session, row.experiment_id, row.number - 1).visits if row.number else 0
        return {
            "kind": "train",
            "spec": experiment.spec,
            "number": row.number,
            "classes": dataset.classes,
            "location": dataset.location,
            "prefix": self._prefix(self.attempt),
            "picks": picks_next,
            "visits_before": before,
            "start": self._start(session) if row.number else None,
            "checkpoint": self._keys(session, row.number, "checkpoint"),
        }

    def start(self, session: Session) -> None:
        rounds.start(session, self._row, self._settings.lease_seconds)

    def wanted(self, session: Session) -> ExperimentStatus:
        return rounds.wanted_of(session, self._row)

    def record(self, session: Session, message: Message) -> list[str]:
        rows = [self._manifest(made) for made in message["artefacts"]]
        return rounds.record(session, self.id, self.attempt, self._settings.lease_seconds, rows)

    def slices(self, message: Message) -> Iterator[Callable[[Session], bool]]:
        return iter(())

    def complete(self, session: Session, message: Message) -> Iterable[str]:
        result = {name: message[name] for name in ("visits", "seconds", "metrics", "report")}
        rows = [self._manifest(made) for made in message["artefacts"]]
        rounds.complete_training(session, self.id, self.attempt, result=result, rows=rows)
        return self._unnamed(session)

    def give_back(self, session: Session, cause: Cause, message: str | None, patience: Patience) -> Iterable[str]:
        became = rounds.give_back(session, TRAIN, self.id, self.attempt, cause, message, patience)
        return self._unnamed(session) if is_final(RoundStatus(became)) else []

    def _unnamed(self, session: Session) -> Iterable[str]:
        """What the attempts of an ended round stored and no manifest names: checkpoints, and work that was lost.

        The store is not looked at before somebody asks for them: a slow one would keep everybody from the database.
        """
        place = (self._row.experiment_id, self._row.number)
        dropped = artefacts.drop(session, *place, stem="checkpoint")
        named = {row.key for row in artefacts.of_round(session, *place).values()}
        others = [self._prefix(attempt) for attempt in range(1, self.attempt)]
        lost = [prefix for prefix in others if not any(key.startswith(f"{prefix}/") for key in named)]
        return chain(lost, dropped, self._strays(named))

    def _strays(self, named: set[str]) -> Iterator[str]:
        yield from (key for key in self._store.list(self._prefix(self.attempt)) if key not in named)

    def _prefix(self, attempt: int) -> str:
        return f"experiments/{self._row.experiment_id}/rounds/{self._row.number:04d}/a{attempt}"

    def _write_arrays(
        self, session: Session, scratch: Path, spec: ExperimentSpec, dataset: Dataset, picks_next: bool
    ) -> None:
        pool = datasets.indices(session, dataset.id, Role.POOL)
        selected = pool
        if spec.arm is not Arm.FULL:
            selected = picks.selected(session, self._row.experiment_id, up_to=self._row.number)
        candidates = np.empty(0, np.int64)
        if picks_next:
            seed = derive_seed(spec.seed, "candidates", self._row.number)
            candidates = draw_candidates(pool, selected, spec.candidates, seed=seed)
        arrays = {"selected": selected, "candidates": candidates}
        fitted = {"labelled": Role.LABELLED, "fitted": Role(spec.fit_evaluator_on)}
        for name, role in (fitted | {"evaluated": Role(spec.evaluate_on)}).items():
            arrays[name], labels = datasets.labels(session, dataset, role)
            if (labels < 0).any():
                raise InvalidInput(role, "some of these samples have no label")
            arrays[f"{name}_labels"] = labels
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array, allow_pickle=False)

    def _start(self, session: Session) -> dict[str, str]:
        """What the round before left. Random weights in its place would pass for a trained encoder."""
        keys = self._keys(session, self._row.number - 1, "state")
        if keys is None:
            raise ArtefactCorrupt(
                f"round {self._row.number - 1} has no whole state to start from (state/weights, state/optimizer and "
                "state/counters of one attempt); cancel the experiment and begin it anew"
            )
        return keys

    def _keys(self, session: Session, number: int, stem: str) -> dict[str, str] | None:
        """Keys of the three files of a state or of the newest complete checkpoint, if there is one."""
        found = artefacts.of_round(session, self._row.experiment_id, number)
        parts = {name: found.get(f"{stem}/{name}") for name in ("weights", "optimizer", "counters")}
        whole = {name: row.key for name, row in parts.items() if row is not None}
        attempts = {row.attempt for row in parts.values() if row is not None}
        return whole if len(whole) == len(parts) and len(attempts) == 1 else None

    def _manifest(self, made: Message) -> Artefact:
        stored = Stored(made["key"], made["size"], made["sha256"])
        return artefacts.row(
            stored,
            experiment_id=self._row.experiment_id,
            round=self._row.number,
            attempt=self.attempt,
            kind=made["kind"],
            manifest=made["manifest"],
        )

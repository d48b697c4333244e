"""What the sampler is asked for one round, and what its answer stands for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.domain import ExperimentSpec, derive_seed
from winnow.errors import InvalidInput, NotFound
from winnow.selection import requirements
from winnow.store.tables import Artefact, Round
from winnow_coordinator.sampler import Picked

Indices = NDArray[np.int64]
INPUTS = {
    "pool": "candidates/embeddings",
    "probabilities": "candidates/probabilities",
    "centers": "selected/embeddings",
}
"""What each input of a strategy is among a round's artefacts."""


@dataclass(frozen=True)
class Order:
    """What to ask the sampler for one round, and what its positions stand for."""

    spec: ExperimentSpec
    candidates: Indices
    request: dict[str, Any]

    @property
    def budget(self) -> int:
        return self.request["budget"]


@dataclass(frozen=True)
class Batch:
    """The next round's picks, checked, and what the round that picked reports of them."""

    indices: Indices
    scores: list[float]
    seconds: float
    report: dict[str, Any]


def make_request(spec: ExperimentSpec, round: Round, stored: dict[str, Artefact], candidates: int) -> dict[str, Any]:
    """The sampler's request: what it picks from, by the sha256 of the arrays. A short pool gives a short batch.

    Raises NotFound for an artefact that the round should have left.
    """

    def reference(kind: str) -> dict[str, str]:
        row = require_artefact(stored, round, kind)
        return {"key": row.key, "sha256": row.sha256}

    request, inputs = terms(spec, round.number, candidates), inputs_of(spec)
    return request | ({name: reference(kind) for name, kind in inputs.items()} or {"size": candidates})


def terms(spec: ExperimentSpec, number: int, candidates: int) -> dict[str, Any]:
    """How round `number` picks from its candidates: strategy, budget, seed, direction."""
    return {
        "strategy": spec.arm.value,
        "budget": min(spec.budget, candidates),
        "seed": derive_seed(spec.seed, "pick", number),
        "direction": spec.direction,
    }


def inputs_of(spec: ExperimentSpec) -> dict[str, str]:
    """The kind of artefact behind each array that an experiment's strategy reads; none for random."""
    needs = requirements(spec.arm)
    if not needs.requires:
        return {}
    read = {*needs.requires, *needs.reads} - ({"centers"} if spec.centers == "none" else set())
    return {name: kind for name, kind in INPUTS.items() if name in read}


def read_batch(order: Order, picked: Picked) -> Batch:
    """The sample indices behind the sampler's positions. Raises InvalidInput when they are not distinct candidates."""
    positions = np.asarray(picked.positions, np.int64)
    inside = len(positions) > 0 and positions.min() >= 0 and positions.max() < len(order.candidates)
    if not inside or len(np.unique(positions)) != order.budget or len(positions) != order.budget:
        raise InvalidInput("selection", f"the sampler's answer is not {order.budget} distinct candidates")
    report = _report(order, len(positions), picked.notes) | {"radius": picked.radius, "selection": picked.id}
    return Batch(order.candidates[positions], picked.scores, picked.seconds, report)


def read_nothing(order: Order) -> Batch:
    """The batch of a pool that is used up."""
    return Batch(order.candidates, [], 0.0, _report(order, 0, []))


def _report(order: Order, picked: int, notes: list[str]) -> dict[str, Any]:
    budget = order.spec.budget
    short = [f"picked {picked} of the budget {budget}: no more candidates were left"] if picked < budget else []
    return {
        "strategy": order.spec.arm.value,
        "budget": budget,
        "picked": picked,
        "candidates": len(order.candidates),
        "notes": short + notes,
    }


def require_artefact(stored: dict[str, Artefact], round: Round, kind: str) -> Artefact:
    """The manifest of that kind. Raises NotFound."""
    if kind not in stored:
        raise NotFound("artefact", f"{round.experiment_id}/{round.number}/{kind}")
    return stored[kind]

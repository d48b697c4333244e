"""One selection as a job's work."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow import embeddings
from winnow.selection import Selection, select
from winnow_sampler.jobs import Job
from winnow_sampler.schemas import SelectionRequest, SelectionView, as_json
from winnow_sampler.snapshots import Arrays, Found, Wanted, near_duplicates_of

KIND = "selections"
Json = dict[str, Any]
Heard = Callable[[str, float], None]
"""Called with the strategy and the seconds of a selection that was computed."""


@dataclass(frozen=True, eq=False)
class Selecting:
    """What a job does: read the arrays, pick, say where the picks came from."""

    request: SelectionRequest
    found: Found
    on_computed: Heard

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.request.strategy, self.request.constraints, self.request.near_duplicates)

    @property
    def need(self) -> int:
        """Bytes of memory, estimated. Raises InvalidInput where nothing says how many candidates there are."""
        found, budget = self.found, self.request.budget
        answer = found.need_to_answer(budget) + found.need_to_name(budget)
        return found.bytes_to_read(self.wanted.reads()) + found.need(self.wanted, budget) + answer

    @property
    def asked(self) -> Json:
        """What its id is taken of, beside the arrays."""
        return self.request.model_dump(mode="json")

    def __call__(self, job: Job) -> Json:
        began = time.perf_counter()
        arrays = self.found.read(self.wanted.reads())
        parts = self.found.parts()  # before the picks: what cannot be read is told of before hours of work
        picked = self._pick(arrays, job)
        is_whole = len(picked.indices) == self.request.budget
        seconds = time.perf_counter() - began
        if is_whole:
            self.on_computed(self.request.strategy, seconds)
        origins = None if parts is None else embeddings.origins_of(parts, picked.indices.tolist())
        view = self._view(job, arrays, picked, origins, is_whole, seconds)
        self.found.require_unchanged()
        return view

    def _pick(self, arrays: Arrays, job: Job) -> Selection:
        request = self.request
        return select(
            request.strategy,
            budget=request.budget,
            seed=request.seed,
            direction=request.direction,
            constraints=self.found.constraints(request.constraints),
            near_duplicates=near_duplicates_of(request.near_duplicates),
            on_progress=job.advance,
            should_stop=job.cancelled.is_set,
            **arrays.named(),
        )

    def _view(
        self, job: Job, arrays: Arrays, picked: Selection, origins: list[Json] | None, is_whole: bool, seconds: float
    ) -> Json:
        indices = picked.indices.tolist()
        notes = [*arrays.notes(), *picked.notes, *_coincidences(self.request.strategy, picked.scores)]
        if not is_whole:
            notes.append(f"cancelled after {len(indices)} of {self.request.budget} picks, which are valid as they are")
        view = SelectionView.model_validate(
            {
                "id": job.id,
                "status": "done" if is_whole else "cancelled",
                "indices": indices,
                "scores": [float(score) for score in picked.scores],
                "radius": picked.radius,
                "seconds": seconds,
                "origins": origins,
                "notes": notes,
            }
        )
        return as_json(view)


def _coincidences(strategy: str, scores: NDArray[np.float32]) -> list[str]:
    if strategy == "k_center" and len(scores) and scores[-1] == 0:
        return [f"{int((scores == 0).sum())} picks coincide with an earlier pick or a centre (distance 0)"]
    return []

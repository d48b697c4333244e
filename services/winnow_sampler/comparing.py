"""Several strategies on one snapshot as a job's work. Nothing is committed."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from winnow.errors import InvalidInput
from winnow.selection import Selection, select
from winnow.selection.batch import Stop
from winnow.selection.comparison import count_shared, jaccard, largest_left, mean_nearest, mix
from winnow_sampler.jobs import Job
from winnow_sampler.schemas import ComparisonRequest, ComparisonView, Contended, Contender, as_json
from winnow_sampler.snapshots import LABEL_BYTES, Arrays, Found, Wanted, near_duplicates_of

KIND = "comparisons"
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Comparing:
    """What a job does: read the arrays once, let each strategy pick, hold the batches against each other."""

    request: ComparisonRequest
    found: Found

    @property
    def need(self) -> int:
        """Bytes of memory, estimated: the hungriest strategy's, as they run one after the other."""
        most = max(self.found.need(_wanted(one), self.request.budget) for one in self.request.strategies)
        most = max(most, self.found.need_to_measure(self.request.budget))
        labels = 0 if self.request.labels is None else LABEL_BYTES * self.found.rows
        answer = self.found.need_to_answer(len(self.request.strategies) * self.request.budget)
        return self.found.bytes_to_read(self._reads()) + most + labels + answer

    @property
    def asked(self) -> Json:
        """What its id is taken of, beside the arrays."""
        return self.request.model_dump(mode="json")

    def __call__(self, job: Job) -> Json:
        began = time.perf_counter()
        arrays = self.found.read(self._reads())
        ended: list[tuple[Contended, Selection]] = []
        for number, contender in enumerate(self.request.strategies):
            measured = self._run(number, contender, arrays, job)
            if measured is None:
                break
            ended.append(measured)
        batches = [picked.indices for _, picked in ended]
        view = ComparisonView(
            id=job.id,
            status="done" if len(ended) == len(self.request.strategies) else "cancelled",
            seconds=time.perf_counter() - began,
            strategies=[contended for contended, _ in ended],
            shared=count_shared(batches),
            jaccard=jaccard(batches),
        )
        return as_json(view)

    def _reads(self) -> set[str]:
        """All that any strategy looks at; the pool and the centres too, which the measures are taken in."""
        return {"pool", "centers"}.union(*(_wanted(one).reads() for one in self.request.strategies))

    def _run(self, number: int, contender: Contender, arrays: Arrays, job: Job) -> tuple[Contended, Selection] | None:
        """What one strategy picked, measured; None once the job was cancelled."""
        budget, began = self.request.budget, time.perf_counter()
        total = len(self.request.strategies) * budget
        try:
            picked = select(
                contender.strategy,
                budget=budget,
                seed=contender.seed,
                direction=contender.direction,
                constraints=self.found.constraints(contender.constraints),
                near_duplicates=near_duplicates_of(contender.near_duplicates),
                on_progress=lambda done, _: job.advance(number * budget + done, total),
                should_stop=job.cancelled.is_set,
                **arrays.named(),
            )
        except ValueError as error:
            raise InvalidInput(f"strategies.{number}", f"{contender.label}: {error}") from error
        seconds = time.perf_counter() - began
        if job.cancelled.is_set():
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # a measure beyond float32 is left out
            measured = self._measure(contender, picked, arrays, seconds, job.cancelled.is_set)
        self.found.require_unchanged()
        return None if job.cancelled.is_set() else (measured, picked)

    def _measure(
        self, contender: Contender, picked: Selection, arrays: Arrays, seconds: float, stop: Stop
    ) -> Contended:
        pool, picks = arrays.pool, picked.indices
        groups = self.found.labels("groups", self.request.groups)
        labels = self.found.labels("labels", self.request.labels)
        return Contended(
            name=contender.label,
            strategy=contender.strategy,
            indices=picks.tolist(),
            seconds=seconds,
            radius=None if pool is None else _finite(largest_left(pool, picks, arrays.given("centers"), stop)),
            redundancy=None if pool is None else _finite(mean_nearest(pool, picks)),
            groups=None if groups is None else mix(groups, picks),
            labels=None if labels is None else mix(labels, picks),
            notes=[*arrays.notes(), *picked.notes],
        )


def _finite(distance: float | None) -> float | None:
    """The distance, or None for one beyond float32: JSON has no word for it."""
    return distance if distance is not None and math.isfinite(distance) else None


def _wanted(contender: Contender) -> Wanted:
    return Wanted(contender.strategy, contender.constraints, contender.near_duplicates)

"""The strategies by name: what each reads, and how it is run from one request."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np

from winnow.selection.badge import badge
from winnow.selection.batch import Floats, Limits, Progress, Selection, Stop
from winnow.selection.choice import pick_in_order, random_choice
from winnow.selection.k_center import k_center_greedy
from winnow.selection.prob_cover import prob_cover
from winnow.selection.sas import sas
from winnow.selection.typiclust import typiclust
from winnow.selection.uncertain_diverse import uncertain_diverse
from winnow.selection.uncertainty import Direction, Measure, most_uncertain

PICKS = 1
"""Raised whenever the same input may give other picks, scores or measures than before: answers that are kept are found
again by it."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """The inputs of one strategy, by the names that `select` has for them.

    requires      without any of these it raises ValueError
    reads         what it makes use of where given; the others are not looked at
    counts_rows   whether `n` may stand in for the arrays: the strategy looks at no row
    takes_long    whether it reports progress pick by pick and asks whether to stop
    """

    requires: tuple[str, ...]
    reads: tuple[str, ...] = ()
    counts_rows: bool = False
    takes_long: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """One run: the inputs that were given, and the budget beyond the `selected` rows that are picked already."""

    budget: int
    rows: int
    pool: Floats | None
    probabilities: Floats | None
    centers: Floats | None
    selected: tuple[int, ...]
    seed: int
    direction: Direction
    limits: Limits | None
    on_progress: Progress | None
    should_stop: Stop | None

    def common(self, *names: str) -> dict[str, Any]:
        """The keyword arguments called `names`, and those that every long run takes."""
        return {name: getattr(self, name) for name in (*names, "limits", "on_progress", "should_stop")}

    @property
    def known(self) -> Floats | None:
        """The centers and the features of the rows selected already, (m, d)."""
        if not self.selected or self.pool is None:
            return self.centers
        picked = self.pool[list(self.selected)]
        return picked if self.centers is None else np.concatenate([self.centers, picked])


def _k_center(request: Request) -> Selection:
    pool = cast("Floats", request.pool)
    return k_center_greedy(pool, request.budget, centers=request.known, **request.common("seed"))


def _random(request: Request) -> Selection:
    if request.limits is None:
        return random_choice(request.rows, request.budget, seed=request.seed)
    return pick_in_order(random_choice(request.rows, request.rows, seed=request.seed), request.budget, request.limits)


def _uncertainty(measure: Measure) -> Callable[[Request], Selection]:
    def run(request: Request) -> Selection:
        values = cast("Floats", request.probabilities)
        count = request.budget if request.limits is None else request.rows
        ranked = most_uncertain(values, count, measure=measure, direction=request.direction)
        return ranked if request.limits is None else pick_in_order(ranked, request.budget, request.limits)

    return run


def _typiclust(request: Request) -> Selection:
    pool = cast("Floats", request.pool)
    return typiclust(pool, request.budget, **request.common("centers", "selected", "seed"))


def _prob_cover(request: Request) -> Selection:
    pool = cast("Floats", request.pool)
    classes = None if request.probabilities is None else np.asarray(request.probabilities).shape[-1]
    return prob_cover(pool, request.budget, classes=classes, **request.common("centers", "selected", "seed"))


def _badge(request: Request) -> Selection:
    pool, values = cast("Floats", request.pool), cast("Floats", request.probabilities)
    return badge(pool, values, request.budget, **request.common("selected", "seed"))


def _uncertain_diverse(request: Request) -> Selection:
    pool, values = cast("Floats", request.pool), cast("Floats", request.probabilities)
    rest = request.common("seed", "direction")
    return uncertain_diverse(pool, values, request.budget, centers=request.known, **rest)


def _sas(request: Request) -> Selection:
    pool, values = cast("Floats", request.pool), cast("Floats", request.probabilities)
    return sas(pool, values, request.budget, **request.common("selected"))


_BY_PROXY = Requirements(requires=("probabilities",), reads=("direction",), takes_long=False)
_BOTH = ("pool", "probabilities")
CATALOGUE: dict[str, tuple[Requirements, Callable[[Request], Selection]]] = {
    **{measure: (_BY_PROXY, _uncertainty(measure)) for measure in get_args(Measure)},
    "k_center": (Requirements(("pool",), ("centers", "seed")), _k_center),
    "random": (Requirements((), ("n", *_BOTH, "seed"), counts_rows=True, takes_long=False), _random),
    "typiclust": (Requirements(("pool",), ("centers", "seed")), _typiclust),
    "prob_cover": (Requirements(("pool",), ("centers", "probabilities", "seed")), _prob_cover),
    "badge": (Requirements(_BOTH, ("seed",)), _badge),
    "uncertain_diverse": (Requirements(_BOTH, ("centers", "seed", "direction")), _uncertain_diverse),
    "sas": (Requirements(_BOTH), _sas),
}

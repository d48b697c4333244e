"""Which candidates to train on next. Arrays in, picks out; needs NumPy and FAISS alone.

k_center             k_center_greedy     far from everything selected so far
entropy, margin, least_confidence
                     most_uncertain      where the proxy is least (or most) sure
uncertain_diverse    uncertain_diverse   far apart among those where the proxy is least sure
badge                badge               uncertain and diverse at once, by gradients of the proxy
typiclust            typiclust           the most typical of each cluster
prob_cover           prob_cover          the balls that cover most candidates
sas                  sas                 nearest to the rest of their predicted class
random               random_choice       by chance
"""

import dataclasses
from typing import Any

import numpy as np

from winnow.selection.badge import badge
from winnow.selection.batch import (
    Floats,
    Limits,
    Progress,
    Selection,
    Stop,
    require_budget,
    require_integer,
)
from winnow.selection.catalogue import CATALOGUE, PICKS, Request, Requirements
from winnow.selection.choice import random_choice
from winnow.selection.constraints import Constraints, Ledger
from winnow.selection.duplicates import NearDuplicates, find_near_duplicates
from winnow.selection.k_center import k_center_greedy
from winnow.selection.neighbours import Features, Mask, require_centers, require_features
from winnow.selection.prob_cover import prob_cover
from winnow.selection.sas import sas
from winnow.selection.typiclust import typiclust
from winnow.selection.uncertain_diverse import uncertain_diverse
from winnow.selection.uncertainty import Direction, most_uncertain

__all__ = [
    "PICKS",
    "Constraints",
    "Ledger",
    "Limits",
    "NearDuplicates",
    "Requirements",
    "Selection",
    "badge",
    "find_near_duplicates",
    "k_center_greedy",
    "most_uncertain",
    "prob_cover",
    "random_choice",
    "requirements",
    "sas",
    "select",
    "strategies",
    "typiclust",
    "uncertain_diverse",
]


def strategies() -> tuple[str, ...]:
    """The names that `select` knows."""
    return tuple(CATALOGUE)


def requirements(strategy: str) -> Requirements:
    """Which inputs `strategy` needs and reads. Raises ValueError for an unknown one."""
    if strategy not in CATALOGUE:
        raise ValueError(f"strategy: needs one of {', '.join(strategies())}, got {strategy!r}")
    return CATALOGUE[strategy][0]


def select(
    strategy: str,
    *,
    budget: int,
    pool: Floats | None = None,
    probabilities: Floats | None = None,
    centers: Floats | None = None,
    n: int | None = None,
    seed: int = 0,
    direction: Direction = "high",
    constraints: Constraints | None = None,
    near_duplicates: NearDuplicates | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick by the name of a strategy, from the inputs that it needs; the others are not looked at.

    `requirements(strategy)` names them. Random needs `n`, or counts the rows of `pool` or `probabilities`; of any other
    strategy's inputs each has `n` rows, where that is given.

    constraints      caps, quotas, exclusions, pinned rows, a distance to keep; the last also needs `pool`
    near_duplicates  a stage before the strategy: what it finds in `pool` is never picked, and counted in `notes`
    on_progress      called with (picked so far, budget)
    should_stop      True returns the picks so far; rankings are too short to stop and do not ask

    Pinned picks come first; their scores are 0, as nothing ranked them. Rows that may not be picked still count
    as data: in the radius, in densities and in what is covered.

    Raises ValueError for an unknown strategy, a missing input, constraints that cannot be met (how many picks
    were possible, and what stopped the rest), and whatever the strategy itself refuses.
    """
    needs = requirements(strategy)
    given: dict[str, Any] = {"pool": pool, "probabilities": probabilities, "centers": centers}
    rows = _count_rows(strategy, needs, given, n)
    budget = require_budget(needs.requires[0] if needs.requires else "n", rows, budget)
    near = None
    if near_duplicates is not None:
        features = _require_pool("near_duplicates", pool, rows)
        pins = () if constraints is None else constraints.pinned
        near = find_near_duplicates(features, near_duplicates, pinned=pins, should_stop=should_stop)
        if near is None:
            return _joined((), None, None)
    ledger = _open_ledger(rows, budget, constraints, pool, centers, near)
    pinned = tuple(ledger.taken) if ledger else ()
    report = on_progress or _ignore
    request = Request(
        budget=budget - len(pinned),
        rows=rows,
        **given,
        selected=pinned,
        seed=seed,
        direction=direction,
        limits=ledger,
        on_progress=lambda done, _: report(done + len(pinned), budget),
        should_stop=should_stop,
    )
    with np.errstate(over="ignore"):  # a distance beyond float32 is refused where the picks are joined
        picked = CATALOGUE[strategy][1](request) if request.budget else None
    if picked is None or not needs.takes_long:
        report(len(pinned) + (0 if picked is None else len(picked.indices)), budget)
    return _joined(pinned, picked, near)


def _count_rows(strategy: str, needs: Requirements, given: dict[str, Any], n: int | None) -> int:
    """How many candidates there are, by the arrays that the strategy requires; these must agree, and with `n`."""
    if needs.counts_rows:
        arrays = [given[name] for name in ("pool", "probabilities") if given[name] is not None]
        if n is None and not arrays:
            raise ValueError(f"n: strategy {strategy} needs it")
        return require_integer("n", n) if n is not None else len(arrays[0])
    for name in needs.requires:
        if given[name] is None:
            raise ValueError(f"{name}: strategy {strategy} needs it")
    counts = {name: len(given[name]) for name in needs.requires}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{needs.requires[1]}: needs a row for each of pool's {len(given['pool'])}, got {counts}")
    name, rows = next(iter(counts.items()))
    if n is not None and rows != require_integer("n", n):
        raise ValueError(f"{name}: needs a row for each of {n} candidates, got {rows}")
    return rows


def _require_pool(name: str, pool: Floats | None, rows: int) -> Features:
    if pool is None:
        raise ValueError(f"{name}: needs pool, the features to measure distances in")
    values = require_features("pool", pool)
    if len(values) != rows:
        raise ValueError(f"pool: needs a row for each of {rows} candidates, got {len(values)}")
    return values


def _open_ledger(
    rows: int,
    budget: int,
    constraints: Constraints | None,
    pool: Floats | None,
    centers: Floats | None,
    near: Mask | None,
) -> Ledger | None:
    """The limits of the run, or None where nothing limits it."""
    if constraints is None and near is None:
        return None
    features = known = None
    if constraints is not None and constraints.minimum_distance is not None:
        features = _require_pool("minimum_distance", pool, rows)
        known = require_centers(centers, features.shape[1])
    return Ledger(rows, budget, constraints, pool=features, centers=known, duplicates=near)


def _joined(pinned: tuple[int, ...], picked: Selection | None, near: Mask | None) -> Selection:
    """Pinned picks, then those of the strategy, with notes on both stages."""
    notes: list[str] = []
    if near is not None:
        notes.append(f"near-duplicate stage: {int(near.sum())} of {len(near)} candidates set aside")
    if pinned:
        notes.append(f"the first {len(pinned)} picks were pinned; their scores are 0")
    later = picked or Selection(np.empty(0, np.int64), np.empty(0, np.float32))
    if not np.isfinite(later.scores).all():
        raise ValueError("pool: has distances beyond float32; divide the features by a constant")
    return dataclasses.replace(
        later,
        indices=np.concatenate([np.array(pinned, np.int64), later.indices]),
        scores=np.concatenate([np.zeros(len(pinned), np.float32), later.scores]),
        notes=(*notes, *later.notes),
    )


def _ignore(done: int, total: int) -> None:
    pass

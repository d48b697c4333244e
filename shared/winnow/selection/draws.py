"""Which patches start, and which are looked at each round: seeded draws from the pool (the paper's Algorithm 2)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def draw_initial(
    pool: Indices,
    budget: int,
    *,
    seed: int,
    by: Literal["random", "stratum"] = "random",
    labels: Sequence[str] | Indices = (),
) -> Indices:
    """S^0: `budget` samples of the pool, in drawn order.

    Args:
        pool: (n,) sample indices, ascending.
        by: `stratum` keeps the pool's label shares (largest remainder); `labels` then gives each one's label, by name
            or by number in the order of the names.

    Raises:
        ValueError: the budget exceeds the pool, or strata are asked for without a label for each sample.
    """
    if not 1 <= budget <= len(pool):
        raise ValueError(f"budget: {budget} of a pool of {len(pool)}")
    random = np.random.default_rng(seed)
    if by == "random":
        return random.choice(pool, budget, replace=False)
    if len(labels) != len(pool):
        raise ValueError(f"labels: {len(labels)} for a pool of {len(pool)}; strata need one for each sample")
    strata, members = np.unique(np.asarray(labels), return_inverse=True)
    exact = np.bincount(members, minlength=len(strata)) * (budget / len(pool))
    counts = np.floor(exact).astype(int)
    short = budget - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    drawn = [random.choice(pool[members == s], count, replace=False) for s, count in enumerate(counts)]
    return random.permutation(np.concatenate(drawn))


def draw_candidates(pool: Indices, selected: Indices, size: int | Literal["all"], *, seed: int) -> Indices:
    """C: a random subset of U \\ S^t, ascending; all of it when `size` is "all" or not smaller.

    Args:
        pool: (n,) sample indices. selected: (m,) those already in S^t.
    """
    remaining = np.setdiff1d(pool, selected, assume_unique=True)
    if size == "all" or size >= len(remaining):
        return remaining
    return np.sort(np.random.default_rng(seed).choice(remaining, size, replace=False))

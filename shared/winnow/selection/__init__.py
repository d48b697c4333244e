"""Which candidates to train on next. Arrays in, picks out; needs NumPy and FAISS alone.

k_center   k_center_greedy   far from everything selected so far
entropy, margin, least_confidence
           most_uncertain    where the proxy is least (or most) sure
random     random_choice     by chance
"""

from typing import cast, get_args

from winnow.selection.batch import Floats, Progress, Selection, Stop
from winnow.selection.choice import random_choice
from winnow.selection.k_center import k_center_greedy
from winnow.selection.uncertainty import Direction, Measure, most_uncertain

__all__ = ["Selection", "k_center_greedy", "most_uncertain", "random_choice", "select", "strategies"]


def strategies() -> tuple[str, ...]:
    """The names that `select` knows."""
    return (*get_args(Measure), "k_center", "random")


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
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick by the name of a strategy, from the one input that it needs; the others are not looked at.

    k_center needs `pool` and takes `centers` and `seed`; the uncertainties need `probabilities` and take
    `direction`; random needs `n`, or counts the rows of `pool` or `probabilities`, and takes `seed`. Only
    k_center takes long enough to stop; the others report progress once, when they are done.

    Raises ValueError for an unknown strategy, a missing input, and whatever the strategy itself refuses.
    """
    if strategy == "k_center":
        features = _require_given(strategy, "pool", pool)
        return k_center_greedy(
            features, budget, centers=centers, seed=seed, on_progress=on_progress, should_stop=should_stop
        )
    if strategy == "random":
        picked = random_choice(_count(n, pool, probabilities), budget, seed=seed)
    elif strategy in get_args(Measure):
        given = _require_given(strategy, "probabilities", probabilities)
        picked = most_uncertain(given, budget, measure=cast("Measure", strategy), direction=direction)
    else:
        raise ValueError(f"strategy: needs one of {', '.join(strategies())}, got {strategy!r}")
    if on_progress:
        on_progress(len(picked.indices), len(picked.indices))
    return picked


def _require_given(strategy: str, name: str, value: Floats | None) -> Floats:
    if value is None:
        raise ValueError(f"{name}: strategy {strategy} needs it")
    return value


def _count(n: int | None, pool: Floats | None, probabilities: Floats | None) -> int:
    if n is not None:
        return n
    rows = pool if pool is not None else probabilities
    return len(_require_given("random", "n", rows))

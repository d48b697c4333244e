"""k-center greedy: spread the picks so that no candidate is far from a selected one (coreset)."""

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import (
    Floats,
    Progress,
    Selection,
    Stop,
    require_budget,
    require_finite,
    require_floats,
    require_seed,
)
from winnow.selection.distances import Features, Squares, lower_to_centres, lower_to_point

PICKED = -1.0  # below every distance, so that a picked row is never the farthest, even among duplicates


def k_center_greedy(
    pool: Floats,
    budget: int,
    *,
    centers: Floats | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick `budget` rows of `pool`, each the farthest from all centres so far, and make it a centre.

    Algorithm 1 of Reasat & Smith, where the existing centres are the images already selected. L2; ties go to
    the lowest index; rows already picked are never picked again. Distances are exact to float64, and the same
    input gives the same bits for any number of threads. Beside the input it holds O(n + m) numbers; float32
    arrays and memmaps are read where they lie, other floats are converted to float32 first.

    pool         (n, d) candidates
    centers      (m, d) features selected earlier, or None. Without any, the first pick is drawn from `seed`,
                 which is used for nothing else
    on_progress  called with (0, budget), then after every pick
    should_stop  asked before every pick and during the search of the centres; True returns the picks so far,
                 which are the first ones of the full answer

    Scores are the distances at each pick and never ascend. A first pick without centres had none: its score is
    the largest distance that it leaves, which is finite. `radius` is the largest distance left at the end, 0.0
    if every row was picked, None if it stopped before any distance was known.

    Raises ValueError that says which: pool (empty, NaN, shape, dtype), centers (the same, other width), budget
    (not in 1..n), seed.
    """
    candidates = _require_features("pool", pool)
    budget = require_budget("pool", len(candidates), budget)
    existing = _require_centres(centers, candidates.shape[1])
    first = int(np.random.default_rng(require_seed(seed)).integers(len(candidates)))
    stop = should_stop or _never
    report = on_progress or _ignore

    report(0, budget)
    nearest = np.full(len(candidates), np.inf)  # squared distances (n,)
    if len(existing) and not lower_to_centres(nearest, candidates, existing, stop):
        return _selection([], [], nearest, radius_known=False)
    picks: list[int] = []
    squares: list[float] = []
    while len(picks) < budget and not stop():
        pick = int(np.argmax(nearest)) if picks or len(existing) else first
        squares.append(float(nearest[pick]))
        picks.append(pick)
        nearest[pick] = PICKED
        lower_to_point(nearest, candidates, candidates[pick])
        if len(picks) == 1 and not len(existing):
            squares[0] = _largest(nearest)
        report(len(picks), budget)
    return _selection(picks, squares, nearest, radius_known=bool(picks or len(existing)))


def _selection(picks: list[int], squares: list[float], nearest: Squares, *, radius_known: bool) -> Selection:
    return Selection(
        indices=np.array(picks, np.int64),
        scores=np.sqrt(np.array(squares, np.float64)).astype(np.float32),
        radius=float(np.sqrt(_largest(nearest))) if radius_known else None,
    )


def _largest(nearest: Squares) -> float:
    """The largest squared distance of a row not picked; 0.0 when all are."""
    return max(float(nearest.max()), 0.0)


def _require_features(name: str, array: npt.ArrayLike) -> Features:
    values = require_floats(name, array)
    if values.dtype == np.float32:
        return values.view(np.float32)
    with np.errstate(over="ignore"):
        features = values.astype(np.float32)
    require_finite(f"{name} as float32", features)
    return features


def _require_centres(centers: Floats | None, width: int) -> Features:
    if centers is None:
        return np.empty((0, width), np.float32)
    existing = _require_features("centers", centers)
    if existing.shape[1] != width:
        raise ValueError(f"centers: rows have {existing.shape[1]} features, those of pool have {width}")
    return existing


def _never() -> bool:
    return False


def _ignore(done: int, total: int) -> None:
    pass

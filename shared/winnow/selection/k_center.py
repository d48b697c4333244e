"""k-center greedy: spread the picks so that no candidate is far from a selected one (coreset)."""

import numpy as np

from winnow.selection.batch import (
    Floats,
    Limits,
    Progress,
    Selection,
    Stop,
    require_budget,
    require_seed,
)
from winnow.selection.frontier import Farthest, Frontier, Stopped
from winnow.selection.neighbours import require_centers, require_features

FARTHEST = float(np.finfo(np.float32).max)


def k_center_greedy(
    pool: Floats,
    budget: int,
    *,
    centers: Floats | None = None,
    seed: int = 0,
    limits: Limits | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick `budget` rows of `pool`, each the farthest from all centres so far, and make it a centre.

    Algorithm 1 of Reasat & Smith, where the existing centres are the images already selected. L2; distances are
    those of float64, rounded to float32 as the scores are; ties go to the lowest index; rows already picked are never
    picked again. The same input gives the same bits for any number of threads. Bounds spare it from reading most of
    the pool at most picks. Beside the input it holds 5 bytes a row, at most 50 a centre and 24 a pick, and blocks:
    about 3/4 MiB, more where 192 rows or 2 bytes a row are more, and half of these again where products cannot tell
    distances apart; with `limits` up to 8 bytes a row more, and blocks of 4 MiB where rows are not contiguous. float32
    arrays and memmaps are read where they lie, other floats are converted to float32 first.

    pool         (n, d) candidates
    centers      (m, d) features selected earlier, or None. Without any, the first pick is drawn from `seed`,
                 which is used for nothing else
    limits       only the rows that it allows are picked, the first one too; each pick is told to it
    on_progress  called with (0, budget), then after every pick
    should_stop  asked before every pick and between blocks of distances; True returns the picks so far, which are
                 the first ones of the full answer

    Scores are the distances at each pick and never ascend. A first pick without centres had none: its score is
    the largest distance that it leaves, which is finite. `radius` is the largest distance left at the end, of
    any row not picked, whether `limits` allow it or not: 0.0 if every row was picked, None if it stopped before
    that was known.

    Raises ValueError that says which: pool (empty, NaN, shape, dtype, or farther apart than float32 can say),
    centers (the same, other width), budget (not in 1..n, or more than `limits` allowed: how many were possible),
    limits (other shape), seed.
    """
    candidates = require_features("pool", pool)
    budget = require_budget("pool", len(candidates), budget)
    existing = require_centers(centers, candidates.shape[1])
    seed = require_seed(seed)
    if limits is not None:
        _require_allowed(limits, len(candidates))
    first = None if len(existing) else _draw_first(limits, len(candidates), seed, budget)
    frontier = Frontier(candidates, existing, budget, should_stop or _never)
    run = _Run(frontier, limits, first)
    try:
        run.pick(budget, on_progress or _ignore, should_stop or _never)
        radius = run.radius()
    except Stopped:
        radius = None
    done = frontier.picked
    return Selection(indices=frontier.picks[:done].copy(), scores=run.scores[:done].copy(), radius=radius)


class _Run:
    """Where the next pick comes from, and the distance of each so far.

    first  the first pick, where nothing is selected yet
    """

    def __init__(self, frontier: Frontier, limits: Limits | None, first: int | None) -> None:
        self.frontier = frontier
        self.limits = limits
        self.first = first
        self.scores = np.empty(len(frontier.picks), np.float32)

    def pick(self, budget: int, on_progress: Progress, should_stop: Stop) -> None:
        """Pick until `budget` or until stopped."""
        on_progress(0, budget)
        for done in range(budget):
            if should_stop():
                return
            found = self._next()
            if found is None:
                raise ValueError(f"budget: limits allow {done} picks, got {budget}")
            if self.limits:
                self.limits.take(found.row)
            is_drawn = self._drawn() is not None
            self.frontier.pick(found.row)
            self.scores[done] = _in_float32(self._largest_left() if is_drawn else found.distance)
            on_progress(done + 1, budget)

    def radius(self) -> float | None:
        """The largest distance left; None where nothing was measured."""
        if self._drawn() is not None:
            return None
        if self.limits:
            self.frontier.reset()
        found = self.frontier.farthest()
        return _in_float32(found.distance) if found else 0.0

    def _next(self) -> Farthest | None:
        drawn = self._drawn()
        if drawn is not None:
            return Farthest(drawn, np.inf)
        return self.frontier.farthest(self.limits.allowed if self.limits else None)

    def _drawn(self) -> int | None:
        """The pick that comes next because nothing is selected, by the seed alone; None from then on."""
        return None if self.frontier.picked else self.first

    def _largest_left(self) -> float:
        return max(float(self.frontier.nearest.max()), 0.0)


def _in_float32(distance: float) -> float:
    if distance == np.inf:
        reason = f"rows lie more than {FARTHEST:.3g} apart, which float32 scores cannot hold"
        raise ValueError(f"pool: {reason}; scale pool and centers down")
    return distance


def _draw_first(limits: Limits | None, rows: int, seed: int, budget: int) -> int:
    """A row that the seed draws of those allowed."""
    generator = np.random.default_rng(seed)
    if limits is None:
        return int(generator.integers(rows))
    open_rows = np.flatnonzero(limits.allowed)
    if not open_rows.size:
        raise ValueError(f"budget: limits allow 0 picks, got {budget}")
    return int(open_rows[generator.integers(open_rows.size)])


def _require_allowed(limits: Limits, rows: int) -> None:
    allowed = limits.allowed
    if allowed.shape != (rows,) or allowed.dtype != np.bool_:
        raise ValueError(f"limits: allowed needs {rows} booleans, got {allowed.dtype} {allowed.shape}")


def _never() -> bool:
    return False


def _ignore(done: int, total: int) -> None:
    pass

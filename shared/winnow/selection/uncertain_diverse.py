"""Uncertainty with diversity: a shortlist of the least sure, and k-center greedy in it."""

import numpy as np

from winnow.selection.batch import Floats, Progress, Selection, Stop, require_budget, require_integer
from winnow.selection.constraints import Ledger
from winnow.selection.k_center import k_center_greedy
from winnow.selection.neighbours import Mask, Positions
from winnow.selection.uncertainty import Direction, Measure, most_uncertain

FACTOR = 10


def uncertain_diverse(
    pool: Floats,
    probabilities: Floats,
    budget: int,
    *,
    centers: Floats | None = None,
    measure: Measure = "entropy",
    direction: Direction = "high",
    factor: int = FACTOR,
    seed: int = 0,
    limits: Ledger | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick `budget` rows far apart among the `factor` times `budget` most uncertain ones.

    The uncertain rows of a pool are often near copies of each other, and a ranking takes them all: so the ranking
    only proposes, and distances choose (prefiltering and then diversifying, as in Zhdanov, "Diverse mini-batch
    active learning", 2019, with k-center greedy in the place of k-means).

    pool           (n, d) features, of which only those of the shortlist are read
    probabilities  (n, c) of the proxy
    centers        (m, d) features selected earlier, or None
    limits         chooses the shortlist too, so that every group it is owed from and room for the budget are in it.
                   Where a minimum distance leaves none of it, a second shortlist follows, of the rows left

    Scores are k-center's distances, anew for each shortlist; `radius` is the largest left in the last.

    Raises ValueError that says which: pool, probabilities, centers, budget, measure, direction, seed as
    `k_center_greedy` and `most_uncertain` do; factor (below 1); budget above what `limits` allow.
    """
    budget = require_budget("pool", len(pool), budget)
    if len(probabilities) != len(pool):
        raise ValueError(f"probabilities: needs a row for each of pool's {len(pool)}, got {len(probabilities)}")
    if require_integer("factor", factor) < 1:
        raise ValueError(f"factor: needs 1 or more, got {factor}")
    ledger = limits or Ledger(len(pool), budget)
    ranked = most_uncertain(probabilities, len(pool), measure=measure, direction=direction)
    features, report = np.asarray(pool), on_progress or _ignore
    picked = Selection(np.empty(0, np.int64), np.empty(0, np.float32))

    def advance(some: int, _: int) -> None:
        report(len(picked.indices) + some, budget)

    while True:
        done = picked.indices
        shortlist = _Within(ledger, ledger.shortlist(ranked.indices, budget - len(done), factor), should_stop)
        more = k_center_greedy(
            features[shortlist.rows],
            min(budget - len(done), len(shortlist.rows)),
            centers=centers if not len(done) else _joined(centers, features[done]),
            seed=seed,
            limits=shortlist,
            on_progress=advance,
            should_stop=shortlist.is_over,
        )
        indices = np.concatenate([done, shortlist.rows[more.indices]])
        picked = Selection(indices, np.concatenate([picked.scores, more.scores]), radius=more.radius)
        if len(indices) == budget or (should_stop and should_stop()):
            return picked


def _joined(centers: Floats | None, picks: Floats) -> Floats:
    return picks if centers is None else np.concatenate([centers, picks])


def _ignore(done: int, total: int) -> None:
    pass


class _Within:
    """The limits of a run on some `rows` of the pool."""

    def __init__(self, ledger: Ledger, rows: Positions, should_stop: Stop | None) -> None:
        self.rows = rows
        self._ledger = ledger
        self._stop = should_stop

    @property
    def allowed(self) -> Mask:
        return self._ledger.allowed[self.rows]

    def take(self, row: int) -> None:
        self._ledger.take(int(self.rows[row]))

    def is_over(self) -> bool:
        """True once the caller stops, or none of these rows may be picked any more."""
        return not self.allowed.any() or bool(self._stop and self._stop())

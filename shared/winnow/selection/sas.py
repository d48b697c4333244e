"""SAS: the subset of each predicted class that lies nearest to the rest of it, for contrastive training."""

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, Limits, Progress, Selection, Stop, require_budget, row_blocks
from winnow.selection.choice import Unlimited
from winnow.selection.neighbours import Features, Positions, require_features
from winnow.selection.predictions import predicted_classes, require_predictions

BATCH = 64  # stale gains renewed at once
DECIMALS = 8  # two rows that mirror each other have one gain, which float64 would tell apart by its last bits
Numbers = npt.NDArray[np.float64]


def sas(
    pool: Floats,
    probabilities: Floats,
    budget: int,
    *,
    selected: tuple[int, ...] = (),
    limits: Limits | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick `budget` rows that preserve the alignment of each class (Joshi & Mirzasoleiman, ICML 2023).

    Within a latent class V the subset S is grown greedily to maximise the sum of s(x, x') over x in V without S
    and x' in S, where s is the expected similarity of the augmentations of two examples. As in the paper's
    variant with a proxy model, latent classes are the predicted ones, and s comes from embeddings without
    augmentation: here (1 + cosine) / 2, which is never negative, so that gains only shrink. On features that are
    never negative themselves (those after a ReLU) each pick is the one that the plain cosine makes.

    The classes share the budget in proportion to their sizes, as the paper takes one fraction of each: the next
    pick goes to the class that is furthest behind its share.

    pool           (n, d) features. A row of zeros has cosine 0 with all others
    probabilities  (n, c) of the proxy
    selected       rows of the pool that are picked already: they are in S from the start
    limits         rows that it forbids are not picked; they still are in V. Where a class has no allowed rows
                   left, the others take its share
    should_stop    asked before every pick

    Scores are the gains at each pick; they never ascend within a class, and may fall below 0. The similarities
    of a row with a whole class are one product with the sum of the class, so that no pairs are held or visited:
    O(n d) once, and a few rows for each pick.

    Raises ValueError that says which: pool, probabilities (also for another number of rows), budget.
    """
    features = require_features("pool", pool)
    classes = predicted_classes(require_predictions(probabilities, len(features)))
    budget = require_budget("pool", len(features), budget)
    limits = limits or Unlimited(len(features), selected)
    parts = [_Part(features, np.flatnonzero(classes == c)) for c in np.unique(classes)]
    part_of = np.searchsorted(np.unique(classes), classes)
    for row in selected:
        parts[part_of[row]].add(row)
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < budget and not (should_stop and should_stop()):
        row, gain = _next(parts, limits.allowed, len(picks) + len(selected) + 1)
        limits.take(row)
        parts[part_of[row]].add(row)
        picks.append(row)
        gains.append(gain)
        if on_progress:
            on_progress(len(picks), budget)
    return Selection(np.array(picks, np.int64), np.array(gains, np.float64).astype(np.float32))


def _next(parts: "list[_Part]", allowed: npt.NDArray[np.bool_], total: int) -> tuple[int, float]:
    """The best row of the class furthest behind its share of `total` picks that still has one."""
    rows = sum(len(part.rows) for part in parts)
    behind = [total * len(part.rows) - part.size * rows for part in parts]  # in whole numbers, to tie exactly
    for place in sorted(range(len(parts)), key=lambda place: (-behind[place], place)):
        if (found := parts[place].best(allowed)) is not None:
            return found
    raise ValueError("budget: the limits allow no further pick")


class _Part:
    """One predicted class V, and its subset S.

    With u = x / |x| and sums over unit rows, the gain of x is the sum of s(x, ·) over V without S and x, less
    that over S: ((|V| - 2|S| - 1) + u·(sum V - 2 sum S) - u·u) / 2.
    """

    def __init__(self, pool: Features, rows: Positions) -> None:
        self.pool = pool
        self.rows = rows
        self.size = 0
        self.sum = np.zeros(pool.shape[1])  # sum V - 2 sum S
        for part in row_blocks(len(rows), pool.shape[1]):
            self.sum += self._unit(rows[part]).sum(axis=0)
        self.bounds = np.empty(len(rows))  # gains, each as it was when it was last renewed: never too small
        for part in row_blocks(len(rows), pool.shape[1]):
            self.bounds[part] = self._gains(rows[part])

    def best(self, allowed: npt.NDArray[np.bool_]) -> tuple[int, float] | None:
        """The allowed row of the largest gain, the lowest of those that tie (lazy greedy, Minoux 1978)."""
        places = np.flatnonzero(allowed[self.rows])
        order = places[np.argsort(-self.bounds[places], kind="stable")]
        best, gain = -1, -np.inf
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            if gain > self.bounds[batch[0]]:
                break
            self.bounds[batch] = self._gains(self.rows[batch])
            top = batch[np.lexsort((batch, -self.bounds[batch]))[0]]
            if self.bounds[top] > gain or (self.bounds[top] == gain and top < best):
                best, gain = int(top), float(self.bounds[top])
        return None if best < 0 else (int(self.rows[best]), gain)

    def add(self, row: int) -> None:
        """Move `row` into S."""
        self.sum -= 2.0 * self._unit(np.array([row]))[0]
        self.size += 1

    def _gains(self, rows: Positions) -> Numbers:
        unit = self._unit(rows)
        products = np.einsum("nd,d->n", unit, self.sum)  # not BLAS, whose bits follow its threads
        own = np.einsum("nd,nd->n", unit, unit)
        return np.round((len(self.rows) - 2 * self.size - 1 + products - own) / 2.0, DECIMALS)

    def _unit(self, rows: Positions) -> Numbers:
        """Rows of the pool at length 1 (k, d); zeros stay zeros."""
        values = self.pool[rows].astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", values, values))
        return values / np.where(lengths > 0, lengths, 1.0)[:, None]

"""BADGE: k-means++ on the gradients of the proxy's last layer, which are large where it is unsure."""

import numpy as np

from winnow.selection.batch import (
    Floats,
    Limits,
    Progress,
    Selection,
    Stop,
    require_budget,
    require_seed,
    row_blocks,
)
from winnow.selection.choice import Unlimited, lowest_allowed
from winnow.selection.distances import Features, Squares, measure, squares_to_point
from winnow.selection.neighbours import as_features, require_features
from winnow.selection.predictions import require_predictions

LARGEST = float(np.finfo(np.float32).max)


def badge(
    pool: Floats,
    probabilities: Floats,
    budget: int,
    *,
    selected: tuple[int, ...] = (),
    seed: int = 0,
    limits: Limits | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick `budget` rows by k-means++ seeding on gradient embeddings (Ash et al., ICLR 2020, Algorithm 1).

    A row's embedding is the gradient of the cross-entropy of a last linear layer, were the likeliest class the
    true one: the outer product of p - onehot(argmax p) and h, (c x d). Between two of them, with a of the first
    factor, ||g - g'||² = |a|²|h|² + |a'|²|h'|² - 2 (a·a')(h·h'): no (c x d) vector is ever made. The
    first pick has the longest gradient, as in the authors' code; each other is drawn with a chance proportional
    to its squared distance to the nearest pick.

    pool           (n, d) features h that the proxy reads
    probabilities  (n, c) of the proxy
    selected       rows of the pool that are picked already: the draws keep away from them, too
    limits         rows that it forbids are never drawn
    should_stop    asked before every pick

    Scores are the squared distances to the nearest pick at the time, the first one's its squared norm; the largest
    float32 where that overflows. Where no row differs from the picks any more, the lowest allowed row follows,
    with score 0. Holds c + 4 numbers for each row, and takes one pass over the pool for each pick.

    Raises ValueError that says which: pool, probabilities (also for another number of rows), budget, seed.
    """
    features = require_features("pool", pool)
    gradients = _Gradients(features, require_predictions(probabilities, len(features)))
    budget = require_budget("pool", len(gradients.norms), budget)
    random = np.random.default_rng(require_seed(seed))
    limits = limits or Unlimited(len(features), selected)
    squares = gradients.norms.copy()
    for place, row in enumerate(selected):
        squares = gradients.lowered(squares, row, first=place == 0)
    picks: list[int] = []
    scores: list[float] = []
    while len(picks) < budget and not (should_stop and should_stop()):
        weights = np.where(limits.allowed, squares, 0.0)
        row = _draw(weights, random) if picks or selected else int(np.argmax(weights))
        if not weights[row] > 0:
            row = lowest_allowed(limits)
        limits.take(row)
        scores.append(float(squares[row]))
        squares = gradients.lowered(squares, row, first=not picks and not selected)
        picks.append(row)
        if on_progress:
            on_progress(len(picks), budget)
    return Selection(np.array(picks, np.int64), np.minimum(scores, LARGEST).astype(np.float32))


def _draw(weights: Squares, random: np.random.Generator) -> int:
    """A row, each as likely as its weight; one draw a pick, whatever the weights."""
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
    if place < len(weights) and weights[place] > 0:
        return place
    return int(np.argmax(weights))  # nothing left to tell rows apart, or the draw was rounded up to the total


class _Gradients:
    """Gradient embeddings of n rows as their two factors."""

    def __init__(self, pool: Features, probabilities: Floats) -> None:
        self.pool = pool
        self.errors = probabilities.astype(np.float64)  # (n, c)
        self.errors[np.arange(len(pool)), np.argmax(probabilities, axis=1)] -= 1.0
        self.lengths = np.empty(len(pool))  # |h|²
        for rows in row_blocks(*pool.shape):
            self.lengths[rows] = np.square(pool[rows], dtype=np.float64).sum(axis=1)
        self.norms = np.square(self.errors).sum(axis=1) * self.lengths

    def lowered(self, squares: Squares, row: int, *, first: bool) -> Squares:
        """`squares` (n,), each lowered to its distance to `row`; the first pick takes the place of the norms.

        With a, h of a candidate and b, k of the row, a⊗h - b⊗k = a⊗(h - k) + (a - b)⊗k, and so ||g - g'||² is
        |a|²|h - k|² + |a - b|²|k|² + a·(a - b) (|h|² - |k|² - |h - k|²): copies get 0, and not what is left of
        the difference of two large products.
        """
        point, error = as_features(self.pool[row]), self.errors[row]
        distances = np.empty(len(squares))
        for rows in row_blocks(*self.pool.shape):
            block, errors = as_features(self.pool[rows]), self.errors[rows]
            apart = _squares(block, point)  # (k,), |h - k|²
            change = errors - error
            lengths = self.lengths[rows] - self.lengths[row] - apart
            distances[rows] = np.square(errors).sum(axis=1) * apart + np.square(change).sum(axis=1) * self.lengths[row]
            distances[rows] += (errors * change).sum(axis=1) * lengths
        distances = np.maximum(distances, 0.0)
        lower = distances if first else np.minimum(squares, distances)
        lower[row] = 0.0
        return lower


def _squares(block: Features, point: Features) -> Squares:
    """Squared distances (k,) from float32 differences, in float64 where these overflow."""
    squares = squares_to_point(block, point).astype(np.float64)
    beyond = np.flatnonzero(~np.isfinite(squares))
    squares[beyond] = measure(block[beyond], point)
    return squares

"""TypiClust: the most typical row of each cluster that nothing is selected from, for small budgets."""

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, Limits, Progress, Selection, Stop, require_budget, require_seed, row_blocks
from winnow.selection.choice import Unlimited
from winnow.selection.clusters import Clusters, find_clusters
from winnow.selection.neighbours import (
    Features,
    Origin,
    Positions,
    as_features,
    nearest_squares,
    require_centers,
    require_features,
)

MOST_CLUSTERS = 500  # the paper's bound, which keeps clusters large enough to tell what is typical
SMALL = 5  # clusters of at most so many rows come last
NEIGHBOURS = 20
LARGEST = float(np.finfo(np.float32).max)


def typiclust(
    pool: Floats,
    budget: int,
    *,
    centers: Floats | None = None,
    selected: tuple[int, ...] = (),
    most_clusters: int = MOST_CLUSTERS,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
    limits: Limits | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick the most typical rows of the clusters least covered so far (Hacohen et al., ICML 2022, Algorithm 1).

    K-means makes as many clusters as there are rows selected and to be picked, `most_clusters` at most. They take
    turns: those with the fewest selected rows first, larger ones before smaller. A turn picks the row of the
    highest typicality, 1 / the mean distance to its K nearest neighbours among the cluster's rows that are not
    selected (K = `neighbours`, or half of these rows if that is less). As in the authors' code clusters of 5 rows
    or fewer do not take part; here they do once the others have nothing left that may be picked.

    pool         (n, d) candidates; the centroids are fitted to them alone
    centers      (m, d) features selected earlier, or None: each counts for the cluster of its nearest centroid
    selected     rows of the pool that are picked already
    limits       rows that it forbids are not picked, and still count as neighbours
    should_stop  asked before every round of k-means and before every pick

    Scores are typicalities, the largest float32 for a row that coincides with its neighbours and 0 for one alone.
    Holds K + 3 numbers for each row beside the pool. The same bits for any number of threads.

    Raises ValueError that says which: pool, centers, budget, seed.
    """
    features = require_features("pool", pool)
    budget = require_budget("pool", len(features), budget)
    known = require_centers(centers, features.shape[1])
    limits = limits or Unlimited(len(features), selected)
    if on_progress:
        on_progress(0, budget)
    count = min(len(known) + len(selected) + budget, most_clusters)
    found = find_clusters(features, count, seed=require_seed(seed), should_stop=should_stop)
    if found is None:
        return Selection(np.empty(0, np.int64), np.empty(0, np.float32))
    turns = _Turns(_clusters_in_order(features, found, known, selected, neighbours), limits)
    picks: list[int] = []
    scores: list[float] = []
    while len(picks) < budget and not (should_stop and should_stop()):
        row, score = turns.pick()
        picks.append(row)
        scores.append(score)
        if on_progress:
            on_progress(len(picks), budget)
    return Selection(np.array(picks, np.int64), np.array(scores, np.float64).astype(np.float32))


def _clusters_in_order(
    pool: Features, found: Clusters, known: Features, selected: tuple[int, ...], neighbours: int
) -> "list[_Cluster]":
    """The clusters by selected rows ascending, size descending, label ascending."""
    covering = np.concatenate([found.assign(known), found.labels[list(selected)]])
    covered = np.bincount(covering, minlength=len(found.centroids))
    sizes = np.bincount(found.labels, minlength=len(found.centroids))
    order = np.lexsort((-sizes, covered))
    clusters = [_Cluster(pool, found.members(label), found.origin, neighbours) for label in order if sizes[label]]
    for cluster in clusters:
        cluster.remove(np.array(selected, np.int64))
    return clusters


class _Turns:
    """Which cluster picks next: the large ones in a circle until none of them can, then the small ones."""

    def __init__(self, clusters: "list[_Cluster]", limits: Limits) -> None:
        self._limits = limits
        self._waiting = [c for c in clusters if len(c.rows) > SMALL], [c for c in clusters if len(c.rows) <= SMALL]

    def pick(self) -> tuple[int, float]:
        """The next row and its typicality. Raises ValueError when no cluster has a row that may be picked."""
        for circle in self._waiting:
            while circle:
                cluster = circle.pop(0)
                picked = cluster.most_typical(self._limits.allowed)
                if picked is None:
                    continue
                self._limits.take(picked[0])
                cluster.remove(np.array([picked[0]]))
                circle.append(cluster)
                return picked
        raise ValueError("budget: the limits allow no further pick")


class _Cluster:
    """The rows of one cluster, and the nearest neighbours of each among those not removed."""

    def __init__(self, pool: Features, rows: Positions, origin: Origin, neighbours: int) -> None:
        self.rows = rows
        self._pool = pool
        self._origin = origin
        self._most = neighbours
        self._is_left = np.ones(len(rows), np.bool_)
        self._is_stale = np.ones(len(rows), np.bool_)
        self._means = np.zeros(len(rows))  # distance to the neighbours, on average
        self._near = np.zeros((0, 0), np.int32)  # the neighbours, as places in rows

    def remove(self, rows: Positions) -> None:
        """Take `rows`, whichever are of this cluster, out of it."""
        for place in np.flatnonzero(np.isin(self.rows, rows)):
            self._is_left[place] = False
            if len(self._near):
                self._is_stale |= (self._near == place).any(axis=1)

    def most_typical(self, allowed: npt.NDArray[np.bool_]) -> tuple[int, float] | None:
        """The allowed row with the nearest neighbours, the lowest of those that tie, and its typicality."""
        places = np.flatnonzero(self._is_left & allowed[self.rows])
        if not places.size:
            return None
        self._renew()
        best = places[np.argmin(self._means[places])]
        mean = float(self._means[best])
        return int(self.rows[best]), min(1 / mean, LARGEST) if mean > 0 else LARGEST

    def _renew(self) -> None:
        left = np.flatnonzero(self._is_left)
        count = min(self._most, len(left) // 2)
        if count != self._near.shape[1] or not len(self._near):
            self._near = np.full((len(self.rows), count), -1, np.int32)
            self._is_stale[:] = True
        if count == 0:
            self._means[:] = np.inf
            return
        features = as_features(self._pool[self.rows[left]])
        for part in row_blocks(*features.shape):
            stale = np.flatnonzero(self._is_stale[left[part]]) + part.start
            if stale.size:
                squares, near = nearest_squares(features[stale], features, count + 1, self._origin)
                squares, near = _without_self(squares, near, stale)
                self._means[left[stale]] = np.sqrt(squares).mean(axis=1)
                self._near[left[stale]] = left[near]
        self._is_stale[left] = False


def _without_self(
    squares: npt.NDArray[np.float64], near: Positions, own: Positions
) -> tuple[npt.NDArray[np.float64], Positions]:
    """Neighbours (q, k + 1) less the row itself; among many copies of it, less one of them."""
    itself = near == own[:, None]
    itself[~itself.any(axis=1), 0] = True
    kept = ~itself
    shape = (len(own), near.shape[1] - 1)
    return squares[kept].reshape(shape), near[kept].reshape(shape)

"""K-means whose answer does not depend on threads: FAISS proposes the nearest centroid, float64 settles near ties."""

from dataclasses import dataclass

import numpy as np

from winnow.selection.batch import Stop, row_blocks
from winnow.selection.neighbours import Features, Origin, Positions, as_features, nearest_rows

ROUNDS = 20


@dataclass(frozen=True, eq=False, slots=True)
class Clusters:
    """A partition of the pool.

    labels     int64 (n,), the nearest centroid of each row
    centroids  float32 (k, d)
    """

    labels: Positions
    centroids: Features
    origin: Origin

    def members(self, label: int) -> Positions:
        """The rows of one cluster, ascending."""
        return np.flatnonzero(self.labels == label)

    def assign(self, rows: Features) -> Positions:
        """The nearest centroid of each of `rows` (m, d), (m,)."""
        labels = np.empty(len(rows), np.int64)
        for part in row_blocks(*rows.shape):
            labels[part] = nearest_rows(as_features(rows[part]), self.centroids, self.origin)
        return labels


def find_clusters(
    pool: Features, count: int, *, seed: int, rounds: int = ROUNDS, should_stop: Stop | None = None
) -> Clusters | None:
    """Lloyd's k-means from `count` distinct rows drawn with `seed`, for at most `rounds` rounds.

    Fewer clusters where the pool has fewer distinct rows among those drawn; a centroid that loses all its rows
    stays where it is. None if `should_stop`, asked before every round, ended it.
    """
    drawn = np.random.default_rng(seed).choice(len(pool), min(count, len(pool)), replace=False)
    found = Clusters(np.full(len(pool), -1), np.unique(as_features(pool[np.sort(drawn)]), axis=0), Origin(pool))
    for _ in range(rounds):
        if should_stop and should_stop():
            return None
        labels = found.assign(pool)
        if np.array_equal(labels, found.labels):
            break
        found = Clusters(labels, _means(pool, labels, found.centroids), found.origin)
    return Clusters(found.assign(pool), found.centroids, found.origin)


def _means(pool: Features, labels: Positions, before: Features) -> Features:
    """The mean of each cluster's rows, summed in float64 from the lowest row up."""
    centroids = before.copy()
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(before)))
    for label, end in enumerate(ends):
        members = order[ends[label - 1] if label else 0 : end]
        if members.size:
            centroids[label] = pool[members].sum(axis=0, dtype=np.float64) / members.size
    return centroids

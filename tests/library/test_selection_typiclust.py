"""TypiClust and its clusters against slow versions written from the paper."""

import numpy as np
import pytest

from winnow.selection import typiclust
from winnow.selection.clusters import find_clusters


def draw(rows, width, seed, blobs=6):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(blobs, width)) * 6
    return (means[rng.integers(0, blobs, rows)] + rng.normal(size=(rows, width))).astype(np.float32)


def slow_typicality(pool, row, others, neighbours):
    """1 / the mean distance to the K nearest (equation 1)."""
    far = sorted(float(np.linalg.norm(pool[row].astype(float) - pool[o].astype(float))) for o in others if o != row)
    count = min(neighbours, len(others) // 2)
    return count / sum(far[:count]) if count and sum(far[:count]) else (3.4028235e38 if count else 0.0)


def slow_typiclust(pool, budget, centers, seed, most, neighbours, selected=()):
    """Algorithm 1 with the authors' turns, on the clusters that k-means found."""
    found = find_clusters(pool, min(len(centers) + len(selected) + budget, most), seed=seed)
    labels = found.labels.tolist()
    covered = [int(np.argmin(((found.centroids - c) ** 2).sum(axis=1))) for c in centers]
    covered += [labels[row] for row in selected]
    names = sorted(set(labels), key=lambda k: (covered.count(k), -labels.count(k), k))
    left = {k: [i for i, label in enumerate(labels) if label == k and i not in selected] for k in names}
    picks, scores = [], []
    for circle in ([k for k in names if labels.count(k) > 5], [k for k in names if labels.count(k) <= 5]):
        while len(picks) < budget and any(left[k] for k in circle):
            for k in circle:
                if left[k] and len(picks) < budget:
                    typical = [slow_typicality(pool, i, left[k], neighbours) for i in left[k]]
                    best = int(np.argmax(typical))
                    scores.append(typical[best])
                    picks.append(left[k].pop(best))
    return picks, scores


@pytest.mark.parametrize(
    ("rows", "width", "budget", "known", "most", "selected"),
    [
        (150, 5, 12, 0, 500, ()),
        (150, 5, 12, 7, 500, (3, 50)),
        (90, 3, 40, 2, 6, ()),
        (60, 1, 60, 0, 9, ()),
        (40, 2, 30, 4, 500, (0,)),
        (7, 2, 6, 0, 500, ()),
    ],
)
def test_matches_the_slow_version(rows, width, budget, known, most, selected):
    pool, centers = draw(rows, width, rows), draw(known, width, 1)
    got = typiclust(pool, budget, centers=centers, selected=selected, most_clusters=most, neighbours=8, seed=2)
    picks, scores = slow_typiclust(pool, budget, centers, 2, most, 8, selected)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, scores, rtol=1e-6)


def test_the_middle_of_each_blob_comes_first():
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    blobs = [np.concatenate([ring, [[0, 0]], ring * 0.5]) + middle for middle in ([0, 0], [50, 0], [0, 50])]
    pool = np.concatenate(blobs).astype(np.float32)
    for seed in range(8):
        clusters = find_clusters(pool, 3, seed=seed)
        if np.unique(clusters.labels[[0, 25, 50]]).size == 3:
            assert sorted(typiclust(pool, 3, seed=seed).indices.tolist()) == [12, 37, 62]
            break
    else:
        pytest.fail("no seed told three blobs apart")


def test_covered_blobs_wait():
    pool = np.concatenate([draw(50, 3, 1, blobs=1), draw(30, 3, 2, blobs=1) + 100]).astype(np.float32)
    first = typiclust(pool, 1, centers=pool[:1], seed=0).indices[0]
    assert first >= 50


# --- k-means ------------------------------------------------------------------------------------


def slow_k_means(pool, count, seed, rounds):
    drawn = np.random.default_rng(seed).choice(len(pool), min(count, len(pool)), replace=False)
    means = np.unique(pool[drawn], axis=0)
    labels = None
    for _ in range(rounds):
        squares = ((pool[:, None].astype(float) - means[None].astype(float)) ** 2).sum(axis=2)
        new = squares.argmin(axis=1)
        if labels is not None and (new == labels).all():
            break
        labels = new
        for k in np.unique(labels):
            means[k] = pool[labels == k].astype(float).mean(axis=0)
    return ((pool[:, None].astype(float) - means[None].astype(float)) ** 2).sum(axis=2).argmin(axis=1), means


@pytest.mark.parametrize(("rows", "width", "count"), [(300, 7, 12), (200, 1, 5), (50, 4, 50), (30, 3, 1), (80, 2, 200)])
def test_k_means_is_lloyds(rows, width, count):
    pool = draw(rows, width, rows)
    got = find_clusters(pool, count, seed=3, rounds=9)
    labels, means = slow_k_means(pool, count, 3, 9)
    assert np.array_equal(got.labels, labels)
    np.testing.assert_allclose(got.centroids, means, rtol=1e-5, atol=1e-5)


def test_k_means_lowers_the_spread_round_by_round():
    pool = draw(400, 6, 5)

    def spread(rounds):
        got = find_clusters(pool, 10, seed=1, rounds=rounds)
        return float(((pool - got.centroids[got.labels]) ** 2).sum())

    spreads = [spread(rounds) for rounds in (1, 2, 4, 16)]
    assert sorted(spreads, reverse=True) == spreads


def test_k_means_of_an_offset_is_k_means():
    pool = np.round(draw(200, 4, 6) * 8) / 8
    assert np.array_equal(find_clusters(pool, 8, seed=0).labels, find_clusters(pool + 1024, 8, seed=0).labels)


def test_k_means_of_equal_rows_is_one_cluster():
    got = find_clusters(np.ones((50, 3), np.float32), 8, seed=0)
    assert (len(got.centroids), set(got.labels.tolist())) == (1, {0})


def test_k_means_stops_between_rounds():
    assert find_clusters(draw(50, 3, 7), 5, seed=0, should_stop=lambda: True) is None


def test_features_whose_squares_overflow_float32():
    pool = np.random.default_rng(11).normal(size=(30, 4)).astype(np.float32)
    got = typiclust(pool * np.float32(2.0**124), 10)
    assert got.indices.tolist() == typiclust(pool, 10).indices.tolist() and np.isfinite(got.scores).all()

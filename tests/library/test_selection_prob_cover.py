"""ProbCover against a slow version written from the paper."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import k_center_greedy, prob_cover
from winnow.selection.clusters import find_clusters


def draw(rows, width, seed):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(5, width)) * 3
    return (means[rng.integers(0, 5, rows)] + rng.normal(size=(rows, width))).astype(np.float32)


def slow_cover(pool, budget, delta, centers, selected=()):
    """Algorithm 1: the vertex of the highest out-degree, then its ball leaves the graph; a table of all pairs."""
    points = pool.astype(float)
    graph = ((points[:, None] - points[None]) ** 2).sum(axis=2) <= delta**2
    covered = np.zeros(len(pool), bool)
    for center in [*centers.astype(float), *points[list(selected)]]:
        covered |= ((points - center) ** 2).sum(axis=1) <= delta**2
    picks, shares = [], []
    while len(picks) < budget and not covered.all():
        degrees = (graph & ~covered).sum(axis=1)
        picks.append(int(degrees.argmax()))
        shares.append(degrees.max() / len(pool))
        covered |= graph[picks[-1]]
    return picks, shares


@pytest.mark.parametrize(("rows", "width", "known"), [(200, 2, 0), (200, 2, 5), (150, 9, 3), (64, 1, 0), (1, 3, 0)])
@pytest.mark.parametrize("delta", [0.0, 0.5, 2.0])
def test_matches_the_slow_version(rows, width, known, delta):
    pool, centers = draw(rows, width, rows + width), draw(known, width, 1)
    selected = (3, 9) if known else ()
    budget = min(rows, 15)
    got = prob_cover(pool, budget, delta=delta, centers=centers, selected=selected)
    picks, shares = slow_cover(pool, budget, delta, centers, selected)
    assert got.indices[: len(picks)].tolist() == picks
    np.testing.assert_allclose(got.scores[: len(picks)], shares, rtol=1e-6)
    assert (got.scores[len(picks) :] == 0).all()


def test_rows_at_the_rim_are_covered():
    line = np.arange(7, dtype=np.float32)[:, None] + 1000
    got = prob_cover(line, 3, delta=1.0)
    assert got.indices.tolist() == [1, 4, 5]
    np.testing.assert_allclose(got.scores, [3 / 7, 3 / 7, 1 / 7])


def test_dense_balls_come_before_outliers():
    pool = np.array([[0.0], [0.1], [0.2], [50.0], [9.0], [9.1]], np.float32)
    assert prob_cover(pool, 3, delta=0.15).indices.tolist() == [1, 4, 3]
    assert k_center_greedy(pool, 2, centers=pool[:1]).indices.tolist() == [3, 5]


def test_the_rest_is_k_centers_once_all_is_covered():
    pool, centers = draw(80, 3, 4), draw(2, 3, 5)
    got = prob_cover(pool, 30, delta=3.0, centers=centers)
    covering = int((got.scores > 0).sum())
    assert 0 < covering < 30
    known = np.concatenate([centers, pool[got.indices[:covering]]])
    assert np.array_equal(got.indices[covering:], k_center_greedy(pool, 30 - covering, centers=known).indices)
    assert "cover 100.0% of 80 of 80 candidates" in got.notes[0]


def slow_radius(pool, labels, purity):
    """The largest radius at which the share `purity` of closed balls holds one label; by trying every distance."""
    apart = np.sqrt(((pool[:, None].astype(float) - pool[None].astype(float)) ** 2).sum(axis=2))
    foreign = labels[:, None] != labels

    def pure(radius):
        return float((~((apart <= radius) & foreign).any(axis=1)).mean())

    tried = [0.0, *np.nextafter(np.unique(apart[foreign]), 0.0)]
    return max(radius for radius in tried if pure(radius) >= purity)


@pytest.mark.parametrize("purity", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_radius_is_the_papers(purity, classes):
    pool = draw(120, 3, 8)
    random = np.random.default_rng(6)
    labels = find_clusters(pool, classes, seed=int(random.integers(2**32))).labels
    got = prob_cover(pool, 4, classes=classes, purity=purity, seed=6)
    radius = float(got.notes[0].split()[3])
    assert radius == pytest.approx(slow_radius(pool, labels, purity), rel=1e-5)


def test_one_pseudo_label_is_covered_by_one_ball():
    got = prob_cover(draw(30, 2, 9), 3, classes=1)
    assert got.scores.tolist() == [1, 0, 0]
    assert "radius inf" in got.notes[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_shares_never_ascend_and_add_up_to_the_coverage(seed):
    rng = np.random.default_rng(seed)
    pool = draw(int(rng.integers(2, 80)), int(rng.integers(1, 5)), seed)
    budget = int(rng.integers(1, len(pool) + 1))
    delta = float(rng.uniform(0, 4))
    got = prob_cover(pool, budget, delta=delta)
    assert (np.diff(got.scores) <= 0).all()
    assert len(set(got.indices.tolist())) == budget
    near = np.linalg.norm(pool[:, None].astype(float) - pool[got.indices].astype(float), axis=2).min(axis=1) <= delta
    assert got.scores.sum() == pytest.approx(near.mean(), abs=1e-5)


def test_coverage_of_a_sample_is_near_that_of_the_pool():
    pool = draw(3000, 2, 10)
    whole, part = (prob_cover(pool, 10, delta=1.0, targets=targets).scores.sum() for targets in (3000, 800))
    assert abs(whole - part) < 0.05


def test_a_full_graph_ends_the_targets(monkeypatch):
    module = importlib.import_module("winnow.selection.prob_cover")
    monkeypatch.setattr(module, "MOST_EDGES", 1000)
    monkeypatch.setattr(module, "GROUP_EDGES", 2000)
    got = prob_cover(draw(400, 2, 11), 5, delta=2.0)
    counted = int(got.notes[0].split(" of ")[2])
    assert 5 <= counted < 400
    assert len(got.indices) == 5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"delta": -1.0}, "delta: needs a finite number of 0 or more"),
        ({"delta": np.nan}, "delta: needs a finite number"),
        ({"classes": 0}, "classes: needs 1 or more"),
        ({"targets": 0}, "targets: needs 1 or more"),
        ({"purity": 0.0}, "purity: needs a number above 0"),
        ({"purity": 1.1}, "purity: needs a number above 0 and at most 1"),
    ],
)
def test_refuses(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        prob_cover(draw(9, 2, 1), 2, **arguments)

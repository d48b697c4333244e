"""BADGE against k-means++ on gradient embeddings that are written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import badge


def draw(rows, width, classes, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, width)).astype(np.float32), rng.dirichlet(np.ones(classes), rows)


def gradients(pool, probabilities):
    """d loss / d W of a last linear layer, (n, c d), with the likeliest class for the true one (section 3)."""
    rows = []
    for h, p in zip(pool.astype(float), probabilities.astype(float), strict=True):
        error = p.copy()
        error[np.argmax(p)] -= 1
        rows.append(np.outer(error, h).ravel())
    return np.array(rows)


def slow_badge(pool, probabilities, budget, seed, selected=()):
    embedded = gradients(pool, probabilities)
    random = np.random.default_rng(seed)
    picks, scores = list(selected), []
    while len(picks) < budget + len(selected):
        if picks:
            squares = np.array([min(((g - embedded[p]) ** 2).sum() for p in picks) for g in embedded])
            row = int(np.searchsorted(squares.cumsum(), random.random() * squares.sum(), side="right"))
        else:
            squares = (embedded**2).sum(axis=1)
            row = int(squares.argmax())
        picks.append(row)
        scores.append(squares[row])
    return picks[len(selected) :], scores


@pytest.mark.parametrize(("rows", "width", "classes"), [(80, 6, 4), (60, 1, 2), (50, 20, 9), (12, 3, 3)])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("selected", [(), (3, 8)])
def test_matches_the_slow_version(rows, width, classes, seed, selected):
    pool, probabilities = draw(rows, width, classes, rows)
    got = badge(pool, probabilities, 9, seed=seed, selected=selected)
    picks, scores = slow_badge(pool, probabilities, 9, seed, selected)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, scores, rtol=1e-4)


def test_the_least_certain_and_longest_row_comes_first():
    pool = np.array([[1.0, 0], [1, 0], [3, 0], [3, 0]], np.float32)
    probabilities = np.array([[0.99, 0.01], [0.5, 0.5], [0.99, 0.01], [0.6, 0.4]])
    got = badge(pool, probabilities, 1)
    assert got.indices.tolist() == [3]
    assert got.scores[0] == pytest.approx(2 * 0.4**2 * 9)


def test_draws_follow_the_squared_distances():
    pool = np.array([[2.0], [1.0], [0.0]], np.float32)
    half = np.full((3, 2), 0.5)
    second = [int(badge(pool, half, 2, seed=seed).indices[1]) for seed in range(1500)]
    assert second.count(2) / 1500 == pytest.approx(4 / 5, abs=0.04)  # squares 1 and 4 from the first pick, row 0


def test_a_certain_proxy_leaves_nothing_to_tell_rows_apart():
    pool, _ = draw(8, 3, 2, 1)
    got = badge(pool, np.eye(2)[np.zeros(8, int)], 8)
    assert got.indices.tolist() == list(range(8))
    assert got.scores.tolist() == [0] * 8


def test_copies_of_a_pick_come_after_all_else():
    pool, probabilities = draw(10, 4, 3, 2)
    doubled, twice = np.concatenate([pool, pool]), np.concatenate([probabilities, probabilities])
    got = badge(doubled, twice, 20, seed=5)
    assert sorted(got.indices.tolist()) == list(range(20))
    assert len({int(row) % 10 for row in got.indices[:10]}) == 10
    assert (got.scores[10:] < 1e-5 * got.scores[0]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_a_smaller_budget_gives_the_first_picks_of_a_larger_one(seed):
    pool, probabilities = draw(40, 5, 3, seed)
    large, small = (badge(pool, probabilities, budget, seed=seed) for budget in (20, 1 + seed % 20))
    assert np.array_equal(small.indices, large.indices[: len(small.indices)])
    assert len(set(large.indices.tolist())) == 20


def test_refuses_another_number_of_rows():
    pool, probabilities = draw(9, 2, 3, 1)
    with pytest.raises(ValueError, match="probabilities: needs a row for each of pool's 9, got 8"):
        badge(pool, probabilities[:8], 2)
    with pytest.raises(ValueError, match="probabilities: row 0 is negative"):
        badge(pool, probabilities * 3, 2)


def test_copies_are_0_apart_however_long_they_are():
    distinct = np.abs(np.random.default_rng(5).normal(size=(5, 512))).astype(np.float32) + 3
    pool = np.repeat(distinct, 6, axis=0)
    got = badge(pool, np.repeat(np.random.default_rng(6).dirichlet(np.ones(4), 5), 6, axis=0), 30)
    assert set((got.indices[:5] // 6).tolist()) == set(range(5))
    assert (got.scores[:5] > 0).all() and not got.scores[5:].any()


def test_features_whose_squares_overflow_float32():
    pool, probabilities = draw(30, 4, 3, 7)
    picks = badge(pool, probabilities, 12).indices
    got = badge(pool * np.float32(1e37), probabilities, 12)
    assert got.indices.tolist() == picks.tolist() and np.isfinite(got.scores).all()

"""k-center within limits: what may be picked, what the radius then means, and how many picks were possible."""

import numpy as np
import pytest

from winnow.selection import frontier, k_center_greedy


def distance(x, y):
    return float(np.sqrt(np.sum((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2)))


def draw(rows, width, seed):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def grid(rows, width, seed):
    """Rows full of ties."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, width)).astype(np.float32)


def same(a, b):
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.scores, b.scores) and a.radius == b.radius


class AtMostFromEach:
    """A cap per group, as whoever picks slides would write it."""

    def __init__(self, groups, cap):
        self.groups, self.cap = np.asarray(groups), cap
        self.allowed = np.ones(len(self.groups), bool)
        self.taken = np.zeros(self.groups.max() + 1, int)

    def take(self, row):
        assert self.allowed[row]
        self.taken[self.groups[row]] += 1
        if self.taken[self.groups[row]] == self.cap:
            self.allowed &= self.groups != self.groups[row]


def slow_capped(pool, budget, centers, groups, cap):
    selected, picks = list(centers), []
    while len(picks) < budget:
        free = [i for i in range(len(pool)) if i not in picks and sum(groups[p] == groups[i] for p in picks) < cap]
        far = {i: np.float32(min(distance(pool[i], s) for s in selected)) for i in free}
        picks.append(max(free, key=lambda i: (far[i], -i)))
        selected.append(pool[picks[-1]])
    left = [min(distance(x, s) for s in selected) for i, x in enumerate(pool) if i not in picks]
    return picks, max(left, default=0.0)


@pytest.mark.parametrize("make", [draw, grid])
@pytest.mark.parametrize("core", [1, 5, 512])
@pytest.mark.parametrize("cap", [1, 3])
def test_limits_are_kept_and_the_radius_counts_rows_that_they_forbid(monkeypatch, make, cap, core):
    monkeypatch.setattr(frontier, "CORE", core)
    monkeypatch.setattr(frontier, "LARGEST_CORE", 4 * core)
    pool, centers = make(60, 4, 33), make(2, 4, 34)
    groups = np.random.default_rng(35).integers(0, 12, 60)
    got = k_center_greedy(pool, 12, centers=centers, limits=AtMostFromEach(groups, cap))
    picks, radius = slow_capped(pool, 12, centers, groups, cap)
    assert got.indices.tolist() == picks
    assert got.radius == np.float32(radius)
    assert np.bincount(groups[got.indices]).max() <= cap


def test_limits_bind_the_first_pick_too():
    pool = draw(40, 3, 36)
    for seed in range(10):
        limits = AtMostFromEach(np.arange(40) // 20, 20)
        limits.allowed[:20] = False
        assert (k_center_greedy(pool, 20, seed=seed, limits=limits).indices >= 20).all()


def test_limits_that_forbid_nothing_change_nothing():
    pool = draw(80, 5, 37)
    assert same(k_center_greedy(pool, 20, limits=AtMostFromEach(np.zeros(80, int), 80)), k_center_greedy(pool, 20))


@pytest.mark.parametrize("known", [0, 3])
def test_a_budget_above_what_limits_allow_says_how_many_were_possible(known):
    with pytest.raises(ValueError, match="budget: limits allow 8 picks, got 9"):
        k_center_greedy(draw(40, 2, 38), 9, centers=draw(known, 2, 39), limits=AtMostFromEach(np.arange(40) // 10, 2))


def test_limits_that_allow_nothing():
    limits = AtMostFromEach(np.zeros(5, int), 5)
    limits.allowed[:] = False
    with pytest.raises(ValueError, match="budget: limits allow 0 picks, got 2"):
        k_center_greedy(draw(5, 3, 30), 2, limits=limits)


def test_a_radius_that_float32_cannot_hold_is_refused():
    """Also where the row that lies so far is one that limits forbid, so that no score is its distance."""
    pool = np.array([[0, 0], [3e38, 3e38], [1, 1]], np.float32)
    limits = AtMostFromEach(np.zeros(3, int), 3)
    limits.allowed[1] = False
    with pytest.raises(ValueError, match="pool: rows lie more than"):
        k_center_greedy(pool, 1, centers=pool[:1], limits=limits)


def test_limits_of_another_length():
    with pytest.raises(ValueError, match=r"limits: allowed needs 5 booleans, got bool \(4,\)"):
        k_center_greedy(draw(5, 3, 30), 2, limits=AtMostFromEach(np.zeros(4, int), 4))


@pytest.mark.parametrize("core", [1, 8, 512])
def test_all_that_limits_allow_can_be_picked(monkeypatch, core):
    """The frontier meets rows that may no longer be picked at every turn, down to the last that may."""
    monkeypatch.setattr(frontier, "CORE", core)
    pool, centers, groups = draw(300, 3, 41), draw(5, 3, 42), np.arange(300) // 10
    got = k_center_greedy(pool, 60, centers=centers, limits=AtMostFromEach(groups, 2))
    picks, radius = slow_capped(pool, 60, centers, groups, 2)
    assert got.indices.tolist() == picks
    assert got.radius == np.float32(radius)
    assert (np.bincount(groups[got.indices]) == 2).all()

"""Measures of a batch against slow versions of their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.selection.comparison import count_shared, jaccard, largest_left, mean_nearest, mix

RANDOM = np.random.default_rng(2)


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.sqrt(((left[:, None].astype(float) - right[None].astype(float)) ** 2).sum(2))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("centers", [0, 5])
def test_radius_and_redundancy_are_those_of_all_pairs(offset: float, centers: int) -> None:
    pool = (RANDOM.normal(size=(9000, 6)) + offset).astype(np.float32)
    picks = RANDOM.choice(9000, 40, replace=False)
    known = (RANDOM.normal(size=(centers, 6)) + offset).astype(np.float32)
    left = np.setdiff1d(np.arange(9000), picks)
    expected = distances(pool[left], np.concatenate([pool[picks], known])).min(1).max()
    assert largest_left(pool, picks, known if centers else None) == pytest.approx(expected, rel=1e-5)
    among = distances(pool[picks], pool[picks])
    np.fill_diagonal(among, np.inf)
    assert mean_nearest(pool, picks) == pytest.approx(among.min(1).mean(), rel=1e-5)


def test_edges() -> None:
    pool = np.zeros((12, 2), np.float32)
    assert largest_left(pool, np.arange(12)) == 0.0
    assert largest_left(pool, np.array([], int)) == np.inf
    assert mean_nearest(pool, np.arange(12)) == 0.0, "all coincide"
    assert mean_nearest(pool, np.array([3])) is None


@given(st.lists(st.sets(st.integers(0, 20)), min_size=1, max_size=4))
def test_overlap_is_symmetric_and_that_of_sets(sets: list[set[int]]) -> None:
    batches = [np.array(sorted(one), np.int64) for one in sets]
    shared, shares = count_shared(batches), jaccard(batches)
    for i, one in enumerate(sets):
        assert shared[i][i] == len(one) and shares[i][i] == 1.0
        for j, other in enumerate(sets):
            assert shared[i][j] == shared[j][i] == len(one & other)
            assert 0 <= shares[i][j] == shares[j][i] <= 1
            assert shares[i][j] * len(one | other) == pytest.approx(len(one & other)) or not one | other


def test_mix_counts_by_label() -> None:
    assert mix(["a", "b", "b", "c"], np.array([1, 2, 0])) == {"b": 2, "a": 1}

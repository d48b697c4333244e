"""The seeded draws of S^0 and of the candidates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.selection.draws import draw_candidates, draw_initial


@given(st.integers(1, 60), st.data())
def test_a_start_is_distinct_and_from_the_pool(n: int, data: st.DataObject) -> None:
    pool = np.arange(n, dtype=np.int64) * 3
    budget = data.draw(st.integers(1, n))
    drawn = draw_initial(pool, budget, seed=data.draw(st.integers(0, 9)))
    assert len(np.unique(drawn)) == budget
    assert np.isin(drawn, pool).all()


def test_a_seed_gives_the_same_start_and_another_seed_another() -> None:
    pool = np.arange(1000, dtype=np.int64)
    assert np.array_equal(draw_initial(pool, 50, seed=1), draw_initial(pool, 50, seed=1))
    assert not np.array_equal(draw_initial(pool, 50, seed=1), draw_initial(pool, 50, seed=2))


def test_strata_keep_the_shares_of_the_labels() -> None:
    pool = np.arange(100, dtype=np.int64)
    labels = ["a"] * 71 + ["b"] * 26 + ["c"] * 3
    drawn = draw_initial(pool, 10, seed=0, by="stratum", labels=labels)
    counts = np.unique([labels[i] for i in drawn], return_counts=True)
    assert dict(zip(*counts, strict=True)) == {"a": 7, "b": 3}
    assert len(np.unique(drawn)) == 10


def test_strata_by_number_are_those_by_name() -> None:
    names = np.random.default_rng(0).choice(["TUM", "ADI", "STR"], 200)
    pool = np.arange(0, 400, 2, dtype=np.int64)
    numbers = np.searchsorted(sorted(set(names)), names).astype(np.int64)
    by_name = draw_initial(pool, 37, seed=3, by="stratum", labels=list(names))
    assert np.array_equal(draw_initial(pool, 37, seed=3, by="stratum", labels=numbers), by_name)


@pytest.mark.parametrize("budget", [0, 11])
def test_a_budget_that_does_not_fit_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="budget"):
        draw_initial(np.arange(10, dtype=np.int64), budget, seed=0)


def test_strata_need_labels() -> None:
    with pytest.raises(ValueError, match="labels"):
        draw_initial(np.arange(10, dtype=np.int64), 2, seed=0, by="stratum")


@given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 5))
def test_candidates_are_never_selected_ones(selected: int, size: int, seed: int) -> None:
    pool = np.arange(50, dtype=np.int64)
    chosen = np.random.default_rng(seed).permutation(50)[:selected].astype(np.int64)
    drawn = draw_candidates(pool, chosen, size, seed=seed)
    assert len(drawn) == min(size, 50 - selected)
    assert not np.isin(drawn, chosen).any()
    assert np.array_equal(drawn, np.unique(drawn))


def test_all_means_everything_left() -> None:
    pool = np.arange(6, dtype=np.int64)
    assert draw_candidates(pool, np.array([1, 4]), "all", seed=0).tolist() == [0, 2, 3, 5]

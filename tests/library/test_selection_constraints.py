"""Quotas, caps, pins, exclusions and distances, under every strategy."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import Constraints, Ledger, NearDuplicates, k_center_greedy, random_choice, select, strategies

RNG = np.random.default_rng(0)
ROWS = 120
POOL = np.abs(RNG.normal(size=(ROWS, 6))).astype(np.float32)
PROBABILITIES = RNG.dirichlet(np.ones(4), size=ROWS).astype(np.float32)
GROUPS = RNG.integers(0, 8, ROWS)
GIVEN = {"pool": POOL, "probabilities": PROBABILITIES, "centers": POOL[:3] + np.float32(0.1)}


def pick(name, budget, constraints, **rest):
    return select(name, budget=budget, constraints=constraints, **(GIVEN | rest))


@pytest.mark.parametrize("name", strategies())
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_every_strategy_keeps_constraints_that_can_be_kept(name, seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 5, ROWS)
    budget = int(rng.integers(10, 30))
    cap = int(rng.integers(-(-budget // 5), budget))
    quota = {int(g): int(rng.integers(0, min(cap, budget // 5) + 1)) for g in rng.permutation(5)[:3]}
    exclude = rng.permutation(ROWS)[:15]
    pinned = np.setdiff1d(rng.permutation(ROWS)[:4], exclude)[:2]
    constraints = Constraints(groups, cap, quota, exclude=exclude, pinned=pinned)
    got = pick(name, budget, constraints).indices
    counts = np.bincount(groups[got], minlength=5)
    assert len(set(got.tolist())) == budget
    assert got[: len(pinned)].tolist() == pinned.tolist()
    assert counts.max() <= cap
    assert all(counts[group] >= least for group, least in quota.items())
    assert not set(got.tolist()) & set(exclude.tolist())


@pytest.mark.parametrize("name", strategies())
def test_constraints_that_bind_nothing_change_nothing(name):
    free = select(name, budget=15, **GIVEN)
    bound = pick(name, 15, Constraints(GROUPS, cap=ROWS, quota={0: 0}))
    assert np.array_equal(free.indices, bound.indices)
    assert np.array_equal(free.scores, bound.scores)


@pytest.mark.parametrize("name", strategies())
def test_quotas_that_fill_the_budget_leave_no_other_pick(name):
    got = pick(name, 9, Constraints(GROUPS, quota={2: 4, 5: 5})).indices
    assert np.bincount(GROUPS[got], minlength=8).tolist() == [0, 0, 4, 0, 0, 5, 0, 0]


@pytest.mark.parametrize("name", strategies())
def test_exact_quotas_are_caps_too(name):
    got = pick(name, 20, Constraints(GROUPS, quota={1: 2, 3: 0}, quota_is_exact=True)).indices
    assert np.bincount(GROUPS[got], minlength=8)[[1, 3]].tolist() == [2, 0]


@pytest.mark.parametrize("name", strategies())
def test_picks_keep_the_minimum_distance_to_each_other_and_to_the_centers(name):
    got = pick(name, 12, Constraints(minimum_distance=1.0)).indices
    points = np.concatenate([GIVEN["centers"], POOL[got]]).astype(np.float64)
    apart = np.linalg.norm(points[:, None] - points, axis=2)[3:] + np.eye(12, 15, 3) * 9
    assert apart.min() > 1.0


@pytest.mark.parametrize("name", strategies())
def test_pinned_rows_may_be_the_whole_budget(name):
    done = []
    got = pick(name, 3, Constraints(pinned=[9, 4, 7]), on_progress=lambda *step: done.append(step))
    assert got.indices.tolist() == [9, 4, 7]
    assert got.scores.tolist() == [0, 0, 0]
    assert done[-1] == (3, 3)
    assert got.notes == ("the first 3 picks were pinned; their scores are 0",)


def test_pinned_rows_are_centres_of_k_center():
    got = pick("k_center", 10, Constraints(pinned=[5, 60]))
    rest = k_center_greedy(POOL, 8, centers=np.concatenate([GIVEN["centers"], POOL[[5, 60]]]))
    assert np.array_equal(got.indices[2:], rest.indices)
    assert np.array_equal(got.scores[2:], rest.scores)
    assert got.radius == rest.radius


def slow_walk(ranking, budget, groups, cap, quota):
    """The best of the ranking that leave the budget and the quotas within reach, one by one, by counting."""
    picks = []
    for row in ranking:
        trial = [*picks, row]
        counts = np.bincount(groups[trial], minlength=8)
        owed = sum(max(0, least - counts[group]) for group, least in quota.items())
        if len(trial) <= budget and counts[groups[row]] <= cap and owed <= budget - len(trial):
            picks = trial
    return picks


@pytest.mark.parametrize("seed", range(5))
def test_rankings_are_walked_as_far_as_constraints_need(seed):
    ranking = random_choice(ROWS, ROWS, seed=seed).indices.tolist()
    quota = {0: 3, 1: 2, 2: 4}
    got = pick("random", 14, Constraints(GROUPS, cap=4, quota=quota), seed=seed)
    assert got.indices.tolist() == slow_walk(ranking, 14, GROUPS, 4, quota)


def test_picks_before_the_quotas_bind_are_those_of_the_free_run():
    free = select("entropy", budget=20, **GIVEN).indices
    last = int(GROUPS[select("entropy", budget=ROWS, **GIVEN).indices[-1]])
    bound = pick("entropy", 20, Constraints(GROUPS, quota={last: 8})).indices
    assert np.array_equal(free[:12], bound[:12])


def test_caps_by_group_and_labels_of_any_kind():
    names = np.array([f"slide {g}" for g in GROUPS])
    got = pick("margin", 30, Constraints(names, cap={"slide 1": 1, "slide 2": 0}, quota={"slide 3": 2})).indices
    counts = {name: int((names[got] == name).sum()) for name in np.unique(names)}
    assert counts["slide 1"] <= 1 and counts["slide 2"] == 0 and counts["slide 3"] >= 2
    by_list = pick("margin", 30, Constraints(names.tolist(), cap={"slide 1": 1, "slide 2": 0}, quota={"slide 3": 2}))
    assert np.array_equal(by_list.indices, got)


def test_rows_beyond_the_constraints_come_with_the_stage_before():
    doubled = np.concatenate([POOL, POOL])
    got = select(
        "k_center",
        budget=120,
        pool=doubled,
        near_duplicates=NearDuplicates(0.0, "l2"),
        constraints=Constraints(pinned=[130]),
    )
    assert sorted(got.indices.tolist()) == sorted([130, *(set(range(120)) - {10})])
    assert got.notes[0] == "near-duplicate stage: 120 of 240 candidates set aside"


# --- what is refused ----------------------------------------------------------------------------

SIX = [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("budget", "constraints", "reason"),
    [
        (5, Constraints(SIX, cap=1), r"budget: 3 picks are possible, got 5; stopped by cap \(3 rows\)"),
        (5, Constraints(exclude=[1, 4]), r"budget: 4 picks are possible, got 5; stopped by exclude \(2 rows\)"),
        (5, Constraints(SIX, 2, exclude=[5]), r"possible, got 5; stopped by exclude \(1 rows\), cap \(1 rows\)"),
        (4, Constraints(SIX, quota={1: 3}), "quota: group 1 needs 3, 2 are possible"),
        (4, Constraints(SIX, quota={1: 2}, exclude=[3]), r"quota: group 1 needs 2, 1 are possible; .* exclude"),
        (4, Constraints(SIX, quota={0: 3, 1: 2}), "quota: groups and pinned rows need 5 picks, the budget is 4"),
        (4, Constraints(SIX, quota={0: 3}, pinned=[3, 5]), "quota: groups and pinned rows need 5 picks"),
        (4, Constraints(SIX, cap=1, quota={0: 2}), "quota: group 0 needs 2, and its cap is 1"),
        (4, Constraints(SIX, quota={7: 1}), "quota: group 7 has no candidates, needs 1"),
        (4, Constraints(SIX, quota={0: -1}), "quota: needs 0 or more of group 0, got -1"),
        (4, Constraints(SIX, quota={0: 1.5}), "quota of 0: needs an integer, got 1.5"),
        (4, Constraints(SIX, cap=0), "cap: needs 1 or more, got 0"),
        (4, Constraints(cap=2), "groups: cap needs the group of each row"),
        (4, Constraints(quota={0: 1}), "groups: quota needs the group of each row"),
        (4, Constraints(SIX[:5], cap=2), r"groups: needs 6 integers or strings, got int64 \(5,\)"),
        (4, Constraints(np.ones(6), cap=2), "groups: needs 6 integers or strings, got float64"),
        (4, Constraints(set("abcdef"), cap=2), "groups: needs 6 integers or strings, got object"),
        (2, Constraints(pinned=[0, 1, 2]), "pinned: needs at most the budget of 2 rows, got 3"),
        (4, Constraints(pinned=[0, 0]), "pinned: names a row twice"),
        (4, Constraints(pinned=[6]), "pinned: needs rows 0 to 5, got 6"),
        (4, Constraints(exclude=[-1]), "exclude: needs rows 0 to 5, got -1"),
        (4, Constraints(exclude=[0.5]), "exclude: needs row numbers, got float64"),
        (4, Constraints(pinned=[2], exclude=[2]), "pinned: row 2 is excluded too"),
        (4, Constraints(SIX, cap=1, pinned=[0, 1]), "pinned: 2 rows are of group 0, its cap is 1"),
        (4, Constraints(minimum_distance=1.0), "minimum_distance: needs pool"),
    ],
)
def test_refuses_what_cannot_be_met(budget, constraints, reason):
    with pytest.raises(ValueError, match=reason):
        select("random", budget=budget, n=6, constraints=constraints)


@pytest.mark.parametrize("distance", [0.0, -1.0, np.nan, np.inf])
def test_refuses_distances_that_are_none(distance):
    with pytest.raises(ValueError, match="minimum_distance: needs a finite number above 0"):
        select("random", budget=2, pool=LINE, constraints=Constraints(minimum_distance=distance))


LINE = np.arange(6, dtype=np.float32)[:, None]


@pytest.mark.parametrize("name", ["k_center", "random", "typiclust", "prob_cover"])
def test_a_distance_that_leaves_too_few_rows_says_how_many_were_possible(name):
    with pytest.raises(
        ValueError, match=r"budget: \d picks are possible at most, got 5; stopped by minimum_distance 1"
    ):
        select(name, budget=5, pool=LINE, constraints=Constraints(minimum_distance=1.5))


def test_a_distance_that_starves_a_quota():
    with pytest.raises(ValueError, match=r"quota: group 1 needs 2, . are possible at most; .*pin rows of that"):
        select("k_center", budget=3, pool=LINE, constraints=Constraints(SIX, quota={1: 2}, minimum_distance=1.5))


def test_pinned_rows_count_for_a_quota_however_near_they_lie():
    constraints = Constraints([0, 1, 1, 0, 0, 0], quota={1: 2}, pinned=[1, 2], minimum_distance=1.5)
    picked = select("k_center", budget=3, pool=LINE, constraints=constraints).indices.tolist()
    assert picked == [1, 2, 5]


def test_a_distance_to_the_centers_counts_before_any_pick():
    with pytest.raises(ValueError, match=r"budget: 3 picks are possible, got 4; .* centers \(3 rows\)"):
        constraints = Constraints(minimum_distance=1.0)
        select("k_center", budget=4, pool=LINE, centers=LINE[1:2], constraints=constraints)


def test_a_distance_is_exceeded_and_not_merely_met():
    got = select("random", budget=3, pool=LINE[[0, 2, 4]], constraints=Constraints(minimum_distance=1.999))
    assert len(got.indices) == 3
    with pytest.raises(ValueError, match="minimum_distance"):
        select("random", budget=3, pool=LINE[[0, 2, 4]], constraints=Constraints(minimum_distance=2.0))


def test_a_ledger_never_allows_again_what_it_forbade():
    ledger = Ledger(6, 4, Constraints(SIX, cap=2, quota={2: 1}))
    before = ledger.allowed.copy()
    for row in (0, 3, 1):
        ledger.take(row)
        assert not (ledger.allowed & ~before).any()
        before = ledger.allowed.copy()
    assert np.flatnonzero(before).tolist() == [5]


def test_one_long_label_does_not_widen_the_others():
    groups = ["a"] * 20_000 + ["b" * 10_000]
    tracemalloc.start()
    try:
        ledger = Ledger(len(groups), 3, Constraints(groups, {"b" * 10_000: 0}))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert ledger.allowed.sum() == 20_000


def test_labels_of_a_list_and_of_an_array_are_the_same_groups():
    labels = np.array(["t", "é", "B", "a", "", "ab", "😀", "10", "9"])[RNG.integers(0, 9, ROWS)]
    ledgers = [Ledger(ROWS, 9, Constraints(given, 2)) for given in (labels, labels.tolist(), tuple(labels))]
    assert all(one._labels == ledgers[0]._labels for one in ledgers)
    assert all(np.array_equal(one._group_of, ledgers[0]._group_of) for one in ledgers)

"""Uncertainty with diversity: a shortlist by the ranking, k-center greedy in it."""

import numpy as np
import pytest

from winnow.selection import Constraints, Ledger, k_center_greedy, most_uncertain, select, uncertain_diverse

RNG = np.random.default_rng(0)
POOL = RNG.normal(size=(200, 4)).astype(np.float32)
CENTERS = RNG.normal(size=(6, 4)).astype(np.float32)
PROBABILITIES = RNG.dirichlet(np.ones(3), 200)


@pytest.mark.parametrize("direction", ["high", "low"])
@pytest.mark.parametrize("measure", ["entropy", "margin"])
@pytest.mark.parametrize("factor", [1, 3, 10, 1000])
def test_is_k_center_in_the_shortlist(direction, measure, factor):
    got = uncertain_diverse(
        POOL, PROBABILITIES, 12, centers=CENTERS, measure=measure, direction=direction, factor=factor
    )
    count = min(200, 12 * factor)
    rows = np.sort(most_uncertain(PROBABILITIES, count, measure=measure, direction=direction).indices)
    expected = k_center_greedy(POOL[rows], 12, centers=CENTERS)
    assert np.array_equal(got.indices, rows[expected.indices])
    assert np.array_equal(got.scores, expected.scores)
    assert got.radius == expected.radius


def test_a_factor_of_one_picks_the_most_uncertain_and_orders_them_by_distance():
    got = uncertain_diverse(POOL, PROBABILITIES, 9, factor=1)
    assert set(got.indices.tolist()) == set(most_uncertain(PROBABILITIES, 9).indices.tolist())


def test_near_copies_are_not_all_taken():
    pool = np.concatenate([np.zeros((20, 2)) + RNG.normal(size=(20, 2)) * 1e-3, RNG.normal(size=(20, 2)) * 9])
    probabilities = np.concatenate([np.full((20, 2), 0.5), np.tile([0.6, 0.4], (20, 1))])
    got = uncertain_diverse(pool.astype(np.float32), probabilities, 10, factor=4)
    assert (got.indices < 20).sum() <= 1


def slow_shortlist(ranking, groups, caps, quotas, budget, factor):
    owed, listed = dict.fromkeys(quotas, 0), []
    for row in ranking:
        group = groups[row]
        if group in quotas and owed[group] < factor * quotas[group]:
            owed[group] += 1
            listed.append(row)
    for row in ranking:
        mine = sum(groups[other] == groups[row] for other in listed)
        if row not in listed and len(listed) < factor * budget and mine < factor * caps:
            listed.append(row)
    return sorted(listed)


@pytest.mark.parametrize("seed", range(4))
def test_the_shortlist_holds_what_caps_and_quotas_need(seed):
    rng = np.random.default_rng(seed)
    groups = rng.choice(5, 200, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    quotas = {4: 2, 3: 1}
    ledger = Ledger(200, 10, Constraints(groups, cap=3, quota=quotas))
    ranking = rng.permutation(200)
    listed = ledger.shortlist(ranking, 10, 3)
    assert listed.tolist() == slow_shortlist(ranking, groups, 3, quotas, 10, 3)
    got = uncertain_diverse(POOL, PROBABILITIES, 10, factor=3, limits=ledger)
    counts = np.bincount(groups[got.indices], minlength=5)
    assert counts.max() <= 3 and counts[4] >= 2 and counts[3] >= 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"factor": 0}, "factor: needs 1 or more, got 0"),
        ({"factor": 1.5}, "factor: needs an integer"),
        ({"budget": 201}, "budget: needs 1 to 200"),
        ({"probabilities": PROBABILITIES[:9]}, "probabilities: needs a row for each of pool's 200, got 9"),
        ({"measure": "guess"}, "measure: needs one of"),
        ({"direction": "up"}, "direction: needs one of"),
    ],
)
def test_refuses(arguments, reason):
    given = {"pool": POOL, "probabilities": PROBABILITIES, "budget": 3} | arguments
    with pytest.raises(ValueError, match=reason):
        uncertain_diverse(**given)


def test_a_second_shortlist_follows_where_a_distance_leaves_none_of_the_first():
    pool = np.repeat(np.arange(10, dtype=np.float32), 8)[:, None]  # ten places, eight copies at each
    certain = np.linspace(0.5, 1.0, 80)
    probabilities = np.stack([certain, 1 - certain], axis=1)
    steps = []
    got = select(
        "uncertain_diverse",
        budget=10,
        pool=pool,
        probabilities=probabilities,
        constraints=Constraints(minimum_distance=0.5),
        on_progress=lambda *step: steps.append(step),
    )
    assert sorted(pool[got.indices, 0].tolist()) == list(range(10))
    few = uncertain_diverse(
        pool, probabilities, 3, factor=1, limits=Ledger(80, 3, Constraints(minimum_distance=0.5), pool=pool)
    )
    assert pool[few.indices, 0].tolist() == [0, 1, 2]
    assert steps[-1] == (10, 10)

"""Uncertainty sampling against loops, the saturated cases, and properties."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import most_uncertain, uncertainty

MEASURES = ("entropy", "margin", "least_confidence")


def slow_score(measure, row):
    row = [float(p) for p in row]
    if measure == "entropy":
        return -sum(p * math.log(p) for p in row if p > 0)
    first, second = sorted(row, reverse=True)[:2]
    return 1 - (first - second) if measure == "margin" else 1 - first


def slow_picks(measure, direction, rows, budget):
    scores = [slow_score(measure, row) for row in rows]
    sign = -1 if direction == "high" else 1
    return sorted(range(len(rows)), key=lambda i: (sign * scores[i], i))[:budget], scores


def softmax(rows, classes, seed, spread=3.0):
    logits = np.random.default_rng(seed).normal(size=(rows, classes)) * spread
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("direction", ["high", "low"])
@pytest.mark.parametrize("classes", [2, 3, 9])
def test_equals_the_loops(measure, direction, classes):
    rows = softmax(200, classes, 1)
    picks, scores = slow_picks(measure, direction, rows, 40)
    got = most_uncertain(rows, 40, measure=measure, direction=direction)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, np.array(scores)[picks], rtol=1e-6, atol=1e-7)
    assert (got.indices.dtype, got.scores.dtype, got.radius) == (np.int64, np.float32, None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_saturated_probabilities_have_no_entropy_and_come_last(dtype):
    rows = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0]], dtype)
    got = most_uncertain(rows, 5)
    assert got.indices.tolist() == [3, 1, 4, 0, 2]
    np.testing.assert_allclose(got.scores[:2], [math.log(3), math.log(2)], rtol=1e-3)
    assert got.scores[3:].tolist() == [0.0, 0.0]
    assert not np.signbit(got.scores).any()
    assert most_uncertain(rows, 2, direction="low").indices.tolist() == [0, 2]


def test_uncertain_first_and_not_the_most_certain():
    rows = np.array([[0.99, 0.01], [0.5, 0.5], [0.7, 0.3]], np.float32)
    for measure in MEASURES:
        assert most_uncertain(rows, 2, measure=measure).indices.tolist() == [1, 2]
        assert most_uncertain(rows, 2, measure=measure, direction="low").indices.tolist() == [0, 2]


def test_known_scores():
    rows = np.array([[0.5, 0.25, 0.25]])
    assert most_uncertain(rows, 1, measure="entropy").scores[0] == pytest.approx(1.5 * math.log(2))
    assert most_uncertain(rows, 1, measure="margin").scores[0] == 0.75
    assert most_uncertain(rows, 1, measure="least_confidence").scores[0] == 0.5


def test_three_classes_tell_the_measures_apart():
    rows = np.array([[0.48, 0.48, 0.04], [0.4, 0.3, 0.3], [0.45, 0.275, 0.275]])
    firsts = [int(most_uncertain(rows, 1, measure=measure).indices[0]) for measure in MEASURES]
    assert firsts == [1, 0, 1]


@settings(max_examples=50, deadline=None)
@given(p=st.lists(st.integers(0, 64), min_size=1, max_size=30))
def test_with_two_classes_all_measures_rank_alike(p):
    column = np.array(p) / 64
    rows = np.stack([1 - column, column], axis=1)
    orders = {tuple(most_uncertain(rows, len(p), measure=measure).indices.tolist()) for measure in MEASURES}
    assert len(orders) == 1


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("direction", ["high", "low"])
def test_ties_go_to_the_lowest_index(measure, direction):
    rows = np.tile(np.array([[0.2, 0.8], [0.8, 0.2]], np.float32), (50, 1))
    got = most_uncertain(rows, 30, measure=measure, direction=direction)
    assert got.indices.tolist() == list(range(30))

    kinds = np.random.default_rng(4).integers(0, 3, 3000)
    rows = np.array([[0.5, 0.5], [0.25, 0.75], [1, 0]], np.float32)[kinds]
    got = most_uncertain(rows, 3000, measure=measure, direction=direction)
    order = range(3) if direction == "high" else reversed(range(3))
    assert got.indices.tolist() == [i for kind in order for i in np.flatnonzero(kinds == kind)]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), classes=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("measure", MEASURES)
def test_properties(measure, rows, classes, seed):
    probabilities = softmax(rows, classes, seed)
    high = most_uncertain(probabilities, rows, measure=measure)
    assert sorted(high.indices.tolist()) == list(range(rows))
    assert (np.diff(high.scores) <= 0).all()
    assert (high.scores >= 0).all()
    assert high.scores[0] <= (math.log(classes) if measure == "entropy" else 1) + 1e-6
    low = most_uncertain(probabilities, rows, measure=measure, direction="low")
    assert np.array_equal(low.scores, high.scores[::-1])
    shuffled = probabilities[:, np.random.default_rng(seed).permutation(classes)]
    again = most_uncertain(shuffled, rows, measure=measure)
    assert np.array_equal(again.indices, high.indices)
    assert np.array_equal(again.scores, high.scores)


def test_a_smaller_budget_gives_the_first_picks_of_a_larger_one():
    rows = softmax(100, 4, 2)
    assert np.array_equal(most_uncertain(rows, 9).indices, most_uncertain(rows, 50).indices[:9])


def test_memmaps_and_read_only_arrays_are_left_alone(tmp_path):
    rows = softmax(300, 5, 3)
    np.save(tmp_path / "p.npy", rows)
    stored = np.load(tmp_path / "p.npy", mmap_mode="r")
    assert np.array_equal(most_uncertain(stored, 20).indices, most_uncertain(rows, 20).indices)


# --- the float32 estimate decides nothing --------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("classes", [2, 9, 300])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 3.0, 40.0])
def test_estimates_stay_within_their_bound(measure, classes, spread):
    rows = softmax(3000, classes, 5, spread)
    rows[0], rows[1] = 0, 0
    rows[0, 0], rows[1, 0] = 1, np.float32(1.009)
    true = uncertainty._MEASURES[measure](uncertainty._sorted(rows))
    off = np.abs(uncertainty._ESTIMATES[measure](rows) - true)
    assert (off <= (classes + 16) * uncertainty.ROUNDING * (true + 1) / 2).all()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("direction", ["high", "low"])
def test_scores_that_float32_cannot_tell_apart(measure, direction):
    """Scores differ by 1e-12, and float32 would rank them all alike, by index."""
    column = 0.3 + np.random.default_rng(6).permutation(500) * 1e-12
    rows = np.stack([column, 1 - column], axis=1)
    picks, _ = slow_picks(measure, direction, rows, 40)
    assert most_uncertain(rows, 40, measure=measure, direction=direction).indices.tolist() == picks


@pytest.mark.parametrize("block", [1, 40, 5000])
@pytest.mark.parametrize("measure", MEASURES)
def test_block_sizes_change_nothing(monkeypatch, block, measure):
    rows = softmax(700, 5, 7)
    whole = most_uncertain(rows, 90, measure=measure)
    monkeypatch.setattr(uncertainty, "BLOCK_VALUES", block)
    again = most_uncertain(rows, 90, measure=measure)
    assert np.array_equal(again.indices, whole.indices)
    assert np.array_equal(again.scores, whole.scores)


@pytest.mark.parametrize("order", ["rising", "falling", "level"])
def test_what_is_forgotten_on_the_way_is_never_a_pick(monkeypatch, order):
    """Rising scores make every block better than those before; level ones keep every row in doubt."""
    monkeypatch.setattr(uncertainty, "FEWEST", 1)
    monkeypatch.setattr(uncertainty, "BLOCK_VALUES", 64)
    share = {"rising": np.linspace(0.01, 0.5, 3000), "falling": np.linspace(0.5, 0.01, 3000)}.get(
        order, np.full(3000, 0.3)
    )
    rows = np.stack([share, 1 - share], axis=1)
    picks, scores = slow_picks("entropy", "high", rows, 70)
    got = most_uncertain(rows, 70)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, np.array(scores)[picks], rtol=1e-6)


def test_beyond_the_input_it_holds_less_than_a_number_a_row():
    rows = softmax(400_000, 9, 8)
    tracemalloc.start()
    try:
        most_uncertain(rows, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(rows)


@pytest.mark.parametrize("place", [0, 2999])
def test_a_bad_row_is_named_wherever_it_lies(monkeypatch, place):
    monkeypatch.setattr(uncertainty, "BLOCK_VALUES", 600)
    for value, reason in ((np.nan, "NaN or infinity"), (-0.2, "row .* is negative"), (1.5, "does not sum to 1")):
        rows = softmax(3000, 3, 9)
        rows[place, 1] = value
        with pytest.raises(ValueError, match=reason) as error:
            most_uncertain(rows, 10)
        assert f"row {place}" in str(error.value)


GOOD = np.array([[0.5, 0.5], [0.2, 0.8]], np.float32)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"budget": 3}, r"budget: needs 1 to 2 .* got 3"),
        ({"budget": 0}, "budget: needs 1 to 2"),
        ({"budget": 1.0}, "budget: needs an integer"),
        ({"probabilities": np.empty((0, 2), np.float32)}, "probabilities: is empty"),
        ({"probabilities": GOOD[:, 0]}, "probabilities: needs 2 dimensions"),
        ({"probabilities": GOOD[:, :1]}, r"probabilities: needs a column for each .* \[1 - p, p\]"),
        ({"probabilities": np.array([[1, 0]])}, "probabilities: needs floating-point values, got dtype int64"),
        ({"probabilities": np.array([[0.5, 0.5], [np.nan, 1]])}, "probabilities: NaN or infinity in row 1"),
        ({"probabilities": np.array([[np.inf, 0.5]])}, "probabilities: NaN or infinity in row 0"),
        ({"probabilities": np.array([[0.5, 0.5], [-0.5, 1.5]])}, "probabilities: row 1 is negative"),
        ({"probabilities": np.array([[3.0, 2.0]])}, "probabilities: row 0 .* does not sum to 1"),
        ({"measure": "variance"}, "measure: needs one of entropy, margin, least_confidence, got 'variance'"),
        ({"direction": "up"}, "direction: needs one of high, low, got 'up'"),
    ],
)
def test_refuses(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        most_uncertain(**({"probabilities": GOOD, "budget": 1} | arguments))

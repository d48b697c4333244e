"""SAS against the greedy of the paper on tables of all pairs of a class."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import sas


def draw(rows, width, classes, seed, *, relu=True):
    rng = np.random.default_rng(seed)
    pool = rng.normal(size=(rows, width)) + 0.3
    return (np.maximum(pool, 0) if relu else pool).astype(np.float32), rng.dirichlet(np.ones(classes), rows)


def cosines(pool):
    lengths = np.linalg.norm(pool.astype(float), axis=1)
    unit = pool.astype(float) / np.where(lengths > 0, lengths, 1)[:, None]
    return unit @ unit.T


def aligned(similar, members, subset):
    """The objective: similarity between a class without S and S."""
    rest = [i for i in members if i not in subset]
    return float(similar[np.ix_(rest, list(subset))].sum())


def slow_sas(similar, labels, budget, selected=()):
    """Greedy, by evaluating the objective for each row of the class whose turn it is."""
    picks, gains = list(selected), []
    sizes = np.bincount(labels)
    while len(gains) < budget:
        total = len(picks) + 1
        taken = np.bincount(labels[picks].astype(int), minlength=len(sizes)) if picks else np.zeros(len(sizes), int)
        order = sorted(range(len(sizes)), key=lambda k: (-(total * sizes[k] - taken[k] * len(labels)), k))
        turn = next(k for k in order if taken[k] < sizes[k])
        members = np.flatnonzero(labels == turn).tolist()
        subset = [p for p in picks if labels[p] == turn]
        before = aligned(similar, members, subset)
        gain = {i: aligned(similar, members, [*subset, i]) - before for i in members if i not in subset}
        picks.append(max(gain, key=lambda i: (round(gain[i], 8), -i)))
        gains.append(gain[picks[-1]])
    return picks[len(selected) :], gains


@pytest.mark.parametrize(("rows", "width", "classes"), [(60, 5, 3), (40, 8, 2), (30, 3, 9), (50, 20, 4)])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("selected", [(), (2, 11)])
def test_matches_the_slow_version(rows, width, classes, relu, selected):
    pool, probabilities = draw(rows, width, classes, rows, relu=relu)
    labels = probabilities.argmax(axis=1)
    got = sas(pool, probabilities, 12, selected=selected)
    picks, gains = slow_sas((1 + cosines(pool)) / 2, labels, 12, selected)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, gains, rtol=1e-5, atol=1e-6)


def test_on_features_that_are_never_negative_the_plain_cosine_picks_the_same():
    pool, probabilities = draw(60, 9, 3, 1)
    picks, _ = slow_sas(cosines(pool), probabilities.argmax(axis=1), 20)
    assert sas(pool, probabilities, 20).indices.tolist() == picks


def test_the_middle_of_a_class_comes_first():
    angles = np.array([-0.6, -0.3, 0.0, 0.3, 0.6])
    pool = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert sas(pool, np.full((5, 2), 0.5), 1).indices.tolist() == [2]


def test_classes_share_the_budget_by_size():
    pool, _ = draw(100, 4, 2, 2)
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    got = sas(pool, np.eye(3)[labels], 10)
    assert np.bincount(labels[got.indices]).tolist() == [5, 3, 2]
    assert len(sas(pool, np.eye(3)[labels], 100).indices) == 100


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_gains_never_ascend_within_a_class(seed):
    pool, probabilities = draw(50, 3, 4, seed, relu=seed % 2 == 0)
    labels = probabilities.argmax(axis=1)
    got = sas(pool, probabilities, 50)
    assert sorted(got.indices.tolist()) == list(range(50))
    for label in np.unique(labels):
        assert (np.diff(got.scores[labels[got.indices] == label]) <= 1e-5).all()


def test_renewing_one_gain_at_a_time_changes_nothing(monkeypatch):
    pool, probabilities = draw(300, 6, 2, 3)
    whole = sas(pool, probabilities, 60)
    monkeypatch.setattr(importlib.import_module("winnow.selection.sas"), "BATCH", 1)
    assert np.array_equal(sas(pool, probabilities, 60).indices, whole.indices)


def test_rows_of_zeros_are_like_none():
    pool, _ = draw(20, 4, 2, 4)
    pool[:5] = 0
    got = sas(pool, np.eye(2)[np.zeros(20, int)], 15)
    picks, gains = slow_sas((1 + cosines(pool) * ~np.eye(20, dtype=bool)) / 2, np.zeros(20, int), 15)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, gains, rtol=1e-5)


def test_refuses_another_number_of_rows():
    pool, probabilities = draw(9, 2, 3, 1)
    with pytest.raises(ValueError, match="probabilities: needs a row for each of pool's 9, got 4"):
        sas(pool, probabilities[:4], 2)

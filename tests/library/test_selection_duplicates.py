"""The near-duplicate stage against one row after the other, by distances to all rows kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import NearDuplicates, find_near_duplicates, select, strategies


def draw(rows, width, seed, *, noise=0.02, offset=0.0):
    """Rows of which a half are near copies of others."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(rows - rows // 2, width))
    copies = first[rng.integers(0, len(first), rows // 2)] + noise * rng.normal(size=(rows // 2, width))
    return (rng.permutation(np.concatenate([first, copies])) + offset).astype(np.float32)


def slow_duplicates(pool, rule, pinned=()):
    points = pool.astype(float)
    if rule.metric == "cosine":
        lengths = np.linalg.norm(points, axis=1)
        points = points / np.where(lengths > 0, lengths, 1)[:, None]
    kept = []
    for row in [*pinned, *(i for i in range(len(pool)) if i not in pinned)]:
        near = kept and ((points[kept] - points[row]) ** 2).sum(axis=1).min() <= rule.distance**2
        if row in pinned or not near:
            kept.append(row)
    return sorted(set(range(len(pool))) - set(kept))


@pytest.mark.parametrize(("rows", "width"), [(400, 60), (300, 100), (200, 3), (150, 1), (2500, 5)])
@pytest.mark.parametrize("rule", [NearDuplicates(0.999), NearDuplicates(0.3, "l2"), NearDuplicates(0.0, "l2")])
@pytest.mark.parametrize("pinned", [(), (140, 7)])
def test_matches_the_slow_version(rows, width, rule, pinned):
    pool = draw(rows, width, rows)
    got = find_near_duplicates(pool, rule, pinned=pinned)
    assert np.flatnonzero(got).tolist() == slow_duplicates(pool, rule, pinned)


def test_chains_are_cut_by_the_rows_kept():
    line = np.array([[0.0], [0.9], [1.8], [2.7]], np.float32)
    assert find_near_duplicates(line, NearDuplicates(1.0, "l2")).tolist() == [False, True, False, True]
    assert find_near_duplicates(line, NearDuplicates(1.0, "l2"), pinned=[1]).tolist() == [True, False, True, False]


def test_the_threshold_itself_is_near():
    line = np.array([[1000.0], [1001.0]], np.float32)
    assert find_near_duplicates(line, NearDuplicates(1.0, "l2")).tolist() == [False, True]
    assert not find_near_duplicates(line, NearDuplicates(0.9999, "l2")).any()


def test_cosine_looks_at_the_direction_alone():
    pool = np.array([[1, 2, 3], [2, 4, 6], [0.3, 0.6, 0.9], [3, 2, 1], [0, 0, 0], [0, 0, 0]], np.float32)
    got = find_near_duplicates(pool, NearDuplicates(1.0))
    assert got.tolist() == [False, True, True, False, False, True]


def test_copies_are_found_far_from_the_origin():
    pool = draw(300, 20, 5, noise=0.0, offset=1000.0)
    assert find_near_duplicates(pool, NearDuplicates(0.0, "l2")).sum() == 300 - len(np.unique(pool, axis=0))


def test_features_near_the_end_of_float32():
    pool = np.full((4, 9), 3e38, np.float32)
    pool[1:3, 0] = -3e38
    assert find_near_duplicates(pool, NearDuplicates(1e36, "l2")).tolist() == [False, False, True, True]


def test_a_loose_threshold_leaves_one_row():
    assert find_near_duplicates(draw(3000, 6, 6), NearDuplicates(100.0, "l2")).sum() == 2999


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_rows_kept_are_apart_and_stand_for_the_others(seed):
    pool = draw(80, 1 + seed % 4, seed)
    rule = NearDuplicates(float(np.random.default_rng(seed).uniform(0, 2)), "l2")
    aside = find_near_duplicates(pool, rule)
    apart = np.sqrt(((pool[:, None].astype(float) - pool[None].astype(float)) ** 2).sum(axis=2))
    kept = np.flatnonzero(~aside)
    assert (apart[np.ix_(kept, kept)][~np.eye(len(kept), dtype=bool)] > rule.threshold).all()
    assert all((apart[row, kept[kept < row]] <= rule.threshold).any() for row in np.flatnonzero(aside))


@pytest.mark.parametrize("name", strategies())
def test_no_strategy_picks_what_was_set_aside(name):
    pool = draw(90, 5, 7, noise=0.0)
    probabilities = np.random.default_rng(8).dirichlet(np.ones(3), 90)
    rule = NearDuplicates(0.0, "l2")
    kept = np.flatnonzero(~find_near_duplicates(pool, rule))
    got = select(name, budget=len(kept), pool=pool, probabilities=probabilities, near_duplicates=rule)
    assert sorted(got.indices.tolist()) == kept.tolist()
    assert got.notes[0] == f"near-duplicate stage: {90 - len(kept)} of 90 candidates set aside"
    with pytest.raises(ValueError, match=f"budget: {len(kept)} picks are possible, got {len(kept) + 1}; .* near-dup"):
        select(name, budget=len(kept) + 1, pool=pool, probabilities=probabilities, near_duplicates=rule)


def test_stops_between_blocks():
    assert find_near_duplicates(draw(50, 3, 9), NearDuplicates(0.9), should_stop=lambda: True) is None
    got = select("random", budget=5, pool=draw(50, 3, 9), near_duplicates=NearDuplicates(0.9), should_stop=lambda: True)
    assert len(got.indices) == 0


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (NearDuplicates(0.5), "threshold: needs a cosine above 0.5"),
        (NearDuplicates(1.5), "threshold: needs a cosine above 0.5 and at most 1, got 1.5"),
        (NearDuplicates(np.nan), "threshold: needs a cosine"),
        (NearDuplicates(-1.0, "l2"), "threshold: needs a finite distance of 0 or more"),
        (NearDuplicates(np.inf, "l2"), "threshold: needs a finite distance"),
        (NearDuplicates(0.9, "l1"), "metric: needs one of cosine, l2, got 'l1'"),
    ],
)
def test_refuses(rule, reason):
    with pytest.raises(ValueError, match=reason):
        find_near_duplicates(draw(9, 2, 1), rule)


def test_needs_the_features():
    with pytest.raises(ValueError, match="near_duplicates: needs pool"):
        select("random", budget=2, n=9, near_duplicates=NearDuplicates(0.9))
    with pytest.raises(ValueError, match="pool: needs a row for each of 9 candidates, got 8"):
        select("random", budget=2, n=9, pool=draw(8, 2, 1), near_duplicates=NearDuplicates(0.9))

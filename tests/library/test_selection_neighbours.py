"""Neighbours and pairs against float64 tables of all distances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import neighbours
from winnow.selection.neighbours import Origin, nearest_rows, nearest_squares, pairs_within, rows_near, rows_near_point


def draw(rows, width, seed, *, offset=0.0, steps=0):
    values = np.random.default_rng(seed).normal(size=(rows, width))
    if steps:
        values = np.round(values * steps) / steps  # a grid, full of ties
    return (values + offset).astype(np.float32)


def table(left, right):
    return ((left[:, None].astype(float) - right[None].astype(float)) ** 2).sum(axis=2)


CASES = pytest.mark.parametrize(
    ("width", "offset", "steps"), [(1, 0, 0), (3, 0, 2), (20, 0, 0), (20, 1000, 0), (8, 100, 1), (130, 0, 0)]
)


@CASES
@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("small", [0, 1 << 18])
def test_nearest_squares_are_those_of_the_table(monkeypatch, width, offset, steps, count, small):
    monkeypatch.setattr(neighbours, "SMALL_TABLE", small)
    queries, rows = (draw(k, width, k, offset=offset, steps=steps) for k in (50, 120))
    squares, found = nearest_squares(queries, rows, count, Origin(rows))
    true = table(queries, rows)
    np.testing.assert_allclose(squares, np.sort(true, axis=1)[:, :count], rtol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(true, found, 1), squares, rtol=1e-12)
    assert all(len(set(each)) == count for each in found.tolist())


@CASES
def test_the_nearest_row_is_the_lowest_of_those_that_tie(width, offset, steps):
    queries, rows = (draw(k, width, k, offset=offset, steps=steps) for k in (90, 70))
    assert np.array_equal(nearest_rows(queries, rows, Origin(rows)), table(queries, rows).argmin(axis=1))


@CASES
@pytest.mark.parametrize("rank", [0, 200, 4000])
def test_pairs_at_the_very_distance_are_within(width, offset, steps, rank):
    left, right = (draw(k, width, k, offset=offset, steps=steps) for k in (60, 80))
    true = table(left, right)
    distance = float(np.sqrt(np.sort(true.ravel())[rank]))
    rows, columns = pairs_within(left, right, distance, Origin(right))
    expected = np.nonzero(true <= distance * distance)
    assert np.array_equal(rows, expected[0])
    assert np.array_equal(columns, expected[1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_rows_near_any_point(seed):
    rng = np.random.default_rng(seed)
    pool, points = (draw(int(k), 1 + seed % 5, seed, steps=seed % 3) for k in rng.integers(1, 60, 2))
    distance = float(rng.uniform(0, 2))
    expected = table(pool, points) <= distance * distance
    assert np.array_equal(rows_near(pool, points, distance), expected.any(axis=1))
    assert np.array_equal(rows_near_point(pool, points[0], distance), expected[:, 0])


def test_tiles_change_nothing(monkeypatch):
    pool, points = draw(1500, 4, 1, steps=3), draw(300, 4, 2, steps=3)
    whole = rows_near(pool, points, 1.0)
    monkeypatch.setattr(neighbours, "TILE", 1 << 12)
    assert np.array_equal(rows_near(pool, points, 1.0), whole)
    covered = np.zeros((1500, 300), int)
    for rows, columns in neighbours.tiles(1500, 300):
        covered[rows, columns] += 1
        assert covered[rows, columns].size <= 1 << 12
    assert (covered == 1).all()


def test_values_that_overflow_float32_squares_are_still_told_apart():
    rows = np.array([[1e25, 0], [-1e25, 0], [1e25, 1e24]], np.float32)
    assert nearest_rows(rows, rows, Origin(rows)).tolist() == [0, 1, 2]
    assert pairs_within(rows, rows, 2e24, Origin(rows))[1].tolist() == [0, 2, 1, 0, 2]
    assert rows_near_point(rows, rows[0], 2e24).tolist() == [True, False, True]

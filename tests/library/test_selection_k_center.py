"""k-center greedy against a slow oracle written from Algorithm 1, cases solved by hand, and properties."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import distances as module
from winnow.selection import k_center_greedy


def distance(x, y):
    return float(np.sqrt(np.sum((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2)))


def slow_k_center(pool, budget, centers):
    """Algorithm 1 of Reasat & Smith: s <- s + argmax_i min_{j in s} ||x_i - x_j||, until b were added."""
    selected = list(centers)
    picks, scores = [], []
    for _ in range(budget):
        best, farthest = -1, -1.0
        for i, x in enumerate(pool):
            if i in picks:
                continue
            nearest = np.float32(min(distance(x, s) for s in selected))  # closer than that, distances are ties
            if nearest > farthest:
                best, farthest = i, nearest
        picks.append(best)
        scores.append(farthest)
        selected.append(pool[best])
    left = [min(distance(x, s) for s in selected) for i, x in enumerate(pool) if i not in picks]
    return picks, scores, max(left, default=0.0)


def fast_oracle(pool, budget, centers):
    """The same with whole float64 rows, for sizes that the loops would take minutes for; ties as in float32."""
    pool, centers = pool.astype(np.float64), centers.astype(np.float64)
    nearest = np.min([((pool - c) ** 2).sum(axis=1) for c in centers], axis=0)
    picks = []
    for _ in range(budget):
        left = np.sqrt(nearest).astype(np.float32)
        left[picks] = -1
        picks.append(int(np.argmax(left)))
        nearest = np.minimum(nearest, ((pool - pool[picks[-1]]) ** 2).sum(axis=1))
    return picks


def draw(rows, width, seed, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(rows, width)) + offset).astype(np.float32)


def same(a, b):
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.scores, b.scores) and a.radius == b.radius


# --- against the oracle -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "width", "known", "budget"), [(30, 1, 1, 30), (40, 2, 3, 12), (50, 17, 9, 20), (25, 64, 30, 25)]
)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_equals_the_loops_of_algorithm_1(rows, width, known, budget, offset):
    pool, centers = draw(rows, width, 1, offset), draw(known, width, 2, offset)
    picks, scores, radius = slow_k_center(pool, budget, centers)
    got = k_center_greedy(pool, budget, centers=centers)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, scores, rtol=1e-6)
    assert got.radius == np.float32(radius)
    assert (got.indices.dtype, got.scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (100.0, 1.0), (1e6, 1.0), (0.0, 1e25), (100.0, 1e-25)])
def test_equals_float64_over_several_blocks_at_any_offset_and_scale(offset, scale):
    pool = (draw(5000, 16, 3, offset) * np.float32(scale)).astype(np.float32)
    centers = (draw(4200, 16, 4, offset) * np.float32(scale)).astype(np.float32)
    assert k_center_greedy(pool, 60, centers=centers).indices.tolist() == fast_oracle(pool, 60, centers)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e25, 1e37])
def test_squares_that_float32_cannot_hold(scale):
    pool, centers = draw(60, 3, 31) * np.float32(scale), draw(2, 3, 32) * np.float32(scale)
    picks, scores, _ = slow_k_center(pool, 50, centers)
    got = k_center_greedy(pool, 50, centers=centers)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, scores, rtol=1e-6)


@pytest.mark.parametrize("known", [0, 1])
def test_distances_that_float32_scores_cannot_hold_are_refused(known):
    pool = np.array([[0, 0], [3e38, 3e38], [-3e38, -3e38], [1, 1]], np.float32)
    with pytest.raises(ValueError, match=r"pool: rows lie more than 3.4e\+38 apart.*scale pool and centers down"):
        k_center_greedy(pool, 3, centers=pool[:known])
    near = k_center_greedy(pool / 4, 3, centers=pool[:1])
    assert near.indices.tolist() == [1, 2, 3] and np.isfinite(near.scores).all()


def near_ties(apart):
    """Candidates whose distances to the nearest centre, about 6e3, grow by `apart` of themselves each, shuffled."""
    order = np.random.default_rng(5).permutation(300)
    pool = np.full((300, 40), 1000.0, np.float32)
    pool[:, 0] = 0
    pool[:, 1] = 1000 + order * np.float32(apart * 38_000)
    centers = np.zeros((20, 40), np.float32)
    centers[:, 2] = np.arange(20) * np.float32(1e-4)
    return pool, centers, order


def test_near_ties_are_told_apart_as_far_as_float32_goes():
    """Distances that differ in their last bits, in features that a product alone would find all alike."""
    pool, centers, order = near_ties(1e-6)
    got = k_center_greedy(pool, 300, centers=centers)
    assert got.indices.tolist() == fast_oracle(pool, 300, centers)
    assert got.indices[0] == np.argmax(order)


def test_distances_closer_than_float32_are_ties_and_go_to_the_lowest_row():
    pool, centers, order = near_ties(1e-9)
    squares = np.min([module.measure(pool, centre) for centre in centers], axis=0)
    assert len(np.unique(squares)) > len(np.unique(np.sqrt(squares).astype(np.float32)))
    assert np.argmax(order) > 0
    got = k_center_greedy(pool, 50, centers=centers)
    assert got.indices.tolist() == fast_oracle(pool, 50, centers)
    assert got.indices[0] == np.argmax(np.sqrt(squares).astype(np.float32)) != np.argmax(squares)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_the_loops_on_grids_full_of_ties_and_duplicates(data):
    rows, width, known = (data.draw(st.integers(1, most)) for most in (14, 5, 6))
    coordinate = st.integers(-2, 2)
    pool = np.array(
        data.draw(st.lists(st.lists(coordinate, min_size=width, max_size=width), min_size=rows, max_size=rows))
    )
    centers = np.array(
        data.draw(st.lists(st.lists(coordinate, min_size=width, max_size=width), min_size=known, max_size=known))
    )
    budget = data.draw(st.integers(1, rows))
    pool, centers = pool.astype(np.float32), centers.astype(np.float32)
    picks, scores, radius = slow_k_center(pool, budget, centers)
    got = k_center_greedy(pool, budget, centers=centers)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, scores, rtol=1e-6)
    assert got.radius == np.float32(radius)


# --- cases solved by hand -----------------------------------------------------------------------


def test_on_a_line():
    pool = np.array([[0], [1], [2], [8], [10]], np.float32)
    got = k_center_greedy(pool, 3, centers=np.array([[0]], np.float32))
    assert got.indices.tolist() == [4, 2, 3]  # 10 is 10 away; then 2 (2 away) comes before 8 (2 away) by its index
    assert got.scores.tolist() == [10, 2, 2]
    assert got.radius == 1


def test_ties_go_to_the_lowest_index():
    pool = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]], np.float32)
    got = k_center_greedy(pool, 5, centers=np.zeros((1, 2), np.float32))
    assert got.indices.tolist() == [1, 2, 3, 4, 0]


def test_picks_move_away_from_what_is_selected():
    pool = np.array([[0], [5], [9]], np.float32)
    assert k_center_greedy(pool, 1, centers=np.array([[0]], np.float32)).indices.tolist() == [2]
    assert k_center_greedy(pool, 1, centers=np.array([[9]], np.float32)).indices.tolist() == [0]


def test_duplicates_are_never_picked_twice():
    pool = np.repeat(np.array([[1, 2], [3, 4]], np.float32), 10, axis=0)
    got = k_center_greedy(pool, 20, centers=pool[:1])
    assert sorted(got.indices.tolist()) == list(range(20))
    assert got.indices[0] == 10
    assert not got.scores[1:].any()
    assert got.radius == 0.0


def test_centres_that_repeat_change_nothing():
    pool, centers = draw(300, 8, 6), draw(5, 8, 7)
    assert same(k_center_greedy(pool, 9, centers=centers), k_center_greedy(pool, 9, centers=np.tile(centers, (900, 1))))


# --- without centres ----------------------------------------------------------------------------


def test_without_centres_the_seed_draws_the_first_pick():
    pool = draw(200, 6, 8)
    firsts = {int(k_center_greedy(pool, 1, seed=seed).indices[0]) for seed in range(20)}
    assert len(firsts) > 10
    got = k_center_greedy(pool, 8, seed=3)
    assert same(got, k_center_greedy(pool, 8, seed=3, centers=np.empty((0, 6), np.float32)))
    first = int(got.indices[0])
    rest, scores, radius = slow_k_center(np.delete(pool, first, axis=0), 7, pool[[first]])
    assert got.indices[1:].tolist() == [i + (i >= first) for i in rest]
    np.testing.assert_allclose(got.scores[1:], scores, rtol=1e-6)
    assert got.scores[0] == got.scores[1]
    assert got.radius == pytest.approx(radius)


def test_one_candidate_without_centres():
    got = k_center_greedy(np.ones((1, 3), np.float32), 1)
    assert (got.indices.tolist(), got.scores.tolist(), got.radius) == ([0], [0.0], 0.0)


def test_the_seed_is_not_used_where_there_are_centres():
    pool, centers = draw(50, 4, 9), draw(2, 4, 10)
    assert same(k_center_greedy(pool, 5, centers=centers, seed=1), k_center_greedy(pool, 5, centers=centers, seed=2))


# --- properties ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 80), width=st.integers(1, 9), known=st.integers(0, 5), seed=st.integers(0, 2**32 - 1))
def test_picks_are_distinct_scores_never_ascend_and_all_lie_within_the_radius(rows, width, known, seed):
    pool, centers = draw(rows, width, seed), draw(known, width, seed + 1)
    budget = 1 + seed % rows
    got = k_center_greedy(pool, budget, centers=centers, seed=seed)
    assert len(set(got.indices.tolist())) == budget
    assert (np.diff(got.scores) <= 0).all()
    covering = np.concatenate([centers, pool[got.indices]])
    assert all(np.float32(min(distance(x, c) for c in covering)) <= got.radius for x in pool)
    assert got.radius <= got.scores[-1] * (1 + 1e-6)


def test_a_smaller_budget_gives_the_first_picks_of_a_larger_one():
    pool, centers = draw(120, 7, 11), draw(4, 7, 12)
    small, large = (k_center_greedy(pool, budget, centers=centers) for budget in (10, 30))
    assert np.array_equal(small.indices, large.indices[:10])
    assert np.array_equal(small.scores, large.scores[:10])


def test_block_sizes_change_nothing(monkeypatch):
    pool, centers = draw(600, 10, 13), draw(90, 10, 14)
    whole = k_center_greedy(pool, 40, centers=centers)
    monkeypatch.setattr("winnow.selection.batch.BLOCK_ROWS", 7)
    assert same(whole, k_center_greedy(pool, 40, centers=centers))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 12, 512])
def test_the_float32_estimate_stays_within_its_bound(width):
    """The bound is what makes passing a pair over safe; FAISS has a kernel of its own for several widths."""
    block, point = draw(700, width, 15, 1000.0), draw(1, width, 16, 1000.0)[0]
    true = module.measure(block, point)
    off = np.abs(module.squares_to_point(block, point) - true)
    assert (off <= true * (width + 4) * module.ROUNDING / 2).all()


# --- repeats, threads, memory -------------------------------------------------------------------

DIGEST = """
import hashlib, sys, faiss, numpy as np
from winnow.selection import k_center_greedy
rng = np.random.default_rng(0)
pool = np.maximum(rng.normal(size=(4500, 96)), 0).astype(np.float32) + 100
centers = np.maximum(rng.normal(size=(2500, 96)), 0).astype(np.float32) + 100
assert faiss.omp_get_max_threads() == int(sys.argv[1])
got = k_center_greedy(pool, 80, centers=centers)
print(hashlib.sha256(got.indices.tobytes() + got.scores.tobytes() + np.float64(got.radius).tobytes()).hexdigest())
"""


def digest(threads):
    environment = os.environ | {f"{kind}_NUM_THREADS": str(threads) for kind in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, "-c", DIGEST, str(threads)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_the_same_bits_for_any_number_of_threads():
    digests = {threads: digest(threads) for threads in (1, 2, 3)}
    assert len(set(digests.values())) == 1, digests
    assert len(digests[1]) == hashlib.sha256().digest_size * 2


def test_repeats_give_the_same_bits():
    pool, centers = draw(400, 33, 17), draw(60, 33, 18)
    assert same(k_center_greedy(pool, 50, centers=centers), k_center_greedy(pool, 50, centers=centers))


def test_memmaps_are_read_where_they_lie(tmp_path):
    pool, centers = draw(900, 12, 19), draw(70, 12, 20)
    for name, array in (("pool", pool), ("centers", centers)):
        np.save(tmp_path / f"{name}.npy", array)
    stored, known = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("pool", "centers"))
    assert same(k_center_greedy(stored, 25, centers=known), k_center_greedy(pool, 25, centers=centers))


def test_layout_and_precision_of_the_input_change_nothing():
    pool, centers = draw(90, 6, 21), draw(5, 6, 22)
    expected = k_center_greedy(pool, 20, centers=centers)
    assert same(k_center_greedy(np.asfortranarray(pool), 20, centers=centers), expected)
    assert same(k_center_greedy(np.repeat(pool, 2, axis=1)[:, ::2], 20, centers=centers), expected)
    assert same(k_center_greedy(pool.astype(np.float64), 20, centers=centers.astype(">f4")), expected)
    half = pool.astype(np.float16)
    assert same(k_center_greedy(half, 20), k_center_greedy(half.astype(np.float32), 20))


def test_the_input_is_not_written_to():
    pool, centers = draw(50, 3, 23), draw(5, 3, 24)
    pool.flags.writeable = centers.flags.writeable = False
    k_center_greedy(pool, 10, centers=centers)


# --- progress and stopping ----------------------------------------------------------------------


@pytest.mark.parametrize("known", [0, 4])
def test_a_stopped_run_returns_the_valid_prefix(known):
    pool, centers = draw(60, 5, 25), draw(known, 5, 26)
    whole = k_center_greedy(pool, 20, centers=centers)
    done = []
    got = k_center_greedy(
        pool, 20, centers=centers, on_progress=lambda *step: done.append(step), should_stop=lambda: len(done) > 7
    )
    assert done == [(i, 20) for i in range(8)]
    assert same(got, k_center_greedy(pool, 7, centers=centers))
    assert np.array_equal(got.indices, whole.indices[:7])


@pytest.mark.parametrize("known", [0, 4])
def test_stopped_before_any_distance_was_known(known):
    got = k_center_greedy(draw(9, 2, 27), 3, centers=draw(known, 2, 28), should_stop=lambda: True)
    assert (got.indices.shape, got.scores.shape, got.radius) == ((0,), (0,), None)
    assert (got.indices.dtype, got.scores.dtype) == (np.int64, np.float32)


def test_progress_ends_at_the_budget():
    done = []
    k_center_greedy(draw(9, 2, 29), 3, on_progress=lambda *step: done.append(step))
    assert done == [(0, 3), (1, 3), (2, 3), (3, 3)]


# --- what is refused ----------------------------------------------------------------------------

GOOD = draw(5, 3, 30)


def spoiled(value):
    bad = GOOD.copy()
    bad[3, 1] = value
    return bad


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"budget": 6}, r"budget: needs 1 to 5 .* got 6"),
        ({"budget": 0}, r"budget: needs 1 to 5 .* got 0"),
        ({"budget": -1}, "budget: needs 1"),
        ({"budget": 2.5}, "budget: needs an integer, got 2.5"),
        ({"budget": True}, "budget: needs an integer"),
        ({"seed": -1}, "seed: needs 0 or more"),
        ({"seed": None}, "seed: needs an integer"),
        ({"pool": np.empty((0, 3), np.float32)}, "pool: is empty"),
        ({"pool": np.empty((5, 0), np.float32)}, "pool: has no columns"),
        ({"pool": GOOD[0]}, r"pool: needs 2 dimensions .* \(3,\)"),
        ({"pool": GOOD[None]}, "pool: needs 2 dimensions"),
        ({"pool": np.ones((5, 3), np.int64)}, "pool: needs floating-point values, got dtype int64"),
        ({"pool": np.ones((5, 3), np.complex64)}, "pool: needs floating-point values"),
        ({"pool": spoiled(np.nan)}, "pool: NaN or infinity in row 3"),
        ({"pool": spoiled(-np.inf)}, "pool: NaN or infinity in row 3"),
        ({"pool": np.full((5, 3), 1e300)}, "pool as float32: NaN or infinity in row 0"),
        ({"centers": spoiled(np.nan)}, "centers: NaN or infinity in row 3"),
        ({"centers": GOOD[:, :2]}, "centers: rows have 2 features, those of pool have 3"),
        ({"centers": GOOD[0]}, "centers: needs 2 dimensions"),
        ({"centers": np.ones((2, 3), bool)}, "centers: needs floating-point values"),
    ],
)
def test_refuses(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        k_center_greedy(**({"pool": GOOD, "budget": 2} | arguments))

"""The lazy search: the same bits whatever its sizes, less work than a plain pass, and never much more."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.selection import distances, frontier, k_center_greedy
from winnow.selection.distances import Frame, lower_to_point, measure, rounded_up
from winnow.selection.frontier import PER_ROW, PICKED, Frontier


def draw(rows, width, seed, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(rows, width)) + offset).astype(np.float32)


def clustered(rows, width, seed):
    """ReLU-like clusters of skewed sizes."""
    rng = np.random.default_rng(seed)
    middles, which = rng.normal(-0.3, 1, (20, width)), np.minimum(rng.geometric(0.2, rows), 20) - 1
    return np.maximum(middles[which] + 0.5 * rng.normal(size=(rows, width)), 0).astype(np.float32)


def plain(pool, budget, centres):
    """A pass a pick in float64, of the very differences that the library measures; picks compare float32 of it."""
    nearest = np.full(len(pool), np.inf)
    for centre in centres:
        nearest = np.minimum(nearest, measure(pool, centre))
    picks, scores, is_open = [], [], np.ones(len(pool), bool)
    for _ in range(budget):
        distances_left = np.where(is_open, np.sqrt(nearest).astype(np.float32), np.float32(PICKED))
        picks.append(int(np.argmax(distances_left)))
        scores.append(distances_left[picks[-1]])
        is_open[picks[-1]] = False
        nearest = np.minimum(nearest, measure(pool, pool[picks[-1]]))
    return picks, np.array(scores), float(np.sqrt(nearest[is_open].max(initial=0.0)).astype(np.float32))


def to_the_nearest(pool, others):
    """Distances (n,) of float64, in float32."""
    return np.sqrt(np.min([measure(pool, other) for other in others], axis=0)).astype(np.float32)


def anywhere(rows):
    """What is known of their distances before any was looked at."""
    return np.full(rows, np.inf, np.float32)


def assert_equals_plain(pool, budget, centres):
    got = k_center_greedy(pool, budget, centers=centres)
    picks, scores, radius = plain(pool, budget, centres)
    assert got.indices.tolist() == picks
    assert np.array_equal(got.scores, scores)
    assert got.radius == radius


def shrink(monkeypatch, **sizes):
    for name, size in sizes.items():
        monkeypatch.setattr(frontier, name, size)


# --- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 8, 96])
@pytest.mark.parametrize("make", [draw, clustered])
def test_equals_a_pass_a_pick_to_the_last_bit(make, width):
    assert_equals_plain(make(3000, width, 1), 400, make(700, width, 2))


@pytest.mark.parametrize("block", [1, 3, 40, 5000])
@pytest.mark.parametrize("marks", [3, 6, 255])
def test_sizes_change_nothing(monkeypatch, block, marks):
    pool, centres = clustered(900, 12, 3), clustered(60, 12, 4)
    shrink(monkeypatch, CORE=block, LARGEST_CORE=2 * block, BLOCK=block, FIRST_CENTRES=5, SCAN=64, MARKS=marks)
    monkeypatch.setattr("winnow.selection.batch.BLOCK_ROWS", 50)
    monkeypatch.setattr(distances, "UNDECIDED_ROWS", 3)
    assert_equals_plain(pool, 120, centres)


@pytest.mark.parametrize("marks", [3, 6, frontier.MARKS])
def test_marks_that_run_out_change_nothing(monkeypatch, marks):
    shrink(monkeypatch, CORE=2, LARGEST_CORE=128, FIRST_CENTRES=5, SCAN=64, MARKS=marks, TOLERATED=1e9)
    assert_equals_plain(draw(900, 12, 3), 600, draw(60, 12, 4))


@pytest.mark.parametrize("lay", [np.asfortranarray, lambda rows: np.repeat(rows, 2, axis=0)[::2]])
def test_how_rows_lie_in_memory_changes_nothing(lay):
    pool, centres = clustered(2000, 12, 3), clustered(60, 12, 4)
    expected, got = (k_center_greedy(rows, 120, centers=centres) for rows in (pool, lay(pool)))
    assert np.array_equal(got.indices, expected.indices)
    assert np.array_equal(got.scores, expected.scores)


def test_centres_that_differ_in_the_sign_of_zero_are_one():
    centres = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, -0.0], [2.0, 0.0]], np.float32)
    assert Frontier(draw(9, 2, 5), centres, 1, lambda: False).distinct.tolist() == [0, 2]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), known=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), block=st.integers(1, 9))
def test_ties_and_duplicates_with_small_blocks(rows, known, seed, block):
    rng = np.random.default_rng(seed)
    pool, centres = (rng.integers(-2, 3, (count, 2)).astype(np.float32) for count in (rows, known))
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, CORE=block, LARGEST_CORE=2 * block, BLOCK=2, FIRST_CENTRES=1, SCAN=8, MARKS=4)
        assert_equals_plain(pool, rows, centres)


@pytest.mark.parametrize("given_up", [True, False])
def test_giving_bounds_up_changes_nothing(monkeypatch, given_up):
    pool, centres = draw(2000, 6, 5), draw(50, 6, 6)
    shrink(monkeypatch, CORE=16, TOLERATED=-1e9 if given_up else 1e9)
    assert_equals_plain(pool, 300, centres)


def test_all_points_equal():
    pool = np.full((700, 5), 3.5, np.float32)
    got = k_center_greedy(pool, 600, centers=pool[:1])
    assert got.indices.tolist() == list(range(600))
    assert not got.scores.any()
    assert got.radius == 0.0
    first = k_center_greedy(pool, 700, seed=4)
    assert sorted(first.indices.tolist()) == list(range(700))
    assert not first.scores.any()


def test_centres_equal_to_the_pool():
    pool = draw(1500, 7, 7)
    got = k_center_greedy(pool, 1500, centers=pool)
    assert got.indices.tolist() == list(range(1500))
    assert not got.scores.any()
    assert got.radius == 0.0


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 40), (2, 1)])
def test_the_smallest_inputs(rows, width):
    pool = draw(rows, width, 8)
    got = k_center_greedy(pool, rows, centers=pool[:1] + 1)
    assert sorted(got.indices.tolist()) == list(range(rows))
    assert got.radius == 0.0


# --- bounds -------------------------------------------------------------------------------------


def place(frame, rows):
    return frame.place(rows, np.arange(len(rows)), np.empty_like(rows))


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e18, 1e30])
def test_bounds_are_above_the_distances(offset, scale):
    pool, others = (draw(200, 64, seed, offset) * np.float32(scale) for seed in (9, 10))
    frame = Frame(pool)
    nearest = to_the_nearest(pool, others)
    bounds = frame.bound(place(frame, pool), place(frame, others))
    assert (bounds >= nearest).all()
    lowered = bounds.copy()
    frame.lower(lowered, place(frame, pool), place(frame, others))
    assert np.array_equal(np.minimum(lowered, nearest), nearest)
    assert np.array_equal(np.minimum(lowered, bounds), lowered)
    assert np.array_equal(lowered, nearest)


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_nothing_is_rounded_up_to_less(values):
    assert (rounded_up(np.array(values)) >= np.array(values)).all()


def test_squares_that_float32_rounds_up_to_twice_hide_nothing():
    """Each of four squares is half of the least that float32 has, or a little more, and counts as all of it."""
    row = np.full((1, 4), 2.66e-23, np.float32)
    nearest = np.array([5.5e-23], np.float32)
    lower_to_point(nearest, row, np.zeros(4, np.float32))
    assert nearest == to_the_nearest(row, np.zeros((1, 4), np.float32)) < np.float32(5.5e-23)


def test_how_rows_lie_in_memory_changes_no_bit_of_what_is_measured():
    rows, others = draw(300, 40, 9), draw(300, 40, 10)
    for right in (others, others[0]):
        assert np.array_equal(measure(np.asfortranarray(rows), right), measure(rows, right))


def test_bounds_are_close_where_features_have_an_offset():
    """Centring is what keeps the products sharp: without it the error would exceed the distances."""
    pool, others = draw(300, 64, 11, 1000.0), draw(50, 64, 12, 1000.0)
    frame = Frame(pool)
    nearest = to_the_nearest(pool, others)
    bounds = frame.bound(place(frame, pool), place(frame, others))
    np.testing.assert_allclose(bounds, nearest, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e4, 1e16, 1e19, 1e30])
def test_far_rows_blur_only_what_they_take_part_in(scale):
    """Also where the products of far rows overflow float32 and those of the others do not."""
    pool, others = draw(300, 64, 21), draw(200, 64, 22)
    frame = Frame(pool)
    pool[::50] *= np.float32(scale)
    others[::40] *= np.float32(scale)
    near = np.setdiff1d(np.arange(300), np.arange(300)[::50])
    nearest = to_the_nearest(pool, others)
    bounds = frame.bound(place(frame, pool), place(frame, others))
    assert (bounds >= nearest).all()
    np.testing.assert_allclose(bounds[near], nearest[near], rtol=1e-3)
    for start in (bounds, anywhere(300)):
        lowered = start.copy()
        frame.lower(lowered, place(frame, pool), place(frame, others))
        assert np.array_equal(lowered, nearest)
    if scale == 1e4:
        assert frame.lower(bounds, place(frame, pool), place(frame, others)) < 2 * len(pool)


def test_differences_decide_where_products_cannot():
    """Two tight and distant clusters: the distances drown in what the products round off."""
    pool, others = (draw(300, 64, seed) * np.float32(1e-3) for seed in (23, 24))
    pool[150:] += np.float32(3)
    others[150:] += np.float32(3)
    frame = Frame(pool)
    lowered = anywhere(300)
    measured = frame.lower(lowered, place(frame, pool), place(frame, others))
    assert np.array_equal(lowered, to_the_nearest(pool, others))
    assert measured < 300 * 300 / 4


# --- work ---------------------------------------------------------------------------------------


def work(pool, budget, centres):
    """What a run reads, in passes of a plain one."""
    search = Frontier(pool, centres, budget, lambda: False)
    for _ in range(budget):
        found = search.farthest()
        assert found
        search.pick(found.row)
    return search.spent / (len(pool) * (pool.shape[1] + PER_ROW))


def test_most_of_the_pool_is_not_read():
    pool, centres = clustered(20_000, 128, 13), clustered(1000, 128, 14)
    assert work(pool, 200, centres) < 100


@pytest.mark.parametrize("width", [1, 2, 3])
def test_never_much_more_work_than_a_plain_pass(width):
    """In few dimensions every pick lowers its surroundings, and all surroundings are equally far."""
    pool, centres = draw(6000, width, 15), draw(3, width, 16)
    assert work(pool, 1500, centres) < 1.1 * 1500


@pytest.mark.parametrize(("rows", "apart", "blocks"), [(99_000, 0, 3 << 18), (6_000, 3_000, 1 << 20)])
def test_what_is_held_beside_the_input(rows, apart, blocks):
    """5 bytes a row and 3/4 MiB of blocks; benchmarks/RESULTS.md has the whole, the allocator's share included."""
    pool, centres = draw(rows, 512, 19), draw(1000, 512, 20)
    pool[::2] += np.float32(apart)
    centres[::2] += np.float32(apart)
    tracemalloc.start()
    try:
        k_center_greedy(pool, 50, centers=centres)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(pool) + blocks


@pytest.mark.parametrize("marks", [3, 4, 9])
def test_who_met_the_centres_need_not_meet_them_again(monkeypatch, marks):
    """Marks that run out forget picks that were met, and never all of them."""
    shrink(monkeypatch, CORE=2, LARGEST_CORE=8, FIRST_CENTRES=5, MARKS=marks, TOLERATED=1e9)
    search, entered = Frontier(draw(400, 12, 3), draw(60, 12, 4), 200, lambda: False), set()
    for _ in range(200):
        search.pick(search.farthest().row)
        entered |= set(search.core.tolist())
    search.reset()
    assert len(entered) > 200
    assert (search.mark[sorted(entered)] > 0).all()
    assert search.marks[1] == search.distinct.size


def test_rows_at_odd_addresses_are_read_where_they_lie():
    """As in a buffer with a header of 13 bytes: NumPy copies the whole of such an array where it can."""
    pool, centres = draw(9_000, 64, 19), draw(100, 64, 20)
    odd = np.frombuffer(b"x" * 13 + pool.tobytes(), np.uint8)[13:].view(np.float32).reshape(pool.shape)
    assert not odd.flags.aligned
    expected = k_center_greedy(pool, 50, centers=centres)
    tracemalloc.start()
    try:
        got = k_center_greedy(odd, 50, centers=centres)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(got.indices, expected.indices)
    assert peak < pool.nbytes // 2


def test_a_stop_is_asked_for_between_blocks():
    pool, centres = clustered(4000, 16, 17), clustered(900, 16, 18)
    asked, by_first_pick = [], []
    k_center_greedy(
        pool,
        1,
        centers=centres,
        should_stop=lambda: bool(asked.append(1)),
        on_progress=lambda done, _: by_first_pick.append(len(asked)) if done else None,
    )
    blocks = -(-len(pool) // frontier.BLOCK)
    assert by_first_pick[0] > 1 + blocks  # the first bounds, a block at a time, and then what the core has missed
    left = iter(range(2))
    got = k_center_greedy(pool, 9, centers=centres, should_stop=lambda: next(left, None) is None)
    assert not got.indices.size and got.radius is None


def test_a_stop_within_the_search_keeps_the_prefix():
    pool, centres = clustered(4000, 16, 17), clustered(900, 16, 18)
    whole = k_center_greedy(pool, 300, centers=centres)
    for asked in (1, 3, 5, 20, 200):
        left = iter(range(asked))
        got = k_center_greedy(pool, 300, centers=centres, should_stop=lambda left=left: next(left, None) is None)
        assert np.array_equal(got.indices, whole.indices[: len(got.indices)])
        assert np.array_equal(got.scores, whole.scores[: len(got.scores)])
        assert len(got.indices) < 300

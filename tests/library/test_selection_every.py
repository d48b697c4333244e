"""What holds for every strategy: repeats, threads, stopping, odd inputs."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from winnow.selection import PICKS, Constraints, NearDuplicates, requirements, select, strategies

RNG = np.random.default_rng(0)
POOL = np.maximum(RNG.normal(size=(150, 8)) + np.repeat(RNG.normal(size=(5, 8)) * 3, 30, axis=0), 0).astype(np.float32)
PROBABILITIES = RNG.dirichlet(np.ones(4), size=150).astype(np.float32)
CENTERS = POOL[::40] + np.float32(0.25)
LONG = [name for name in strategies() if requirements(name).takes_long]
NEW = [name for name in LONG if name != "k_center"]
EVERY = pytest.mark.parametrize("name", strategies())


def pick(name, budget=20, **given):
    return select(name, budget=budget, **({"pool": POOL, "probabilities": PROBABILITIES, "centers": CENTERS} | given))


def same(a, b):
    return (
        np.array_equal(a.indices, b.indices)
        and np.array_equal(a.scores, b.scores)
        and (a.radius, a.notes) == (b.radius, b.notes)
    )


@EVERY
def test_repeats_give_the_same_bits(name):
    assert same(pick(name, seed=4), pick(name, seed=4))


@pytest.mark.parametrize("name", [name for name in strategies() if "seed" in requirements(name).reads])
def test_the_seed_matters(name):
    given = {} if name in {"random", "badge", "prob_cover", "typiclust"} else {"centers": None}
    picks = {tuple(pick(name, seed=seed, **given).indices.tolist()) for seed in range(6)}
    assert len(picks) > 1


@EVERY
def test_picks_are_distinct_rows_with_finite_scores(name):
    got = pick(name, 150)
    assert sorted(got.indices.tolist()) == list(range(150))
    assert (got.indices.dtype, got.scores.dtype) == (np.int64, np.float32)
    assert np.isfinite(got.scores).all()


@EVERY
def test_memmaps_layouts_and_precisions_change_nothing(name, tmp_path):
    expected = pick(name)
    np.save(tmp_path / "pool.npy", POOL)
    stored = np.load(tmp_path / "pool.npy", mmap_mode="r")
    frozen = POOL.copy()
    frozen.flags.writeable = False
    for pool in (stored, np.asfortranarray(POOL), np.repeat(POOL, 2, axis=1)[:, ::2], POOL.astype(np.float64), frozen):
        assert same(pick(name, pool=pool), expected)
    half = POOL.astype(np.float16)
    assert same(pick(name, pool=half), pick(name, pool=half.astype(np.float32)))


@pytest.mark.parametrize("name", LONG)
def test_progress_is_told_for_every_pick(name):
    done = []
    pick(name, 7, on_progress=lambda *step: done.append(step))
    assert done[-7:] == [(i, 7) for i in range(1, 8)]


@pytest.mark.parametrize("name", LONG)
def test_a_stopped_run_returns_the_valid_prefix(name):
    done = []
    whole = pick(name, 12)
    got = pick(name, 12, on_progress=lambda *step: done.append(step), should_stop=lambda: (5, 12) in done)
    assert np.array_equal(got.indices, whole.indices[:5])
    assert np.array_equal(got.scores, whole.scores[:5])


@pytest.mark.parametrize("name", LONG)
def test_a_run_that_is_not_wanted_picks_nothing(name):
    got = pick(name, should_stop=lambda: True)
    assert (got.indices.shape, got.scores.shape, got.indices.dtype) == ((0,), (0,), np.int64)


@EVERY
@pytest.mark.parametrize("with_centers", [True, False])
def test_equal_rows_are_picked_from_the_lowest_or_by_the_seed(name, with_centers):
    pool = np.ones((30, 3), np.float32)
    got = pick(name, 30, pool=pool, probabilities=PROBABILITIES[:30], centers=pool[:2] if with_centers else None)
    assert sorted(got.indices.tolist()) == list(range(30))


@EVERY
def test_one_row_and_one_feature(name):
    got = pick(name, 1, pool=POOL[:1], probabilities=PROBABILITIES[:1])
    assert got.indices.tolist() == [0]
    line = np.arange(9, dtype=np.float32)[:, None]
    assert len(set(pick(name, 5, pool=line, probabilities=PROBABILITIES[:9], centers=line[:2]).indices.tolist())) == 5


@EVERY
def test_centers_equal_to_the_pool(name):
    assert len(set(pick(name, 40, centers=POOL).indices.tolist())) == 40


def spoiled(value):
    bad = POOL.copy()
    bad[3, 1] = value
    return bad


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"pool": spoiled(np.nan)}, "pool: NaN or infinity in row 3"),
        ({"pool": spoiled(np.inf)}, "pool: NaN or infinity in row 3"),
        ({"pool": POOL.astype(np.int64)}, "pool: needs floating-point values, got dtype int64"),
        ({"pool": POOL[:, :0]}, "pool: has no columns"),
        ({"pool": POOL[0]}, "needs"),
        ({"pool": POOL[:0], "probabilities": PROBABILITIES[:0]}, "is empty"),
        ({"pool": POOL.astype(np.float64) * 1e300}, "pool as float32: NaN or infinity"),
        ({"budget": 151}, r"budget: needs 1 to 150 .* got 151"),
        ({"budget": 0}, "budget: needs 1 to 150"),
        ({"budget": 2.5}, "budget: needs an integer"),
        ({"n": 149}, "pool: needs a row for each of 149 candidates, got 150"),
    ],
)
def test_refuses(name, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        pick(name, **arguments)


@pytest.mark.parametrize("name", [name for name in strategies() if "centers" in requirements(name).reads])
def test_refuses_centers_of_another_width(name):
    with pytest.raises(ValueError, match="centers: rows have 7 features, those of pool have 8"):
        pick(name, centers=CENTERS[:, :7])
    with pytest.raises(ValueError, match="centers: NaN or infinity in row 1"):
        bad = CENTERS.copy()
        bad[1] = np.nan
        pick(name, centers=bad)


@pytest.mark.parametrize("name", [name for name in NEW if "seed" in requirements(name).reads])
def test_refuses_a_negative_seed(name):
    with pytest.raises(ValueError, match="seed: needs 0 or more, got -1"):
        pick(name, seed=-1)


AS_THEY_DID = {
    "entropy": "ff2f1a6b",
    "margin": "66c5503f",
    "least_confidence": "ff2f1a6b",
    "k_center": "f69af64b",
    "random": "c94dbd78",
    "typiclust": "d825e24e",
    "prob_cover": "05e90993",
    "badge": "7f7b8288",
    "uncertain_diverse": "6b7692df",
    "sas": "89548165",
}


@EVERY
def test_picks_come_out_as_they_did(name):
    """Where this fails the same input gives other picks than before: raise PICKS, and write the new digest there."""
    grid = (
        np.arange(150)[:, None] * np.array([7919, 104729, 1299709]) % np.array([101, 211, 307])
    )  # distances are exact
    shares = 1 + np.arange(600).reshape(150, 4) ** 2 % 89
    given = {
        "pool": grid.astype(np.float32),
        "probabilities": (shares / shares.sum(1, keepdims=True)).astype(np.float32),
    }
    limits = {"constraints": Constraints(np.arange(150) % 7, cap=3, pinned=[5], minimum_distance=3.0)}
    seen = hashlib.sha256()
    for more in ({}, limits, {"near_duplicates": NearDuplicates(12.0, "l2")}):
        seen.update(pick(name, 12, seed=3, centers=None, **given, **more).indices.tobytes())
    assert (PICKS, seen.hexdigest()[:8]) == (1, AS_THEY_DID[name])


# --- threads ------------------------------------------------------------------------------------

DIGEST = """
import hashlib, sys, faiss, numpy as np
from winnow.selection import Constraints, NearDuplicates, select, strategies
rng = np.random.default_rng(0)
pool = np.maximum(rng.normal(size=(2500, 96)) + np.repeat(rng.normal(size=(10, 96)), 250, axis=0), 0) + 100
pool = pool.astype(np.float32)
pool[2000:] = pool[:500]
centers = np.maximum(rng.normal(size=(300, 96)), 0).astype(np.float32) + 100
probabilities = rng.dirichlet(np.ones(9), 2500).astype(np.float32)
assert faiss.omp_get_max_threads() == int(sys.argv[1])
limits = dict(constraints=Constraints(np.arange(2500) % 20, cap=9, minimum_distance=1.0),
              near_duplicates=NearDuplicates(0.5, "l2"))
for name in strategies():
    for more in ({}, limits):
        got = select(name, budget=80, pool=pool, centers=centers, probabilities=probabilities, **more)
        print(name, hashlib.sha256(got.indices.tobytes() + got.scores.tobytes() + str(got).encode()).hexdigest())
"""


def digests(threads):
    environment = os.environ | {f"{kind}_NUM_THREADS": str(threads) for kind in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, "-c", DIGEST, str(threads)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_same_bits_for_any_number_of_threads():
    one, two, three = (digests(threads) for threads in (1, 2, 3))
    assert one == two == three
    assert len(one) == 2 * len(strategies())
    assert len(one[0].split()[1]) == 2 * hashlib.sha256().digest_size

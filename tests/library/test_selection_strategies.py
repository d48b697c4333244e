"""Random picks, the strategies by name, and what importing the package brings in."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from winnow.domain import Arm
from winnow.selection import (
    Selection,
    k_center_greedy,
    most_uncertain,
    prob_cover,
    random_choice,
    requirements,
    select,
    strategies,
)

RNG = np.random.default_rng(0)
POOL = RNG.normal(size=(40, 5)).astype(np.float32)
CENTERS = RNG.normal(size=(3, 5)).astype(np.float32)
PROBABILITIES = RNG.dirichlet(np.ones(4), size=40).astype(np.float32)


def same(a, b):
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.scores, b.scores) and a.radius == b.radius


def test_random_picks_are_distinct_and_repeat_with_the_seed():
    got = random_choice(50, 20, seed=7)
    assert len(set(got.indices.tolist())) == 20
    assert got.indices.min() >= 0 and got.indices.max() < 50
    assert (got.indices.dtype, got.scores.dtype, got.radius) == (np.int64, np.float32, None)
    assert same(got, random_choice(50, 20, seed=7))
    assert not same(got, random_choice(50, 20, seed=8))
    assert sorted(random_choice(6, 6).indices.tolist()) == list(range(6))


def test_random_picks_of_a_smaller_budget_come_first_in_a_larger_one():
    assert np.array_equal(random_choice(50, 5, seed=1).indices, random_choice(50, 30, seed=1).indices[:5])


def test_every_candidate_is_as_likely():
    counts = np.zeros(8)
    for seed in range(2000):
        counts[random_choice(8, 2, seed=seed).indices] += 1
    assert np.abs(counts - 500).max() < 100  # five standard deviations


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"n": 0}, "n: is empty"),
        ({"n": -3}, "n: is empty"),
        ({"n": 4.0}, "n: needs an integer"),
        ({"budget": 0}, "budget: needs 1 to 4"),
        ({"budget": 5}, r"budget: needs 1 to 4 .* got 5"),
        ({"seed": -1}, "seed: needs 0 or more"),
    ],
)
def test_random_refuses(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        random_choice(**({"n": 4, "budget": 2} | arguments))


def test_every_arm_that_picks_is_a_strategy():
    assert set(strategies()) >= {str(arm) for arm in Arm} - {Arm.FULL}


def test_the_documentation_tells_of_every_strategy():
    text = (Path(__file__).parents[2] / "docs/selection.md").read_text()
    for name in strategies():
        needs = requirements(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        required, read = (set(cell.replace("`", "").replace(",", " ").split()) for cell in row.split("|")[2:4])
        assert (required - {"-"}, read - {"-"}) == (set(needs.requires), set(needs.reads)), name


@pytest.mark.parametrize("name", strategies())
def test_a_strategy_looks_at_nothing_but_what_it_says(name):
    needs = requirements(name)
    given = {"pool": POOL, "probabilities": PROBABILITIES, "centers": CENTERS, "n": 40, "seed": 1, "direction": "low"}
    said = {*needs.requires, *needs.reads}
    expected = select(name, budget=6, **{key: value for key, value in given.items() if key in said})
    spoiled = {"pool": POOL * np.nan, "probabilities": -PROBABILITIES, "centers": CENTERS[:, :2]}
    others = {key: spoiled.get(key, value) for key, value in given.items() if key not in said}
    assert same(select(name, budget=6, **others, **{k: v for k, v in given.items() if k in said}), expected)


@pytest.mark.parametrize("name", strategies())
def test_a_missing_input_is_named(name):
    given = {"pool": POOL, "probabilities": PROBABILITIES}
    for missing in requirements(name).requires:
        with pytest.raises(ValueError, match=f"{missing}: strategy {name} needs it"):
            select(name, budget=2, **{key: value for key, value in given.items() if key != missing})


def test_arrays_that_a_strategy_requires_must_agree():
    with pytest.raises(ValueError, match="probabilities: needs a row for each of pool's 40"):
        select("badge", budget=2, pool=POOL, probabilities=PROBABILITIES[:39])


def test_the_classes_of_the_proxy_are_those_of_prob_cover():
    got = select("prob_cover", pool=POOL, probabilities=PROBABILITIES, budget=6, seed=2)
    assert same(got, prob_cover(POOL, 6, classes=4, seed=2))


@pytest.mark.parametrize("name", strategies())
def test_every_strategy_can_be_asked_for_by_name(name):
    done = []
    got = select(
        name,
        budget=6,
        pool=POOL,
        probabilities=PROBABILITIES,
        seed=3,
        on_progress=lambda *step: done.append(step),
        should_stop=lambda: False,
    )
    assert got.indices.shape == got.scores.shape == (6,)
    assert done[-1] == (6, 6)


def test_select_passes_on_what_a_strategy_takes():
    expected = k_center_greedy(POOL, 6, centers=CENTERS)
    assert same(select("k_center", pool=POOL, centers=CENTERS, budget=6), expected)
    expected = most_uncertain(PROBABILITIES, 6, measure="margin", direction="low")
    assert same(select("margin", probabilities=PROBABILITIES, budget=6, direction="low"), expected)
    expected = random_choice(40, 6, seed=9)
    for candidates in ({"n": 40}, {"pool": POOL}, {"probabilities": PROBABILITIES}):
        assert same(select("random", budget=6, seed=9, **candidates), expected)
    assert len(select("k_center", pool=POOL, budget=6, should_stop=lambda: True).indices) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"strategy": "full"},
            "strategy: needs one of entropy, margin, .*, badge, uncertain_diverse, sas, got 'full'",
        ),
        ({"strategy": "k_center"}, "pool: strategy k_center needs it"),
        ({"strategy": "margin", "pool": POOL}, "probabilities: strategy margin needs it"),
        ({"strategy": "random"}, "n: strategy random needs it"),
        ({"strategy": "random", "n": 0}, "n: is empty"),
        ({"strategy": "entropy", "probabilities": PROBABILITIES, "direction": "up"}, "direction: needs one of"),
    ],
)
def test_select_refuses(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        select(**({"budget": 1} | arguments))


def test_a_selection_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_choice(3, 1).radius = 1.0
    assert [field.name for field in dataclasses.fields(Selection)] == ["indices", "scores", "radius", "notes"]


def test_importing_needs_no_torch_no_web_framework_and_no_database():
    lines = "import sys, winnow.selection; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True).stdout
    loaded = set(out.split())
    assert {"numpy", "faiss"} <= loaded
    assert not loaded & {"torch", "torchvision", "fastapi", "sqlalchemy", "celery", "pydantic", "sklearn"}

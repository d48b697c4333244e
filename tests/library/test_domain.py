"""Specs refuse what does not fit; seeds are independent and stable; the transition table is closed."""

import math
from enum import StrEnum

import pytest
from pydantic import ValidationError

from winnow import domain
from winnow.domain import Arm, ExperimentSpec, ExperimentStatus, RoundStatus, derive_seed, expand, require_transition
from winnow.errors import WrongState
from winnow.selection import strategies

PAPER = {"name": "nct", "dataset": "nct", "positive_class": "TUM"}


def test_the_defaults_are_the_papers() -> None:
    spec = ExperimentSpec.model_validate(PAPER)
    assert (spec.budget, spec.rounds, spec.candidates) == (1000, 20, 10_000)
    assert (spec.encoder.name, spec.encoder.head) == ("resnet18", (128, 128, 128))
    assert (spec.simclr.epochs, spec.simclr.batch_size, spec.simclr.temperature) == (100, 128, 0.1)
    assert (spec.simclr.learning_rate, spec.simclr.betas) == (1e-4, (0.9, 0.999))
    assert (spec.proxy.epochs, spec.proxy.learning_rate, spec.proxy.full_epochs) == (40, 1e-3, 200)


def test_a_file_expands_to_arms_times_seeds_over_its_preset() -> None:
    specs = expand({**PAPER, "preset": "authors-code", "arms": ["entropy", "full"], "seeds": [0, 1], "budget": 50})
    assert [spec.name for spec in specs] == ["nct-entropy-0", "nct-entropy-1", "nct-full-0", "nct-full-1"]
    assert {spec.simclr.schedule for spec in specs} == {"cosine"}
    assert {spec.encoder.head for spec in specs} == {(512, 128)}
    assert {spec.budget for spec in specs} == {50}


def test_a_value_in_the_file_beats_the_preset() -> None:
    (spec,) = expand({**PAPER, "preset": "authors-code", "simclr": {"schedule": "constant"}})
    assert spec.simclr.schedule == "constant" and spec.simclr.drop_last


@pytest.mark.parametrize(
    ("lists", "names"),
    [
        ({}, ["nct"]),
        ({"arms": ["random", "full"]}, ["nct-random", "nct-full"]),
        ({"seeds": [4, 5]}, ["nct-4", "nct-5"]),
        ({"arms": ["margin"], "seeds": [4]}, ["nct-margin-4"]),
    ],
)
def test_names_say_what_differs(lists: dict[str, object], names: list[str]) -> None:
    assert [spec.name for spec in expand({**PAPER, **lists})] == names


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seeds": 3}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, None]}, "seeds.1"),
        ({"arms": "entropy"}, "arms"),
        ({"arms": ["entropy", "best"]}, "arms.1"),
        ({"preset": ["paper"]}, "preset"),
        ({"preset": "mine"}, "preset"),
        ({"preset": None}, "preset"),
        ({"preset": "authors-code", "simclr": None}, "simclr"),
        ({"preset": "authors-code", "simclr": 5}, "simclr"),
        ({"preset": "authors-code", "encoder": "resnet18"}, "encoder"),
        ({"name": None}, "name"),
        ({"arm": None}, "arm"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_key(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        expand({**PAPER, **change})
    assert ".".join(str(part) for part in caught.value.errors()[0]["loc"]) == field


def test_a_file_needs_a_name() -> None:
    with pytest.raises(ValidationError, match="name"):
        expand({"dataset": "nct", "positive_class": "TUM"})


def test_every_preset_may_be_named() -> None:
    for preset in domain.PRESETS:
        assert expand({**PAPER, "preset": preset})


def test_the_full_arm_is_cut_into_rounds_that_cover_its_epochs() -> None:
    spec = ExperimentSpec.model_validate({**PAPER, "arm": "full", "simclr": {"epochs": 25}, "full_evaluate_every": 10})
    assert [spec.epochs_of(n) for n in range(spec.total_rounds)] == [10, 10, 5]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"budget": 0}, "budget"),
        ({"bugdet": 5}, "bugdet"),
        ({"candidates": 10, "budget": 20}, "candidates"),
        ({"positive_class": None}, "positive_class"),
        ({"views": {"crop_scale": [0.9, 0.1]}}, "crop_scale"),
        ({"simclr": {"temperature": 0}}, "temperature"),
        ({"encoder": {"name": "vgg"}}, "name"),
        ({"name": "../x"}, "name"),
        ({"seed": -1}, "seed"),
        ({"visits": 1}, "visits"),
        ({"budget": 10**30, "candidates": "all"}, "budget"),
        ({"simclr": {"batch_size": 1}}, "batch_size"),
        ({"simclr": {"chunk": 1}}, "chunk"),
        ({"encoder": {"head": [0]}}, "head"),
        ({"encoder": {"head": [128, -5]}}, "head"),
        ({"simclr": {"betas": [1.5, 0.9]}}, "betas"),
        ({"simclr": {"betas": [0.9, 1]}}, "betas"),
        ({"simclr": {"learning_rate": math.inf}}, "learning_rate"),
        ({"simclr": {"learning_rate": "1e999"}}, "learning_rate"),
        ({"simclr": {"weight_decay": math.inf}}, "weight_decay"),
        ({"simclr": {"temperature": 1e-300}}, "temperature"),
        ({"proxy": {"learning_rate": math.nan}}, "learning_rate"),
        ({"views": {"brightness": math.inf}}, "brightness"),
        ({"views": {"contrast": 1e39}}, "contrast"),
        ({"views": {"blur_sigma": [0.1, 1e308]}}, "blur_sigma"),
        ({"views": {"crop_scale": [0.1, 1.5]}}, "crop_scale"),
        ({"views": {"crop_ratio": [0.5, math.inf]}}, "crop_ratio"),
        ({"fit_evaluator_on": "validation", "evaluate_on": "validation"}, "evaluate_on"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ExperimentSpec.model_validate({**PAPER, **change})


def test_seeds_differ_by_purpose_and_round_and_repeat() -> None:
    drawn = {derive_seed(s, p, n) for s in range(5) for p in ("views", "order") for n in range(5)}
    assert len(drawn) == 50
    assert derive_seed(3, "views", 2) == 1076275830391431689
    assert all(0 <= seed < 2**63 for seed in drawn)


@pytest.mark.parametrize("states", domain.TRANSITIONS.values(), ids=lambda s: type(next(iter(s))).__name__)
def test_the_table_names_every_state_and_leads_nowhere_else(states: dict[StrEnum, tuple[StrEnum, ...]]) -> None:
    kind = type(next(iter(states)))
    assert set(states) == set(kind)
    assert all(type(target) is kind for targets in states.values() for target in targets)


def test_a_forbidden_transition_says_what_is_allowed() -> None:
    require_transition("round", "r", RoundStatus.QUEUED, RoundStatus.TRAINING)
    with pytest.raises(WrongState) as caught:
        require_transition("experiment", "e", ExperimentStatus.PAUSED, ExperimentStatus.COMPLETED)
    assert caught.value.allowed == ["running", "cancelling"]


def test_every_strategy_is_an_arm() -> None:
    assert {arm.value for arm in Arm} == {*strategies(), "full"}

"""Rates as functions of progress; LARS against a slow oracle written from its paper."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from winnow.domain import ExperimentSpec, SimclrSpec
from winnow.simclr.optimisers import Lars, learning_rate, make_optimiser


class Counted(TorchDispatchMode):
    """Counts the operations within it."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_the_rate_is_a_pure_function_of_progress() -> None:
    cosine = SimclrSpec(schedule="cosine", learning_rate=1e-4, learning_rate_end=1e-5)
    assert learning_rate(cosine, 0, 100) == pytest.approx(1e-4)
    assert learning_rate(cosine, 50, 100) == pytest.approx(5.5e-5)
    assert learning_rate(cosine, 100, 100) == pytest.approx(1e-5)
    assert learning_rate(SimclrSpec(), 77, 100) == 1e-4


def test_a_warm_up_grows_from_nothing_to_the_schedules_rate() -> None:
    settings = SimclrSpec(learning_rate=1.0, warmup_epochs=2)
    rates = [learning_rate(settings, step / 4, 10, 1 / 4) for step in range(12)]
    assert rates[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert rates[8:] == [1.0] * 4


def spec(arm: str, **simclr: object) -> ExperimentSpec:
    body = {"name": "e", "dataset": "d", "arm": arm, "positive_class": "a", "rounds": 3, "full_evaluate_every": 4}
    return ExperimentSpec.model_validate({**body, "simclr": {"epochs": 10, "schedule": "cosine", **simclr}})


def test_a_schedule_spans_a_round_or_the_run_and_always_the_run_of_full() -> None:
    assert [spec("random").schedule_span(n) for n in range(3)] == [(0, 10)] * 3
    assert [spec("random", schedule_over="run").schedule_span(n) for n in range(3)] == [(0, 30), (10, 30), (20, 30)]
    full = spec("full", reset_optimizer=True)
    assert [full.schedule_span(n) for n in range(full.total_rounds)] == [(0, 10), (4, 10), (8, 10)]
    assert not full.resets_optimizer and spec("random", reset_optimizer=True).resets_optimizer


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_every_optimiser_lowers_a_simple_loss(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 1, bias=False)
    settings = SimclrSpec.model_validate({"optimizer": name, "learning_rate": 20.0 if name == "lars" else 0.05})
    optimiser = make_optimiser(settings, layer.parameters())
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(40):
        loss = ((layer(x) - y) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_lars_equals_a_slow_oracle() -> None:
    torch.manual_seed(1)
    weight, bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))
    optimiser = Lars([weight, bias], lr=0.7, momentum=0.9, weight_decay=0.01, trust=0.02)
    w, v = weight.detach().double().numpy().copy(), np.zeros((3, 2))
    b, u = bias.detach().double().numpy().copy(), np.zeros(3)
    for step in range(5):
        slope, drift = torch.randn(3, 2), torch.randn(3)
        weight.grad, bias.grad = slope.clone(), drift.clone()
        optimiser.step()
        g = slope.double().numpy()
        norm, steep = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        local = 0.02 * norm / (steep + 0.01 * norm)
        v = 0.9 * v + 0.7 * local * (g + 0.01 * w)
        w = w - v
        u = 0.9 * u + 0.7 * drift.double().numpy()  # a bias is neither decayed nor adapted
        b = b - u
        assert np.allclose(weight.detach().numpy(), w, atol=1e-5), step
        assert np.allclose(bias.detach().numpy(), b, atol=1e-5), step


def test_lars_leaves_a_weight_of_zeros_its_plain_rate() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    Lars([weight], lr=0.5, momentum=0.0, weight_decay=0.1).step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5))


def test_lars_moves_many_weights_in_as_many_operations_as_a_few() -> None:
    """On a GPU each is a launch, or one for each weight where rates are tensors."""

    def operations(layers: int) -> int:
        network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
        optimiser = make_optimiser(SimclrSpec(optimizer="lars"), network.parameters())
        for weight in network.parameters():
            weight.grad = torch.ones_like(weight)
        optimiser.step()
        with Counted() as counted:
            optimiser.step()
        return counted.operations

    assert operations(40) == operations(2)

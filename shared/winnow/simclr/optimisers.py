"""Optimisers by name, and the learning rate as a pure function of how far training is."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from winnow.domain import SimclrSpec


def make_optimiser(settings: SimclrSpec, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Adam (the paper's), AdamW, SGD with momentum or LARS; torch's own are fused where the device allows."""
    rate, decay = settings.learning_rate, settings.weight_decay
    held = list(parameters)
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(held, lr=rate, betas=settings.betas, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(held, lr=rate, betas=settings.betas, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(held, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=True)
        case "lars":
            return Lars(held, lr=rate, momentum=settings.momentum, weight_decay=decay)


def learning_rate(settings: SimclrSpec, done: float, total: float, tick: float = 0.0) -> float:
    """The rate when `done` of `total` epochs are made, `tick` epochs before the next look.

    A linear warm-up over `warmup_epochs` multiplies whatever the schedule says. Resuming needs no scheduler state.
    """
    warm = min(1.0, (done + tick) / settings.warmup_epochs) if settings.warmup_epochs else 1.0
    if settings.schedule == "constant":
        return settings.learning_rate * warm
    share = (1 + math.cos(math.pi * min(done / total, 1.0))) / 2
    return (settings.learning_rate_end + (settings.learning_rate - settings.learning_rate_end) * share) * warm


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You et al. 2017, Algorithm 1), as SimCLR trains large batches.

    v ← m v + λ (g + β w) with λ = lr · η |w| / (|g| + β |w|); w ← w - v. Biases and normalisation weights (one
    dimension) are neither decayed nor adapted, as SimCLR's own code has it.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update. Takes no closure."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        rate: float | Tensor = group["lr"]
        if weight.ndim > 1:
            size, slope = weight.norm(), gradient.norm() + group["weight_decay"] * weight.norm()
            adapted = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, torch.ones_like(size))
            rate = rate * adapted
            gradient = gradient + group["weight_decay"] * weight
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        velocity.mul_(group["momentum"]).add_(gradient * rate)
        weight.sub_(velocity)

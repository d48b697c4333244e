"""Optimisers by name, and the learning rate as a pure function of how far training is."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter

from winnow.domain import SimclrSpec

_aten = torch.ops.aten  # its operations on lists are what torch's own optimisers are made of


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

    Weights take an operation together where they can, as torch's own optimisers do: on a GPU a launch each adds up.
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
            moved: list[Parameter] = [one for one in group["params"] if one.grad is not None]
            for adapts in (True, False):
                if weights := [one for one in moved if (one.ndim > 1) == adapts]:
                    self._move(weights, group, adapts=adapts)

    def _move(self, weights: list[Parameter], group: dict[str, Any], *, adapts: bool) -> None:
        gradients = [one.grad for one in weights if one.grad is not None]
        for one in weights:
            if not self.state[one]:
                self.state[one]["momentum_buffer"] = torch.zeros_like(one)
        velocities = [self.state[one]["momentum_buffer"] for one in weights]
        _aten._foreach_mul_.Scalar(velocities, group["momentum"])
        if adapts:
            decay = group["weight_decay"]
            sizes, slopes = (torch.stack(_aten._foreach_norm.Scalar(each)) for each in (weights, gradients))
            slopes = slopes + decay * sizes
            trusted = torch.where((sizes > 0) & (slopes > 0), group["trust"] * sizes / slopes, torch.ones_like(sizes))
            rates = group["lr"] * trusted  # λ
            _aten._foreach_addcmul_.Scalar(velocities, gradients, rates.unbind())
            _aten._foreach_addcmul_.Scalar(velocities, weights, (decay * rates).unbind())
        else:
            _aten._foreach_add_.List(velocities, gradients, alpha=group["lr"])
        _aten._foreach_sub_.List(weights, velocities)

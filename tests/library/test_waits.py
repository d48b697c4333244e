"""What a step asks of a GPU it asks without waiting for it: seen without one, on tensors with a device and no data.

A GPU itself is asked by tests/gpu. Gradients are not made here: torch's engine wants a real device for them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from winnow.domain import SimclrSpec, ViewsSpec
from winnow.simclr.convolutions import Conv2d
from winnow.simclr.loss import nt_xent
from winnow.simclr.optimisers import make_optimiser
from winnow.simclr.step import Step
from winnow.simclr.team import SharedBatchNorm, Team
from winnow.simclr.views import Views, normalise

SIZE, IMAGES = 32, 6


class Crossings(TorchDispatchMode):
    """Collects the operations that take a tensor from one side and give one on the other, or a number."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sides = {one.device.type for one in tree_leaves((args, kwargs, made)) if isinstance(one, Tensor)}
        if len(sides) > 1 or func is torch.ops.aten._local_scalar_dense.default:
            self.seen.append(str(func))
        return made


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def test_a_copy_from_the_host_is_seen() -> None:
    with FakeTensorMode(), Crossings() as crossings:
        torch.tensor([1.0, 2.0], device="cuda")
    assert crossings.seen


def test_views_network_and_loss_take_nothing_from_the_host() -> None:
    settings, views = SimclrSpec(batch_size=IMAGES, precision="fp32"), Views(ViewsSpec(), SIZE, 0)
    with FakeTensorMode():
        network = nn.Sequential(
            Conv2d(3, 8, 3, device="cuda"),
            nn.BatchNorm2d(8, device="cuda"),
            SharedBatchNorm(nn.BatchNorm2d(8, device="cuda"), Team()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4, device="cuda"),
        )
        step = Step(network, views, settings, Team(), compiled=False, note=lambda _: None)
        x, samples = on_gpu(IMAGES, SIZE, SIZE, 3, dtype=torch.uint8), on_gpu(IMAGES, dtype=torch.int64)
        keys = on_gpu(2, dtype=torch.int64)
        with Crossings() as crossings:
            loss = nt_xent(*step._project(x, samples, keys, IMAGES), 0.1)
            normalise(x)
    assert loss.device.type == "cuda" and loss.shape == ()
    assert not crossings.seen


def test_lars_takes_nothing_from_the_host() -> None:
    with FakeTensorMode():
        weights = [nn.Parameter(on_gpu(4, 3)), nn.Parameter(on_gpu(4))]
        optimiser = make_optimiser(SimclrSpec(optimizer="lars", weight_decay=1e-4), weights)
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        with Crossings() as crossings:
            optimiser.step()
    assert not crossings.seen

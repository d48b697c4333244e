"""Max pooling and its gradient, as torch.compile gets them, against torch's own."""

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

from winnow.simclr.pooling import MaxPool2d


def pooled(x: Tensor, slope: Tensor, *, compiled: bool) -> tuple[Tensor, Tensor]:
    """The pooled map, and the gradient at x of what has `slope` there."""
    x = x.clone().requires_grad_()
    torch._dynamo.reset()
    pool = torch.compile(MaxPool2d(), dynamic=False, fullgraph=True) if compiled else MaxPool2d()
    y = pool(x)
    y.backward(slope)
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 9), (1, 2)], ids=str)
def test_pooling_is_torchs_and_so_is_its_gradient(size: tuple[int, int], dtype: torch.dtype, compiled: bool) -> None:
    """Of whole numbers, of which many are the same, and whose sums are without rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 3, (2, 5, *size), generator=generator).to(dtype, memory_format=torch.channels_last)
    expected = x.clone().requires_grad_()
    y = F.max_pool2d(expected, 3, stride=2, padding=1)
    slope = torch.randint(-8, 8, y.shape, generator=generator).to(dtype)
    y.backward(slope)
    found, gradient = pooled(x, slope, compiled=compiled)
    assert torch.equal(found, y) and found.dtype == dtype
    assert expected.grad is not None and torch.equal(gradient, expected.grad)


def test_what_is_not_a_number_stays_to_be_seen() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = torch.nan
    slope = torch.arange(16.0).view(1, 1, 4, 4)
    found, gradient = pooled(x, slope, compiled=True)
    assert torch.equal(found.isnan(), F.max_pool2d(x, 3, stride=2, padding=1).isnan())
    assert gradient[0, 0, 3, 4] == slope[0, 0, 1:3, 2].sum()

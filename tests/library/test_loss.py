"""NT-Xent against loops written from the paper's formula."""

import math

import pytest
import torch
from torch import Tensor

from winnow.simclr import nt_xent


def by_loops(z0: Tensor, z1: Tensor, tau: float) -> Tensor:
    """Mean of L^{i,j} over all 2N ordered positive pairs, as the paper prints it."""
    z = [*z0, *z1]
    count = len(z)

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) / (a.norm() * b.norm())

    losses: list[Tensor] = []
    for i in range(count):
        j = (i + count // 2) % count
        numerator = torch.exp(similarity(z[i], z[j]) / tau)
        denominator = sum(torch.exp(similarity(z[i], z[k]) / tau) for k in range(count) if k != i)
        losses.append(-torch.log(numerator / denominator))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_it_equals_the_papers_loops(n: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(n)
    z0, z1 = torch.randn(2, n, 5, generator=generator, dtype=torch.float64).unbind(0)
    expected = by_loops(z0, z1, tau).item()
    assert nt_xent(z0, z1, tau).item() == pytest.approx(expected, rel=1e-5)


def test_its_gradient_equals_the_loops_gradient() -> None:
    a, b = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    gradients: list[Tensor] = []
    for loss in (nt_xent, by_loops):
        z0, z1 = a.clone().requires_grad_(), b.clone().requires_grad_()
        gradients.append(torch.cat(torch.autograd.grad(loss(z0, z1, 0.2), [z0, z1])))
    assert torch.allclose(*gradients, atol=1e-5)


def test_orthogonal_pairs_have_the_analytic_value() -> None:
    """n pairs of identical, mutually orthogonal views: log(e^{1/tau} + 2(n - 1)) - 1/tau."""
    n, tau = 5, 0.5
    z = torch.eye(n)
    assert nt_xent(z, z, tau).item() == pytest.approx(math.log(math.exp(1 / tau) + 2 * (n - 1)) - 1 / tau, rel=1e-6)


def test_it_does_not_depend_on_scale_or_on_which_view_is_first() -> None:
    z0, z1 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    assert nt_xent(3 * z0, 0.1 * z1, 0.1).item() == pytest.approx(nt_xent(z0, z1, 0.1).item(), rel=1e-5)
    assert nt_xent(z1, z0, 0.1).item() == pytest.approx(nt_xent(z0, z1, 0.1).item(), rel=1e-6)


def test_half_precision_is_computed_in_float32() -> None:
    z0, z1 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).bfloat16().unbind(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z0, z1, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(nt_xent(z0.float(), z1.float(), 0.1).item())


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((3, 4), (4, 4)), ((3,), (3,))])
def test_what_cannot_be_contrasted_is_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        nt_xent(torch.ones(shapes[0]), torch.ones(shapes[1]), 0.1)

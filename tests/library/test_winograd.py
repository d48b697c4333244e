"""Winograd's convolutions against float64 ones: the values, both gradients, and what float32 loses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from winnow.simclr import products, winograd

Three = tuple[Tensor, Tensor, Tensor]
SIZES = [(1, 1), (2, 3), (3, 3), (4, 4), (5, 7), (6, 6), (8, 9), (12, 12), (14, 3), (24, 24)]


@pytest.fixture(autouse=True, params=[False, True], ids=["torch", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the products: both are tried, whatever suits this processor."""
    if request.param and not products.has_onednn():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(products, "by_onednn", lambda: request.param)


def drawn(count: int, made: int, taken: int, size: tuple[int, int], dtype: torch.dtype) -> Three:
    """Maps as they leave a ReLU, weights as a network starts with, and a gradient above."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, taken, *size, generator=generator, dtype=torch.float64).relu()
    weight = torch.randn(made, taken, 3, 3, generator=generator, dtype=torch.float64) * (2 / (9 * taken)) ** 0.5
    above = torch.randn(count, made, *size, generator=generator, dtype=torch.float64)
    x, weight, above = (one.to(dtype).contiguous(memory_format=torch.channels_last) for one in (x, weight, above))
    return x, weight, above


def by_winograd(x: Tensor, weight: Tensor, above: Tensor) -> Three:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return _results(winograd.convolve(x, weight), x, weight, above)


def directly(x: Tensor, weight: Tensor, above: Tensor) -> Three:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return _results(F.conv2d(x, weight, padding=1), x, weight, above)


def _results(y: Tensor, x: Tensor, weight: Tensor, above: Tensor) -> Three:
    y.backward(above)
    assert x.grad is not None and weight.grad is not None
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize(("count", "size"), [*((3, size) for size in SIZES), (winograd.AT_ONCE + 1, (9, 9))])
def test_it_is_the_convolution_and_its_gradients(count: int, size: tuple[int, int]) -> None:
    given = drawn(count, 5, 4, size, torch.float64)
    for found, wanted in zip(by_winograd(*given), directly(*given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(4, 3), (5, 7)])
def test_gradients_agree_with_differences(size: tuple[int, int]) -> None:
    x, weight, _ = drawn(2, 3, 2, size, torch.float64)
    assert torch.autograd.gradcheck(winograd.convolve, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("size", [(6, 6), (8, 9)])
@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_either_gradient_is_made_without_the_other(needed: tuple[bool, bool], size: tuple[int, int]) -> None:
    x, weight, above = drawn(2, 3, 2, size, torch.float64)
    _, of_x, of_weight = directly(x, weight, above)
    winograd.convolve(x.requires_grad_(needed[0]), weight.requires_grad_(needed[1])).backward(above)
    for one, wanted, is_needed in zip((x, weight), (of_x, of_weight), needed, strict=True):
        assert (one.grad is not None) == is_needed
        if one.grad is not None:
            torch.testing.assert_close(one.grad, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "side", "times"), [(128, 24, 13), (128, 12, 13), (128, 8, 5), (256, 6, 13), (256, 4, 5), (512, 3, 5)]
)
def test_float32_loses_a_few_times_what_a_direct_convolution_loses(channels: int, side: int, times: int) -> None:
    """More where tiles are of 6."""
    given = drawn(4, channels, channels, (side, side), torch.float32)
    exact = directly(*(one.double() for one in given))
    for found, plain, true in zip(by_winograd(*given), directly(*given), exact, strict=True):
        assert off(found, true) < (8e-6 if times > 5 else 4e-6)
        assert off(found, true) < times * max(off(plain, true), 6e-7 if times > 5 else 4e-7)


def off(found: Tensor, true: Tensor) -> float:
    """The root mean square of the error, by the spread of the values."""
    return ((found - true).square().mean().sqrt() / true.std()).item()


@pytest.mark.parametrize("side", [6, 12])
def test_the_same_bits_again(side: int) -> None:
    given = drawn(4, 128, 128, (side, side), torch.float32)
    once, again = by_winograd(*given), by_winograd(*(one.clone() for one in given))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("size", [(6, 6), (8, 9)])
def test_maps_that_lie_otherwise_in_memory_give_the_same(size: tuple[int, int]) -> None:
    x, weight, above = drawn(3, 5, 4, size, torch.float64)
    for found, wanted in zip(
        by_winograd(x.contiguous(), weight.contiguous(), above.contiguous()), by_winograd(x, weight, above), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 6), (8, 9)])
def test_no_maps_give_none(size: tuple[int, int]) -> None:
    x, weight, above = drawn(0, 3, 2, size, torch.float64)
    y, of_x, of_weight = by_winograd(x, weight, above)
    assert (y.shape, of_x.shape) == ((0, 3, *size), (0, 2, *size))
    assert torch.equal(of_weight, torch.zeros_like(weight))


def test_second_derivatives_are_refused() -> None:
    x, weight, above = drawn(2, 3, 2, (4, 4), torch.float64)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(winograd.convolve(x, weight), x, above.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("outputs", winograd.POINTS)
def test_a_tile_is_a_correlation(outputs: int) -> None:
    """y_i = Σ d_(i+k) g_k, whatever the tile is padded with."""
    generator = torch.Generator().manual_seed(3)
    inputs, taps = (torch.randn(count, generator=generator, dtype=torch.float64) for count in (outputs, 3))
    tile = winograd.Filter(outputs)
    (of_inputs,), (to_outputs,) = tile.along(outputs)
    values = (tile.of_kernel @ taps.numpy()) * (of_inputs @ inputs.numpy())
    wanted = F.pad(inputs, (1, 1)).unfold(0, 3, 1) @ taps
    np.testing.assert_allclose(to_outputs @ values, wanted.numpy(), rtol=0, atol=1e-12)


def test_products_are_counted_as_they_are_made() -> None:
    """A map of 9x9 has three tiles of 5 points a side, one of 6x6 a single tile of 8x8 points."""
    made, taken = 256, 128
    there = 9 * 15 * 9 + 15 * 9 * 15  # across nine rows, then down fifteen columns
    found = winograd.plan(9, 9, torch.float32).products(made, taken)
    assert found == 3 * 15 * 15 * made * taken + 2 * there * (made + taken)
    alone = winograd.plan(6, 6, torch.float32).products(made, taken)
    assert alone == 3 * 64 * made * taken + 2 * 64 * 36 * (made + taken)


@pytest.mark.parametrize(("length", "side"), [(1, 3), (3, 3), (4, 4), (5, 6), (6, 6), (8, 4), (9, 3), (12, 6), (14, 4)])
def test_tiles_are_of_the_side_that_takes_the_fewest_products(length: int, side: int) -> None:
    assert winograd._side(length) == side

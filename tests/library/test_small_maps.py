"""Products in place of convolutions: the same function and the same gradients, where they apply and nowhere else."""

import pytest
import torch
from torch import Tensor, nn

from winnow.simclr.small_maps import Conv2d, with_products

Shape = tuple[int, int]


def pair(kernel: Shape, stride: int, padding: Shape, channels: Shape = (5, 7)) -> tuple[nn.Conv2d, Conv2d]:
    torch.manual_seed(1)
    plain = nn.Conv2d(*channels, kernel, stride, padding, bias=False).double()
    made = Conv2d(*channels, kernel, stride, padding, bias=False).double()
    made.load_state_dict(plain.state_dict())
    return plain.to(memory_format=torch.channels_last), made.to(memory_format=torch.channels_last)


def is_product(y: Tensor) -> bool:
    return y.grad_fn is not None and "Product" in y.grad_fn.name()


SMALL = [
    ((2, 2), (3, 3), 1, (1, 1)),
    ((1, 1), (3, 3), 1, (1, 1)),
    ((1, 2), (3, 3), 1, (1, 1)),
    ((2, 2), (3, 3), 2, (1, 1)),
    ((3, 3), (5, 5), 1, (2, 2)),
    ((2, 3), (3, 5), 1, (1, 2)),
    ((3, 3), (3, 3), 1, (1, 1)),
    ((4, 4), (3, 3), 2, (1, 1)),
    ((1, 3), (3, 3), 1, (1, 1)),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), SMALL)
def test_it_is_the_convolution(size: Shape, kernel: Shape, stride: int, padding: Shape) -> None:
    plain, made = pair(kernel, stride, padding)
    x = torch.randn(4, 5, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [convolve(one) for convolve, one in zip((plain, made), inputs, strict=True)]
    assert is_product(outputs[1]) and not is_product(outputs[0])
    above = torch.randn_like(outputs[0])
    for y in outputs:
        y.backward(above)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(made.weight.grad, plain.weight.grad)
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)


def test_a_bias_is_added() -> None:
    torch.manual_seed(1)
    plain, made = (kind(3, 4, 3, padding=1).double() for kind in (nn.Conv2d, Conv2d))
    made.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(made(x), plain(x))
    made(x).square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(made.bias.grad, plain.bias.grad)


def test_gradients_agree_with_differences() -> None:
    _, made = pair((3, 3), 1, (1, 1), (2, 3))
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((4, 4), (3, 3), 1, (1, 1)), ((5, 5), (3, 3), 1, (0, 0)), ((2, 2), (1, 1), 1, (0, 0))],
)
def test_larger_maps_are_convolved(size: Shape, kernel: Shape, stride: int, padding: Shape) -> None:
    plain, made = pair(kernel, stride, padding)
    x = torch.randn(4, 5, *size, dtype=torch.float64)
    assert not is_product(made(x))
    assert torch.equal(made(x), plain(x))


def test_autocast_is_left_its_convolution() -> None:
    _, made = pair((3, 3), 1, (1, 1))
    made.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert made(torch.randn(2, 5, 2, 2)).dtype == torch.bfloat16


def test_a_network_keeps_its_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.ReLU()))
    before = dict(network.named_parameters())
    made = with_products(network)
    assert all(parameter is before[name] for name, parameter in made.named_parameters())
    assert [type(module) for module in made.modules()].count(Conv2d) == 2
    x = torch.randn(1, 3, 6, 6)
    assert made(x).shape == (1, 4, 4, 4)

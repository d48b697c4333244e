"""Other ways to convolve: the same function and the same gradients, where they apply and nowhere else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from winnow.simclr import products, small_maps, winograd
from winnow.simclr.convolutions import Conv2d, converted

Shape = tuple[int, int]


@pytest.fixture(autouse=True)
def products_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which way suits a map goes by the library: tests/library/test_products.py has the other."""
    monkeypatch.setattr(products, "by_onednn", lambda: False)


def pair(kernel: Shape, stride: int, padding: Shape, channels: Shape = (5, 7)) -> tuple[nn.Conv2d, Conv2d]:
    torch.manual_seed(1)
    plain = nn.Conv2d(*channels, kernel, stride, padding, bias=False).double()
    made = Conv2d(*channels, kernel, stride, padding, bias=False).double()
    made.load_state_dict(plain.state_dict())
    return plain.to(memory_format=torch.channels_last), made.to(memory_format=torch.channels_last)


def way(y: Tensor) -> str:
    """How it was made, before a bias was added."""
    made = y.grad_fn
    while made is not None and "Add" in made.name():
        made = made.next_functions[0][0]
    name = made.name() if made is not None else "nothing"
    return next((way for way in ("Products", "Winograd", "Convolution") if way in name), name)


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
    assert [way(y) for y in outputs] == ["Convolution", "Products"]
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
    assert way(made(x)) == "Convolution"
    assert torch.equal(made(x), plain(x))


def wide(channels: Shape = (128, 128), *, stride: int = 1, padding: int | str = 1, bias: bool = False) -> Conv2d:
    torch.manual_seed(1)
    return Conv2d(*channels, 3, stride, padding, bias=bias).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("made", "size", "taken"),
    [
        (wide(), (4, 4), "Winograd"),
        (wide(), (12, 12), "Winograd"),
        (wide(), (7, 8), "Winograd"),
        (wide((128, 256)), (4, 4), "Winograd"),
        (wide((256, 256), bias=True), (6, 6), "Winograd"),
        (wide((64, 128)), (4, 4), "Convolution"),
        (wide((128, 64)), (4, 4), "Convolution"),
        (wide(), (16, 16), "Winograd"),
        (wide(), (32, 32), "Winograd"),
        (wide(), (2, 15), "Convolution"),
        (wide((512, 512)), (3, 33), "Convolution"),
        (wide((512, 512)), (33, 3), "Convolution"),
        (wide(stride=2), (8, 8), "Convolution"),
        (wide(padding=0), (6, 6), "Convolution"),
        (wide(padding="same"), (4, 4), "Convolution"),
        (wide().double(), (4, 4), "Convolution"),
        (wide(), (3, 3), "Winograd"),
        (wide(), (2, 2), "Products"),
        (wide(stride=2), (4, 4), "Products"),
    ],
)
def test_each_map_is_convolved_in_the_way_that_suits_it(made: Conv2d, size: Shape, taken: str) -> None:
    count = winograd.LEAST_MAPS
    torch.manual_seed(2)
    x = torch.randn(count, made.in_channels, *size, dtype=made.weight.dtype).contiguous(
        memory_format=torch.channels_last
    )
    y = made(x)
    assert way(y) == taken
    plain = nn.functional.conv2d(x, made.weight, made.bias, made.stride, made.padding)
    torch.testing.assert_close(y, plain, rtol=0, atol=5e-5 if size in ((6, 6), (12, 12)) else 2e-5)


@pytest.mark.parametrize("size", [(2, 2), (6, 6)])
@pytest.mark.parametrize("special", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}])
def test_what_is_more_than_kernel_and_stride_is_torchs(special: dict[str, Any], size: Shape) -> None:
    torch.manual_seed(1)
    made = Conv2d(256, 256, 3, padding=1, **special)
    plain = nn.Conv2d(256, 256, 3, padding=1, **special)
    plain.load_state_dict(made.state_dict())
    x = torch.randn(winograd.LEAST_MAPS, 256, *(side + special.get("dilation", 1) for side in size))
    assert torch.equal(made(x), plain(x))


@pytest.mark.parametrize("size", [(2, 2), (6, 6)])
def test_a_lone_map_is_torchs(size: Shape) -> None:
    x = torch.randn(128, *size)
    assert torch.equal(wide()(x), nn.functional.conv2d(x, wide().weight, padding=1))


@pytest.mark.parametrize("size", [(2, 2), (6, 6)])
def test_another_device_is_left_its_convolution(size: Shape) -> None:
    y = wide().to("meta")(torch.empty(winograd.LEAST_MAPS, 128, *size, device="meta"))
    assert way(y) == "Convolution"


@pytest.mark.parametrize("size", [(2, 2), (6, 6)])
def test_autocast_is_left_its_convolution(size: Shape) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = wide()(torch.randn(winograd.LEAST_MAPS, 128, *size))
    assert y.dtype == torch.bfloat16
    assert way(y) == "Convolution"


@pytest.mark.parametrize("size", [(2, 2), (6, 6)])
def test_a_compiler_is_left_its_convolution(size: Shape) -> None:
    made, x = wide(), torch.randn(winograd.LEAST_MAPS, 128, *size)
    y = torch.compile(made, backend="eager", fullgraph=True)(x)
    assert torch.equal(y, nn.functional.conv2d(x, made.weight, padding=1))
    assert way(made(x)) != "Convolution"


def test_few_maps_are_convolved_directly() -> None:
    made, x = wide(), torch.randn(winograd.LEAST_MAPS, 128, 6, 6)
    assert [way(made(x)), way(made(x[1:]))] == ["Winograd", "Convolution"]


@pytest.mark.parametrize(("size", "channels"), [((2, 2), 3), ((6, 6), 128)])
def test_no_maps_give_none(size: Shape, channels: int) -> None:
    made = wide((channels, 128))
    x = torch.empty(0, channels, *size, requires_grad=True)
    y = made(x)
    y.sum().backward()
    assert y.shape == (0, 128, *size)
    assert torch.equal(made.weight.grad, torch.zeros_like(made.weight))


def test_a_window_that_lies_on_the_padding_alone_is_torchs() -> None:
    plain, made = pair((5, 1), 2, (2, 2))
    x = torch.randn(2, 5, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(made(x), plain(x))


@pytest.mark.parametrize(("sizes", "padding"), [((5, 1), (1, 0)), ((1, 1), (0, 0))])
def test_a_kernel_larger_than_the_padded_map_sees_nothing(sizes: Shape, padding: Shape) -> None:
    assert small_maps.windows(sizes, (3, 3), (1, 1), padding) is None
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        Conv2d(2, 3, 3, padding=padding)(torch.randn(1, 2, *sizes))


def test_a_network_keeps_its_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.ReLU()))
    before = dict(network.named_parameters())
    made = converted(network)
    assert all(parameter is before[name] for name, parameter in made.named_parameters())
    assert [type(module) for module in made.modules()].count(Conv2d) == 2
    x = torch.randn(1, 3, 6, 6)
    assert made(x).shape == (1, 4, 4, 4)


def test_a_network_keeps_what_its_convolutions_are() -> None:
    torch.manual_seed(1)
    plain = nn.Conv2d(4, 6, (3, 5), 2, (1, 2), dilation=(1, 2), groups=2, padding_mode="circular")
    x = torch.randn(2, 4, 12, 12)
    wanted = plain(x)
    assert torch.equal(converted(nn.Sequential(plain))(x), wanted)

"""Convolutions over small maps: on a processor, one matrix product for each output position.

Where a 3x3 kernel slides over a map of 2x2 or 3x3, most of its taps lie on the padding. A direct convolution multiplies
them all the same, and the processor's library has no good kernel for the weights' gradient there. A product for each
position multiplies what is inside. Residual networks end in such maps on patches of 32 to 96 pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOST_POSITIONS = 9
MOST_INSIDE = 0.8
"""Of all taps over all positions, the share inside the map above which a convolution is better."""


@dataclass(frozen=True)
class Window:
    """What one output position sees: the rows and columns of the map, and the kernel's that lie on them."""

    of_map: tuple[slice, slice]
    of_kernel: tuple[slice, slice]


class Conv2d(nn.Conv2d):
    """torch's, up to the order of summation; by products where that is better."""

    def forward(self, input: Tensor) -> Tensor:
        height, width = self._outputs(input)
        if height * width > MOST_POSITIONS or not self._is_plain(input):
            return super().forward(input)
        windows = self._windows(input, height, width)
        seen = sum((w.of_map[0].stop - w.of_map[0].start) * (w.of_map[1].stop - w.of_map[1].start) for w in windows)
        if seen > MOST_INSIDE * len(windows) * self.kernel_size[0] * self.kernel_size[1]:
            return super().forward(input)
        y: Tensor = _Products.apply(input, self.weight, windows, height)  # pyright: ignore[reportAssignmentType]  # untyped
        return y if self.bias is None else y + self.bias[:, None, None]

    def _is_plain(self, input: Tensor) -> bool:
        """Whether it is (n, c, h, w) on a processor, in the weights' own type, and nothing but kernel and stride."""
        is_bare = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        return is_bare and input.ndim == 4 and input.device.type == "cpu" and not torch.is_autocast_enabled("cpu")

    def _outputs(self, input: Tensor) -> list[int]:
        lengths = zip(input.shape[-2:], self.kernel_size, self.stride, self.padding, strict=True)
        return [(length + 2 * int(padding) - kernel) // stride + 1 for length, kernel, stride, padding in lengths]

    def _windows(self, input: Tensor, height: int, width: int) -> tuple[Window, ...]:
        rows = [self._slices(0, position, input.shape[2]) for position in range(height)]
        columns = [self._slices(1, position, input.shape[3]) for position in range(width)]
        return tuple(Window((y[0], x[0]), (y[1], x[1])) for y in rows for x in columns)

    def _slices(self, axis: int, position: int, length: int) -> tuple[slice, slice]:
        first = position * self.stride[axis] - int(self.padding[axis])  # where the kernel's first tap lies
        start, stop = max(first, 0), min(first + self.kernel_size[axis], length)
        return slice(start, stop), slice(start - first, stop - first)


class _Products(torch.autograd.Function):
    """x (n, c, h, w), weight (o, c, k, k) → (n, o, p, q); all lie in memory with the channels last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, windows: tuple[Window, ...], height: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.windows = windows
        y = x.new_empty(len(x), len(windows), len(weight))  # (n, p q, o)
        for position, window in enumerate(windows):
            torch.mm(_inside(x, window.of_map), _inside(weight, window.of_kernel).t(), out=y[:, position])
        return y.view(len(x), height, -1, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        above = gradients[0].permute(0, 2, 3, 1).reshape(len(x), -1, len(weight))  # (n, p q, o)
        of_x, of_weight = (
            torch.zeros_like(one, memory_format=torch.channels_last) if needed else None
            for one, needed in zip((x, weight), ctx.needs_input_grad[:2], strict=True)
        )
        for position, window in enumerate(ctx.windows):
            slope = above[:, position]  # (n, o)
            if of_x is not None:
                _add(of_x, window.of_map, slope @ _inside(weight, window.of_kernel))
            if of_weight is not None:
                _add(of_weight, window.of_kernel, slope.t() @ _inside(x, window.of_map))
        return of_x, of_weight, None, None


def _inside(maps: Tensor, part: tuple[slice, slice]) -> Tensor:
    """(n, c, h, w) → (n, h' w' c), of some rows and columns."""
    return maps.permute(0, 2, 3, 1)[:, part[0], part[1]].flatten(1)


def _add(maps: Tensor, part: tuple[slice, slice], rows: Tensor) -> None:
    """Add (n, h' w' c) to some rows and columns of (n, c, h, w)."""
    target = maps.permute(0, 2, 3, 1)[:, part[0], part[1]]
    target += rows.view(target.shape)


def with_products(network: nn.Module) -> nn.Module:
    """`network` with its convolutions replaced by `Conv2d`, parameters and all."""
    for name, child in network.named_children():
        if type(child) is nn.Conv2d:
            setattr(network, name, _converted(child))
        else:
            with_products(child)
    return network


def _converted(plain: nn.Conv2d) -> Conv2d:
    with torch.device("meta"):
        made = Conv2d(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]  # a tuple by now
            plain.stride,  # type: ignore[arg-type]
            plain.padding,  # type: ignore[arg-type]
            plain.dilation,  # type: ignore[arg-type]
            plain.groups,
            plain.bias is not None,
            plain.padding_mode,
        )
    made.weight, made.bias = plain.weight, plain.bias
    return made

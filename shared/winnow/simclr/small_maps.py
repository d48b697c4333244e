"""Convolutions over the smallest maps by one matrix product for each output position, on a processor.

Where a 3x3 kernel slides over a map of 2x2, most of its taps lie on the padding. A direct convolution multiplies them
all the same, and the processor's library has no good kernel for the weights' gradient there. A product for each
position multiplies what is inside. Residual networks come to such maps on patches of 32 to 96 pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from winnow.simclr import products

Pair = tuple[int, int]

MOST_POSITIONS = 9
MOST_INSIDE = 0.8
"""Of all taps over all positions, the share inside the map above which a convolution is better."""


@dataclass(frozen=True)
class Window:
    """What one output position sees: the rows and columns of the map, and the kernel's that lie on them."""

    of_map: tuple[slice, slice]
    of_kernel: tuple[slice, slice]

    @property
    def taps(self) -> int:
        rows, columns = self.of_map
        return (rows.stop - rows.start) * (columns.stop - columns.start)


Windows = tuple[tuple[Window, ...], ...]
"""Of each output position, row by row."""


def windows(sizes: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Windows | None:
    """What the output positions of a convolution over a map (h, w) see; None where products gain nothing."""
    starts = [
        range(-before, length + before - taps + 1, step)
        for length, taps, step, before in zip(sizes, kernel, stride, padding, strict=True)
    ]
    positions = len(starts[0]) * len(starts[1])
    if not 0 < positions <= MOST_POSITIONS:
        return None
    down, across = (
        [_seen(first, length, taps) for first in along]
        for along, length, taps in zip(starts, sizes, kernel, strict=True)
    )
    if not all(of_map.start < of_map.stop for of_map, _ in down + across):
        return None
    found = tuple(tuple(Window((y[0], x[0]), (y[1], x[1])) for x in across) for y in down)
    inside = sum(window.taps for row in found for window in row)
    return found if inside <= MOST_INSIDE * positions * kernel[0] * kernel[1] else None


def convolve(x: Tensor, weight: Tensor, seen: Windows) -> Tensor:
    """x (n, c, h, w), weight (o, c, k, k) → (n, o, p, q), the channels last in memory; `seen` are its `windows`."""
    return _Products.apply(x, weight, seen)  # type: ignore[no-any-return]


def _seen(first: int, length: int, taps: int) -> tuple[slice, slice]:
    """In one dimension, where the kernel's first tap lies at `first`: the map's positions, and the kernel's."""
    start, stop = max(first, 0), min(first + taps, length)
    return slice(start, stop), slice(start - first, stop - first)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, seen: Windows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.windows = [window for row in seen for window in row]
        y = x.new_empty(len(x), len(ctx.windows), len(weight))  # (n, p q, o)
        for position, window in enumerate(ctx.windows):
            products.multiply(_inside(x, window.of_map), _inside(weight, window.of_kernel).t(), out=y[:, position])
        return y.unflatten(1, (len(seen), -1)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        above = gradients[0].permute(0, 2, 3, 1).flatten(1, 2)  # (n, p q, o)
        of_x, of_weight = (
            torch.zeros_like(one, memory_format=torch.channels_last) if needed else None
            for one, needed in zip((x, weight), ctx.needs_input_grad[:2], strict=True)
        )
        for position, window in enumerate(ctx.windows):
            slope = above[:, position]  # (n, o)
            if of_x is not None:
                _add(of_x, window.of_map, products.multiply(slope, _inside(weight, window.of_kernel)))
            if of_weight is not None:
                _add(of_weight, window.of_kernel, products.multiply(slope.t(), _inside(x, window.of_map)))
        return of_x, of_weight, None


def _inside(maps: Tensor, part: tuple[slice, slice]) -> Tensor:
    """(n, c, h, w) → (n, h' w' c), of some rows and columns."""
    return maps.permute(0, 2, 3, 1)[:, part[0], part[1]].flatten(1)


def _add(maps: Tensor, part: tuple[slice, slice], rows: Tensor) -> None:
    """Add (n, h' w' c) to some rows and columns of (n, c, h, w)."""
    target = maps.permute(0, 2, 3, 1)[:, part[0], part[1]]
    target += rows.view(target.shape)

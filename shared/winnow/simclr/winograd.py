"""3x3 convolutions by Winograd's minimal filtering, on a processor (Lavin and Gray 2016, arXiv:1509.09308).

m outputs beside each other are a correlation of m + 2 inputs with 3 taps, and so the transpose of a product of two
polynomials, which is known by its values at m + 2 points: m + 2 products instead of 3 m. For a tile of m x m outputs
the saving is squared. The sums over channels are taken between the values, as matrix products, one for each point.
What leads to the values and back, a matrix for each row of tiles, costs little where channels are many.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from winnow.simclr import products

POINTS = {
    3: (0.0, 1.0, -1.0, 0.5),
    4: (0.0, 1.0, -1.0, 0.5, -2.0),
    6: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0),
}
"""By the side of a tile, where polynomials are known; infinity is the last. Of the choices of small fractions these
round the least (Barabasz et al. 2020, arXiv:1803.10986). The larger the tile, the more values differ in size and the
more float32 loses: up to 4 a few times what a direct convolution does, with 6 about ten times."""

LEAST_CHANNELS = 128
LEAST_BESIDE_ONEDNN = 256
"""The same where oneDNN makes the products: nothing but the saving itself speaks against its convolutions there."""

LEAST_MAPS = 32
"""For fewer maps, what is made of the kernel takes the time that is saved."""

LONGEST = 32
"""Positions along the side of a map; beyond, the matrices themselves are large."""

MOST_PRODUCTS = 0.5
"""Of a direct convolution's, gradients counted; above, moving the values takes the time that is saved."""


@dataclass(frozen=True)
class Band:
    """A row of t tiles with p points each: which positions of the map (h w) it reads and makes, and the matrices.

    of_maps: values from inputs (t p, inputs). to_outputs: outputs from values (outputs, t p).
    """

    inputs: slice
    outputs: slice
    of_maps: Tensor
    to_outputs: Tensor


@dataclass(frozen=True)
class Plan:
    """How to convolve maps of one size. of_kernel: values from the kernel (p, 9)."""

    of_kernel: Tensor
    bands: tuple[Band, ...]

    def products(self, made: int, taken: int) -> int:
        """Multiplications for one map of `taken` channels, `made` come out; forward, and for both gradients."""
        between = sum(3 * len(band.of_maps) for band in self.bands) * made * taken
        return between + sum(2 * (band.of_maps.numel() * taken + band.to_outputs.numel() * made) for band in self.bands)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether a 3x3 convolution of x (n, c, h, w) with stride 1 and padding 1 takes less time this way."""
    maps, _, height, width = x.shape
    made, taken = weight.shape[:2]
    least = LEAST_BESIDE_ONEDNN if products.by_onednn() else LEAST_CHANNELS
    is_wide, is_small = min(made, taken) >= least, max(height, width) <= LONGEST
    if x.dtype != torch.float32 or maps < LEAST_MAPS or not (is_wide and is_small):
        return False
    return plan(height, width, x.dtype).products(made, taken) <= MOST_PRODUCTS * 3 * 9 * height * width * made * taken


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, c, h, w), weight (o, c, 3, 3) → (n, o, h, w): stride 1, padding 1, the channels last in memory."""
    return _Winograd.apply(x, weight)  # type: ignore[no-any-return]


class _Winograd(torch.autograd.Function):
    """Values: of the kernel U (p, o, c); in each band, of the maps V (n, t p, c) and of the outputs M (n, t p, o).
    M = V Uᵀ at each point of each tile. Gradients take the transposed way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.plan, ctx.sizes, inputs = plan(x.shape[2], x.shape[3], x.dtype), x.shape[2:], _rows(x)
        u = (ctx.plan.of_kernel @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])
        v = [_each(band.of_maps, inputs[:, band.inputs]) for band in ctx.plan.bands]
        m = [_products(of_maps, u.transpose(1, 2)) for of_maps in v]
        ctx.save_for_backward(u, *v)
        y = [_each(band.to_outputs, of_outputs) for band, of_outputs in zip(ctx.plan.bands, m, strict=True)]
        return _maps(torch.cat(y, 1), ctx.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        u, *v = ctx.saved_tensors
        above = _rows(gradients[0])  # (n, h w, o)
        of_x = above.new_zeros(*above.shape[:2], u.shape[2]) if ctx.needs_input_grad[0] else None
        of_u = torch.zeros_like(u) if ctx.needs_input_grad[1] else None
        for band, of_maps in zip(ctx.plan.bands, v, strict=True):
            m = _each(band.to_outputs.t(), above[:, band.outputs])
            if of_x is not None:
                of_x[:, band.inputs] += _each(band.of_maps.t(), _products(m, u))
            if of_u is not None:
                _add_products(of_u, m, of_maps)
        of_weight = None
        if of_u is not None:
            of_weight = (ctx.plan.of_kernel.t() @ of_u.flatten(1)).view(3, 3, *u.shape[1:]).permute(2, 3, 0, 1)
        return None if of_x is None else _maps(of_x, ctx.sizes), of_weight


def _products(values: Tensor, kernels: Tensor) -> Tensor:
    """values (n, t p, a), kernels (p, a, b) → (n, t p, b), with n behind the points in memory."""
    made = values.new_empty(values.shape[1], len(values), kernels.shape[2])
    for of_tile, into in zip(_tiles(values, len(kernels)), made.split(len(kernels)), strict=True):
        products.multiply(of_tile, kernels, out=into)
    return made.transpose(0, 1)


def _add_products(sums: Tensor, m: Tensor, v: Tensor) -> None:
    """Add Mᵀ V at each point, over all maps and tiles, to `sums` (p, o, c)."""
    if products.by_onednn():
        pairs = zip(_tiles(m, len(sums)), _tiles(v, len(sums)), strict=True)
    else:
        pairs = [(_by_point(m, len(sums)), _by_point(v, len(sums)))]
    for of_outputs, of_maps in pairs:
        products.add(sums, of_outputs.transpose(1, 2), of_maps)


def _by_point(values: Tensor, points: int) -> Tensor:
    """(n, t p, a) → (p, n t, a)."""
    return values.unflatten(1, (-1, points)).flatten(0, 1).transpose(0, 1)


def _tiles(values: Tensor, points: int) -> tuple[Tensor, ...]:
    """(n, t p, a) → (p, n, a) of each tile."""
    return values.transpose(0, 1).split(points)


def _each(matrix: Tensor, maps: Tensor) -> Tensor:
    """matrix (a, b), maps (n, b, c) → (n, a, c); with n behind a in memory where products are by oneDNN."""
    made = maps.new_empty(len(matrix), len(maps), maps.shape[2]).transpose(0, 1) if products.by_onednn() else None
    return torch.bmm(matrix.expand(len(maps), -1, -1), maps, out=made)


def _rows(maps: Tensor) -> Tensor:
    """(n, c, h, w) → (n, h w, c)."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _maps(rows: Tensor, sizes: torch.Size) -> Tensor:
    """(n, h w, c) → (n, c, h, w)."""
    return rows.unflatten(1, sizes).permute(0, 3, 1, 2)


@cache
def plan(height: int, width: int, dtype: torch.dtype) -> Plan:
    """For maps (height, width). The rows of tiles are bands; within one, the matrices are those of the whole row."""
    down, across = Filter(_side(height)), Filter(_side(width))
    of_row, to_row = (np.stack(one) for one in zip(*across.along(width), strict=True))  # (t, p, w), (t, w, p)
    bands = []
    for first, (of_column, to_column) in zip(range(0, height, down.outputs), down.along(height), strict=True):
        read = range(max(first - 1, 0), min(first + down.outputs + 1, height))
        made = range(first, min(first + down.outputs, height))
        of_maps = np.einsum("yi,txj->tyxij", of_column[:, read], of_row).reshape(-1, len(read) * width)
        to_outputs = np.einsum("iy,tjx->ijtyx", to_column[made], to_row).reshape(len(made) * width, -1)
        inputs, outputs = (slice(rows.start * width, rows.stop * width) for rows in (read, made))
        bands.append(Band(inputs, outputs, torch.from_numpy(of_maps).to(dtype), torch.from_numpy(to_outputs).to(dtype)))
    return Plan(torch.from_numpy(np.kron(down.of_kernel, across.of_kernel)).to(dtype), tuple(bands))


def _side(length: int) -> int:
    """Outputs a tile, for the fewest products along so many."""
    return min(POINTS, key=lambda m: -(-length // m) * (m + 2))


class Filter:
    """F(m, 3): m outputs are Aᵀ ((G g) * (Bᵀ d)), d being m + 2 inputs and g 3 taps (Lavin and Gray, Eq. 6).

    G and A are the values of polynomials with 3 and m coefficients; B interpolates.
    """

    def __init__(self, outputs: int) -> None:
        self.outputs, self.points = outputs, outputs + 2
        self.of_kernel = self._values(3)  # G
        self._of_inputs = np.linalg.inv(self._values(self.points)).T  # Bᵀ
        self._to_outputs = self._values(outputs).T  # Aᵀ

    def _values(self, coefficients: int) -> NDArray[np.float64]:
        at_points = np.vander(np.array(POINTS[self.outputs]), coefficients, increasing=True)
        return np.vstack([at_points, np.eye(coefficients)[-1]])  # at infinity the highest coefficient is left

    def along(self, length: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Bᵀ (p, length) and Aᵀ (length, p) of each tile along a line, beyond whose ends zeros lie."""
        for first in range(0, length, self.outputs):
            of_inputs, to_outputs = (np.zeros((length + self.points, self.points)) for _ in range(2))
            of_inputs[first : first + self.points] = self._of_inputs.T
            to_outputs[first : first + self.outputs] = self._to_outputs
            yield of_inputs[1 : length + 1].T, to_outputs[:length]

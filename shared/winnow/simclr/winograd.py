"""3x3 convolutions by Winograd's minimal filtering, on a processor (Lavin and Gray 2016, arXiv:1509.09308).

m outputs beside each other are a correlation of m + 2 inputs with 3 taps, and so the transpose of a product of two
polynomials, which is known by its values at m + 2 points: m + 2 products instead of 3 m. For a tile of m x m outputs
the saving is squared. The sums over channels are taken between the values, as matrix products, one for each point.
What leads to the values and back, a matrix across the rows of a map and one down its columns, costs little where
channels are many.
"""

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

SIDES = range(3, 33)
"""Positions along a side of a map: of fewer, most of a tile is padding; what more gain was not measured."""

AT_ONCE = 32
"""Maps on their way back from the values: what lies between stays in the last cache, of all but the largest."""

MOST_PRODUCTS = 0.5
"""Of a direct convolution's, gradients counted; above, moving the values takes the time that is saved."""


@dataclass(frozen=True)
class Lines:
    """A matrix down the columns of a map and one across its rows, (to, from). Without the first, a map is one row."""

    down: Tensor | None
    across: Tensor

    @property
    def transposed(self) -> "Lines":
        return Lines(None if self.down is None else self.down.t(), self.across.t())


@dataclass(frozen=True)
class Plan:
    """How to convolve maps of one size (h, w): t tiles of p points down, s tiles of q points across.

    of_kernel: values from the kernel (p q, 9). of_maps: values from inputs, (p t, h) down and (s q, w) across.
    to_outputs: outputs from values, (h, p t) and (w, s q). A map within one tile is taken as a row of all its h w
    positions: one matrix does both ways, and is small.
    """

    taken_as: tuple[int, int]
    points: tuple[int, int]
    of_kernel: Tensor
    of_maps: Lines
    to_outputs: Lines

    def products(self, made: int, taken: int) -> int:
        """Multiplications for one map of `taken` channels, `made` come out; forward, and for both gradients."""
        down, across = self.of_maps.down, self.of_maps.across
        moving = across.numel() if down is None else down.shape[1] * across.numel() + down.numel() * len(across)
        values = len(across) * (1 if down is None else len(down))
        return 3 * values * made * taken + 2 * moving * (made + taken)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether a 3x3 convolution of x (n, c, h, w) with stride 1 and padding 1 takes less time this way."""
    maps, _, height, width = x.shape
    made, taken = weight.shape[:2]
    least = LEAST_BESIDE_ONEDNN if products.by_onednn() else LEAST_CHANNELS
    is_wide, is_small = min(made, taken) >= least, height in SIDES and width in SIDES
    if x.dtype != torch.float32 or maps < LEAST_MAPS or not (is_wide and is_small):
        return False
    return plan(height, width, x.dtype).products(made, taken) <= MOST_PRODUCTS * 3 * 9 * height * width * made * taken


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, c, h, w), weight (o, c, 3, 3) → (n, o, h, w): stride 1, padding 1, the channels last in memory."""
    return _Winograd.apply(x, weight)  # type: ignore[no-any-return]


class _Winograd(torch.autograd.Function):
    """Values: of the kernel U (o, p, q, c), of the maps V (p, t, n, s, q, c) and of the outputs M (p, t, n, s, q, o).
    M = V Uᵀ at each point of each tile. Gradients take the transposed way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.plan, ctx.sizes = plan(x.shape[2], x.shape[3], x.dtype), x.shape[2:]
        u = _each(ctx.plan.of_kernel, weight.permute(0, 2, 3, 1).flatten(1, 2)).unflatten(1, ctx.plan.points)
        v = _spread(ctx.plan, ctx.plan.of_maps, x)
        ctx.save_for_backward(u, v)
        return _gathered(ctx.plan.to_outputs, _products(v, u.permute(1, 2, 3, 0)), ctx.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (u, v), of_x, of_weight = ctx.saved_tensors, None, None
        m = _spread(ctx.plan, ctx.plan.to_outputs.transposed, gradients[0])
        if ctx.needs_input_grad[0]:
            of_x = _gathered(ctx.plan.of_maps.transposed, _products(m, u.permute(1, 2, 0, 3)), ctx.sizes)
        if ctx.needs_input_grad[1]:
            of_u = u.new_empty(*ctx.plan.points, len(u), u.shape[3])  # (p, q, o, c)
            for of_outputs, of_maps, into in zip(_by_point(m), _by_point(v), of_u, strict=True):
                products.multiply(of_outputs.transpose(1, 2), of_maps, out=into)
            of_weight = _each(ctx.plan.of_kernel.t(), of_u.flatten(0, 1).transpose(0, 1))
            of_weight = of_weight.unflatten(1, (3, 3)).permute(0, 3, 1, 2)
        return of_x, of_weight


def _spread(way: Plan, by: Lines, maps: Tensor) -> Tensor:
    """maps (n, c, h, w) → values (p, t, n, s, q, c)."""
    (count, channels), (p, q) = maps.shape[:2], way.points
    maps = maps.permute(0, 2, 3, 1).reshape(count, *way.taken_as, channels)
    if by.down is None:  # oneDNN multiplies what lies without gaps: there n is behind the points in memory
        made = maps.new_empty(q, count, channels).transpose(0, 1) if products.by_onednn() else None
        return _each(by.across, maps[:, 0], out=made).view(1, 1, count, 1, q, channels)
    rows = maps.new_empty(maps.shape[1], count, len(by.across), channels)
    for row, into in zip(maps.unbind(1), rows, strict=True):
        _each(by.across, row, out=into)
    return (by.down @ rows.flatten(1)).view(p, len(by.down) // p, count, len(by.across) // q, q, channels)


def _gathered(by: Lines, values: Tensor, sizes: torch.Size) -> Tensor:
    """values (p, t, n, s, q, c) → (n, c, h, w)."""
    count, channels = values.shape[2], values.shape[5]
    values = values.flatten(0, 1).flatten(2, 3)  # (p t, n, s q, c)
    if by.down is None:
        return _each(by.across, values[0]).view(count, *sizes, channels).permute(0, 3, 1, 2)
    maps = values.new_empty(count, *sizes, channels)
    for some, of_some in zip(values.split(AT_ONCE, 1), maps.split(AT_ONCE), strict=True):
        rows, into = _each(by.down, some.flatten(2).transpose(0, 1)), of_some.flatten(0, 1)
        _each(by.across, rows.view(len(into), by.across.shape[1], channels), out=into)
    return maps.permute(0, 3, 1, 2)


def _products(values: Tensor, kernels: Tensor) -> Tensor:
    """values (p, t, n, s, q, a), kernels (p, q, a, b) → (p, t, n, s, q, b), with n behind the points of a lone tile."""
    p, t, n, s, q, _ = values.shape
    if t == s == 1:
        made = values.new_empty(p, q, t, n, s, kernels.shape[3]).permute(0, 2, 3, 4, 1, 5)
    else:
        made = values.new_empty(p, t, n, s, q, kernels.shape[3])
    for of_points, kernel, into in zip(_by_point(values), kernels, _by_point(made), strict=True):
        products.multiply(of_points, kernel, out=into)
    return made


def _by_point(values: Tensor) -> Tensor:
    """(p, t, n, s, q, c) → (p, q, t n s, c)."""
    return values.flatten(1, 3).transpose(1, 2)


def _each(matrix: Tensor, maps: Tensor, *, out: Tensor | None = None) -> Tensor:
    """matrix (a, b), maps (n, b, c) → (n, a, c)."""
    return torch.bmm(matrix.expand(len(maps), -1, -1), maps, out=out)


@cache
def plan(height: int, width: int, dtype: torch.dtype) -> Plan:
    """For maps (height, width)."""
    column, row = Filter(_side(height)), Filter(_side(width))
    (of_column, to_column), (of_row, to_row) = column.along(height), row.along(width)
    of_kernel = np.kron(column.of_kernel, row.of_kernel)
    if len(of_column) == len(of_row) == 1:
        taken_as, points = (1, height * width), (1, len(of_kernel))
        down, across = (None, None), (np.kron(of_column[0], of_row[0]), np.kron(to_column[0], to_row[0]))
    else:
        taken_as, points = (height, width), (column.points, row.points)
        down = of_column.swapaxes(0, 1).reshape(-1, height), np.moveaxis(to_column, 0, 2).reshape(height, -1)
        across = of_row.reshape(-1, width), to_row.swapaxes(0, 1).reshape(width, -1)

    def tensor(matrix: NDArray[Any]) -> Tensor:
        return torch.from_numpy(matrix).to(dtype)

    of_maps, to_outputs = (
        Lines(None if one is None else tensor(one), tensor(other)) for one, other in zip(down, across, strict=True)
    )
    return Plan(taken_as, points, tensor(of_kernel), of_maps, to_outputs)


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

    def along(self, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bᵀ (t, p, length) and Aᵀ (t, length, p) of the tiles along a line, beyond whose ends zeros lie."""
        firsts = range(0, length, self.outputs)
        of_inputs, to_outputs = (np.zeros((len(firsts), length + self.points, self.points)) for _ in range(2))
        for tile, first in enumerate(firsts):
            of_inputs[tile, first : first + self.points] = self._of_inputs.T
            to_outputs[tile, first : first + self.outputs] = self._to_outputs
        return of_inputs[:, 1 : length + 1].swapaxes(1, 2), to_outputs[:, :length]

"""The max pooling of residual networks, but under torch.compile with a gradient of its own.

Inductor scatters the gradient by atomic additions to a float32 map with channels first, from which the rest of the step
reads it back; where numbers must repeat, it computes more indices for each value than there is to read. That map is the
largest of a step. Here a thread makes two values of it, from bfloat16 and bytes that lie side by side.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MaxPool2d(nn.Module):
    """torch's, with windows of 3x3 at every second place and a border of one: (n, c, H, W) → (n, c, ⌈H/2⌉, ⌈W/2⌉)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return _Pooled.apply(x)  # type: ignore[no-any-return]
        return F.max_pool2d(x, 3, stride=2, padding=1)


class _Pooled(torch.autograd.Function):
    """Window (r, s) has rows 2r - 1 to 2r + 1. Which of its nine cells (i, j) is the largest is kept as 4i + j."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2), value=float("-inf"))
        cells = [(i, j, padded[:, :, i : i + height : 2, j : j + width : 2]) for i in range(3) for j in range(3)]
        largest, which = cells[0][2], torch.zeros_like(cells[0][2], dtype=torch.int8)
        for i, j, cell in cells[1:]:
            is_larger = (cell > largest) | cell.isnan()
            largest = torch.where(is_larger, cell, largest)
            which = torch.where(is_larger, torch.full_like(which, 4 * i + j), which)
        ctx.save_for_backward(which)
        ctx.size = height, width
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Row 2r + p lies in window r as its cell p + 1, and, for p = 1, in window r + 1 as its cell 0: no other sum
        below is of a cell that a window has. Columns likewise.
        """
        (slope,), (which,) = gradients, ctx.saved_tensors
        height, width = ctx.size
        n, c, rows, columns = slope.shape
        slope, which = _with_one_more(slope, 0), _with_one_more(which, -1)
        p = torch.arange(2, dtype=torch.int8, device=slope.device).view(1, 1, 2, 1, 1)
        sides: list[Tensor] = []
        for q in (0, 1):
            total = slope.new_zeros(())
            for a, b in ((a, b) for a in (0, 1) for b in range(q + 1)):
                window = slice(None), slice(a, a + rows), slice(None), slice(b, b + columns)
                cell = 4 * (p + 1 - 2 * a) + (q + 1 - 2 * b)
                total = total + torch.where(which[window] == cell, slope[window], 0)
            sides.append(total)  # (n, rows, 2, columns, c)
        whole = torch.stack(sides, 4).reshape(n, 2 * rows, 2 * columns, c)
        return whole[:, :height, :width].permute(0, 3, 1, 2)


def _with_one_more(x: Tensor, value: int) -> Tensor:
    """(n, c, rows, columns) → (n, rows + 1, 1, columns + 1, c). Inductor lays what has four dimensions out anew."""
    return F.pad(x[:, :, None].permute(0, 3, 2, 4, 1), (0, 0, 0, 1, 0, 0, 0, 1), value=value)

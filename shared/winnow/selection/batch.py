"""The batch a strategy picks, and the checks that every strategy makes of what it is given."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Progress = Callable[[int, int], None]
"""Called with (picked so far, budget)."""
Stop = Callable[[], bool]
"""True once the caller no longer wants the rest."""


class Limits(Protocol):
    """Which rows a strategy may still pick, asked and told after every pick: caps, exclusions, distances to keep."""

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """(n,) the rows that may still be picked. A row that is False once stays so."""
        ...

    def take(self, row: int) -> None:
        """Count the pick of `row`, which was allowed; others may no longer be."""
        ...


BLOCK_VALUES = 1 << 20  # 4 MiB of float32: a block and its float64 copies stay near the cache
BLOCK_ROWS = 4096


@dataclass(frozen=True, eq=False, slots=True)
class Selection:
    """What was picked, in the order of picking.

    indices  int64 (b,), distinct row numbers of the candidates
    scores   float32 (b,), what the strategy ranked by; its own docstring says what they mean
    radius   k-center alone: the largest distance from a candidate left over to its nearest centre
    notes    what the caller should know: rows that a stage before the strategy removed, picks that were pinned
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    radius: float | None = None
    notes: tuple[str, ...] = ()


def row_blocks(rows: int, width: int, *, most: int = BLOCK_ROWS) -> Iterator[slice]:
    """Consecutive slices that cover `rows` rows of `width` values, each a block that fits in the cache."""
    step = max(1, min(most, BLOCK_VALUES // width))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def require_floats(name: str, array: npt.ArrayLike) -> Floats:
    """`array` as a finite floating-point (rows, columns) array; a memmap is read by blocks and not copied.

    Raises ValueError naming `name` for another dtype or number of dimensions, no columns, NaN or infinity.
    """
    values = require_matrix(name, array)
    require_finite(name, values)
    return values


def require_matrix(name: str, array: npt.ArrayLike) -> Floats:
    """`array` as a floating-point (rows, columns) array whose values nobody has looked at yet, else ValueError."""
    values = np.asarray(array)
    if values.ndim != 2:
        raise ValueError(f"{name}: needs 2 dimensions (rows, columns), got shape {values.shape}")
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name}: needs floating-point values, got dtype {values.dtype}")
    if values.shape[1] == 0:
        raise ValueError(f"{name}: has no columns, got shape {values.shape}")
    return values


def require_finite(name: str, values: Floats) -> None:
    """Raise ValueError that names the first row with NaN or infinity in it."""
    for rows in row_blocks(*values.shape):
        block = values[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(block.sum()):  # no sum is, with NaN or infinity in it
                continue
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise ValueError(f"{name}: NaN or infinity in row {rows.start + int(np.argmin(finite))}")


def require_budget(name: str, available: int, budget: int) -> int:
    """`budget` as an int in 1..available.

    Raises ValueError naming `name` when there is nothing to pick from, else naming the budget.
    """
    if available < 1:
        raise ValueError(f"{name}: is empty, there is nothing to pick from")
    picks = require_integer("budget", budget)
    if not 1 <= picks <= available:
        raise ValueError(f"budget: needs 1 to {available} (the candidates there are), got {picks}")
    return picks


def require_seed(seed: int) -> int:
    """`seed` as an int of 0 or more, else ValueError."""
    number = require_integer("seed", seed)
    if number < 0:
        raise ValueError(f"seed: needs 0 or more, got {number}")
    return number


def require_integer(name: str, value: int) -> int:
    """`value` as an int, else ValueError: 2.5 picks and True picks are both mistakes."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: needs an integer, got {value!r}") from None

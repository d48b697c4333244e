"""Near-duplicates of the pool, set aside before a strategy picks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, Stop, row_blocks
from winnow.selection.constraints import require_rows
from winnow.selection.neighbours import (
    TILE,
    Features,
    Mask,
    Origin,
    Positions,
    Squares,
    as_features,
    pairs_measured,
    pairs_within,
    possible_pairs,
    require_features,
)

AXES = 48  # principal axes in a sketch: most embeddings keep most of their variance in fewer
SAMPLE = 4096  # rows that the axes are fitted to
BLOCK = 1024  # rows looked at together
COSINE_ROUNDING = 1e-6  # unit rows are float32
LARGEST = float(np.finfo(np.float32).max)
DENSE = 1 / 64  # a larger share of pairs that a sketch leaves open is decided by a product of whole rows


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """When two candidates are near-duplicates of each other.

    threshold  for cosine: a cosine of at least this, above 0.5 up to 1 (told to 1e-6); for l2: a distance of at
               most this, 0 for exact copies
    """

    threshold: float
    metric: Literal["cosine", "l2"] = "cosine"

    @property
    def distance(self) -> float:
        """The largest distance between near-duplicates: of unit rows for cosine, |u - v|² = 2 - 2 cos."""
        if self.metric == "l2":
            return self.threshold
        return float(np.sqrt(max(0.0, 2 - 2 * self.threshold) + 2 * COSINE_ROUNDING))


def find_near_duplicates(
    pool: Floats,
    rule: NearDuplicates,
    *,
    pinned: Sequence[int] | npt.NDArray[Any] = (),
    should_stop: Stop | None = None,
) -> Mask | None:
    """(n,) True for the rows that a near-duplicate among the rows kept stands for.

    Rows are gone through from the lowest: each is kept unless it is a near-duplicate of one kept before. So no two
    rows kept are near-duplicates, and each row set aside has a kept one of a lower number within the threshold,
    whatever the chains between them. `pinned` rows go first and are always kept.

    Exact: pairs are told apart by a lower bound of their distance, from their coordinates along `AXES` principal
    axes and the lengths of what these leave; what the bound leaves open is measured in float64. Holds `AXES` + 1
    numbers for each row. None if `should_stop`, asked at every block, ended it.

    Raises ValueError that says which: pool, threshold, metric, pinned.
    """
    _require_rule(rule)
    search = _Search(require_features("pool", pool), rule)
    first = require_rows("pinned", pinned, len(pool))
    order = np.concatenate([first, np.setdiff1d(np.arange(len(pool)), first)])
    aside = np.zeros(len(pool), np.bool_)
    kept = np.empty(len(pool), np.int64)
    count = 0
    for start in range(0, len(order), BLOCK):
        if should_stop and should_stop():
            return None
        block = order[start : start + BLOCK]
        free = np.ones(len(block), np.bool_)
        step = TILE // BLOCK
        for left in range(0, count, step):
            rows, _ = search.pairs(block, kept[left : min(left + step, count)])
            free[rows] = False
        free[: max(0, len(first) - start)] = True
        _settle(free, *search.pairs(block, block), pinned=max(0, len(first) - start))
        aside[block[~free]] = True
        kept[count : count + free.sum()] = block[free]
        count += int(free.sum())
    return aside


def _settle(free: Mask, rows: Positions, columns: Positions, *, pinned: int) -> None:
    """Within a block: from the first row on, one still free sets its later near-duplicates aside."""
    later = (columns > rows) & (columns >= pinned)
    rows, columns = rows[later], columns[later]
    ends = np.searchsorted(rows, np.arange(len(free) + 1))
    for row in np.unique(rows):
        if free[row]:
            free[columns[ends[row] : ends[row + 1]]] = False


def _require_rule(rule: NearDuplicates) -> None:
    if rule.metric not in {"cosine", "l2"}:
        raise ValueError(f"metric: needs one of cosine, l2, got {rule.metric!r}")
    if rule.metric == "cosine" and not 0.5 < rule.threshold <= 1:
        raise ValueError(f"threshold: needs a cosine above 0.5 and at most 1, got {rule.threshold!r}")
    if not (np.isfinite(rule.threshold) and rule.threshold >= 0):
        raise ValueError(f"threshold: needs a finite distance of 0 or more, got {rule.threshold!r}")


class _Search:
    """Near-duplicates among any rows of a pool."""

    def __init__(self, pool: Features, rule: NearDuplicates) -> None:
        self._pool = pool
        self._is_cosine = rule.metric == "cosine"
        self._distance = rule.distance
        self._origin = Origin(pool) if not self._is_cosine else _Zero(pool)
        self._sketches = self._sketch(self._axes())
        self._flat = _Zero(self._sketches)

    def pairs(self, left: Positions, right: Positions) -> tuple[Positions, Positions]:
        """Places in `left` and `right` of the pairs of rows within the threshold, ordered by left, then right."""
        possible, _ = possible_pairs(self._sketches[left], self._sketches[right], self._distance, self._flat)
        rows, columns = np.nonzero(possible)
        if len(rows) > DENSE * possible.size:
            return pairs_within(self._rows(left), self._rows(right), self._distance, self._origin)
        near = self._measured(left[rows], right[columns]) <= self._distance**2
        return rows[near], columns[near]

    def _measured(self, left: Positions, right: Positions) -> Squares:
        squares = np.empty(len(left))
        for part in row_blocks(len(left), self._pool.shape[1]):
            each = np.arange(part.stop - part.start)
            squares[part] = pairs_measured(self._rows(left[part]), self._rows(right[part]), each, each)
        return squares

    def _rows(self, rows: Positions | slice) -> Features:
        """Rows of the pool, of length 1 for cosine; zeros stay zeros."""
        block = as_features(self._pool[rows])
        if not self._is_cosine:
            return block
        lengths = np.sqrt(np.square(block, dtype=np.float64).sum(axis=1))
        return (block / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)

    def _axes(self) -> Squares:
        """Orthonormal directions (d, k) of the largest variance in a spread of rows."""
        some = np.unique(np.linspace(0, len(self._pool) - 1, SAMPLE).astype(np.int64))
        rows = self._rows(some).astype(np.float64)
        rows -= rows.mean(axis=0)
        scale = max(float(np.abs(rows).max()), 1e-300)  # squares of float32 stay within float64, but not their sums
        _, vectors = np.linalg.eigh((rows / scale).T @ (rows / scale))
        return vectors[:, ::-1][:, :AXES]

    def _sketch(self, axes: Squares) -> Features:
        """Coordinates along the axes, and the length of the rest, (n, k + 1).

        |x - y|² >= |Px - Py|² + (|x - Px| - |y - Py|)²: the distance of two sketches is none larger.
        """
        sketches = np.empty((len(self._pool), axes.shape[1] + 1), np.float32)
        for rows in row_blocks(*self._pool.shape):
            block = self._rows(rows).astype(np.float64) - self._origin.mean
            inside = block @ axes
            sketches[rows, :-1] = np.clip(inside, -LARGEST, LARGEST)  # no two get farther apart
            sketches[rows, -1] = np.minimum(np.sqrt(np.square(block - inside @ axes.T).sum(axis=1)), LARGEST)
        return sketches


class _Zero(Origin):
    """No shift: the rows are about the origin already."""

    def __init__(self, pool: Features) -> None:
        self.mean = np.zeros(pool.shape[1], np.float32)

"""What tells one batch from another: what they share, what they leave uncovered, how much they repeat themselves.

All distances are L2, the same for every strategy, whatever it picked by. Memory beyond the pool is a block of it.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, Stop

Features = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]
NEIGHBOURS = 4
"""Of a float32 estimate; the nearest of these is then measured in float64, so that its rounding decides nothing."""
_ROWS = 4096


def count_shared(batches: Sequence[Positions]) -> list[list[int]]:
    """(s, s) how many picks each two batches have in common; a batch and itself: its length."""
    sets = [set(batch.tolist()) for batch in batches]
    shared = [len(one & other) for one, other in product(sets, repeat=2)]
    return _square(shared, len(sets))


def jaccard(batches: Sequence[Positions]) -> list[list[float]]:
    """(s, s) picks in common as a share of the union of two batches (Jaccard 1912); 1 for two empty ones."""
    sets = [set(batch.tolist()) for batch in batches]
    shares = [
        len(one & other) / max(1, len(one | other)) if one or other else 1.0 for one, other in product(sets, sets)
    ]
    return _square(shares, len(sets))


def largest_left(pool: Floats, picks: Positions, centers: Floats | None = None, stop: Stop | None = None) -> float:
    """The radius of a batch: the largest distance of a candidate left over to its nearest pick or centre.

    Args:
        pool: (n, d). picks: (b,) rows of it. centers: (m, d) or None. stop: once true, what was found so far is given.

    0.0 where nothing is left over; infinity where there is neither a pick nor a centre.
    """
    is_left = np.ones(len(pool), np.bool_)
    is_left[picks] = False
    known = pool[picks] if centers is None else np.concatenate([pool[picks], centers])
    rest = np.flatnonzero(is_left)
    if not len(rest) or not len(known):
        return float("inf") if len(rest) else 0.0
    targets, mean = _centred(known)
    largest = 0.0
    for start in range(0, len(rest), _ROWS):
        if stop is not None and stop():
            break
        block = np.asarray(pool[rest[start : start + _ROWS]], np.float32) - mean
        largest = max(largest, float(_nearest(block, targets, 0).max()))
    return float(np.sqrt(largest))


def mean_nearest(pool: Floats, picks: Positions) -> float | None:
    """The redundancy of a batch: the mean distance of a pick to its nearest other pick; small where picks repeat.

    None for fewer than two picks, which have no other.
    """
    if len(picks) < 2:
        return None
    targets, _ = _centred(pool[picks])
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        total += float(np.sqrt(_nearest(targets[start : start + _ROWS], targets, 1, start)).sum())
    return total / len(picks)


def mix(labels: Sequence[str], picks: Positions) -> dict[str, int]:
    """Picks of each label, the most frequent first."""
    counts: Counter[str] = Counter(labels[int(row)] for row in picks)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _centred(rows: Floats) -> tuple[Features, Features]:
    """The rows about their mean, without which ||x||² + ||y||² - 2xy loses the digits that count."""
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.ascontiguousarray(rows, np.float32) - mean, mean


def _nearest(block: Features, targets: Features, others: int, start: int = 0) -> npt.NDArray[np.float64]:
    """(k,) squared distance of each row of `block` (k, d) to the nearest of `targets` (m, d), itself left out.

    `others` is 1 where `block` are the rows of `targets` from `start` on, and 0 where they are not among them.
    """
    asked = min(NEIGHBOURS + others, len(targets))
    _, found = faiss.knn(block, targets, asked)
    nearest = np.full(len(block), np.inf)
    itself = np.arange(start, start + len(block)) if others else np.full(len(block), -1)
    for column in found.T:
        squares = np.square(np.subtract(block, targets[column], dtype=np.float64)).sum(axis=1)
        nearest = np.where(column == itself, nearest, np.minimum(nearest, squares))
    return nearest


def _square(values: list[Any], side: int) -> list[list[Any]]:
    return [values[start : start + side] for start in range(0, side * side, side)]

"""Uncertainty sampling: the candidates whose class the proxy is least, or most, sure of.

A float32 estimate tells for nearly every row that it is not among the picks; the rows that its rounding error leaves
in doubt are measured in float64. What is picked therefore never depends on the estimate.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, Selection, require_budget, require_matrix

Measure = Literal["entropy", "margin", "least_confidence"]
Direction = Literal["high", "low"]
Sorted = npt.NDArray[np.float64]
"""Probabilities (n, c), each row ascending."""
Estimates = npt.NDArray[np.float32]

SUM_TOLERANCE = 1e-2  # float16 softmax is this far from 1 over many classes; logits are much farther
BLOCK_VALUES = 1 << 17  # 512 KiB of float32: a block stays in the cache from check to estimate
ROUNDING = 2.0**-23  # twice the unit roundoff of float32
TINY = np.finfo(np.float32).tiny
FEWEST = 1 << 14  # rows in doubt that are not worth looking through again


def entropy(rows: Sorted) -> npt.NDArray[np.float64]:
    """H = -sum_j p_j log p_j in nats, (n,); Eq. 3 of Reasat & Smith with the sign it lacks. 0 log 0 is 0."""
    logs = np.log(np.where(rows > 0, rows, 1.0))
    return -(rows * logs).sum(axis=1) + 0.0  # + 0.0 makes a certain row's -0.0 a plain 0.0


def margin(rows: Sorted) -> npt.NDArray[np.float64]:
    """1 - (p_1 - p_2), (n,): 1 where the two likeliest classes tie."""
    return 1.0 - (rows[:, -1] - rows[:, -2])


def least_confidence(rows: Sorted) -> npt.NDArray[np.float64]:
    """1 - p_1, (n,): what the likeliest class leaves to the others."""
    return 1.0 - rows[:, -1]


_MEASURES: dict[str, Callable[[Sorted], npt.NDArray[np.float64]]] = {
    "entropy": entropy,
    "margin": margin,
    "least_confidence": least_confidence,
}


def most_uncertain(
    probabilities: Floats, budget: int, *, measure: Measure = "entropy", direction: Direction = "high"
) -> Selection:
    """Pick the `budget` rows that `measure` finds most uncertain, most uncertain first.

    probabilities  (n, c), c >= 2, rows sum to 1; a binary proxy gives [1 - p, p]
    measure        entropy, margin or least_confidence; all are oriented so that more is more uncertain
    direction      high, or low for the most certain ones, most certain first

    Scores are the measure's values, ranked in float64 before they are rounded to float32. Ties go to the lowest
    index. The order of the classes makes no difference, to the last bit. `radius` is None.

    Raises ValueError that says which: probabilities (empty, NaN, shape, dtype, not probabilities), budget (not
    in 1..n), measure, direction.
    """
    values = _require_classes(probabilities)
    budget = require_budget("probabilities", len(values), budget)
    _require_choice("measure", measure, tuple(_MEASURES))
    _require_choice("direction", direction, get_args(Direction))
    sign = 1 if direction == "high" else -1
    doubtful = _Doubtful(budget, (values.shape[1] + 16) * ROUNDING)
    for rows in _blocks(*values.shape):
        with np.errstate(over="ignore"):
            block = values[rows].astype(np.float32, copy=False)
        _require_probabilities(values, rows, block)
        doubtful.meet(rows.start, sign * _ESTIMATES[measure](block))
    doubted = doubtful.rows()
    scores = np.concatenate(
        [_MEASURES[measure](_sorted(values[doubted[part]])) for part in _blocks(doubted.size, values.shape[1])]
    )
    order = np.argsort(-sign * scores, kind="stable")[:budget]
    return Selection(indices=doubted[order], scores=scores[order].astype(np.float32))


def _blocks(rows: int, classes: int) -> Iterator[slice]:
    step = max(1, BLOCK_VALUES // classes)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _sorted(values: Floats) -> Sorted:
    """A fixed order of summation, whatever that of the classes."""
    return np.minimum(np.sort(values.astype(np.float64), axis=1), 1.0)


def _estimate_entropy(block: Estimates) -> Estimates:
    """H (k,) in float32. Of c terms, each off by a few units roundoff of itself and of its p: by less than
    (c + 16) ROUNDING (H + 1) in all. 0 log 0 becomes nothing that float32 could add.
    """
    inside = np.clip(block, TINY, np.float32(1))  # (k, c)
    logs = np.log(inside)
    logs *= inside
    return -(logs @ np.ones(block.shape[1], np.float32))


def _estimate_margin(block: Estimates) -> Estimates:
    top = np.minimum(np.partition(block, block.shape[1] - 2, axis=1)[:, -2:], np.float32(1))  # (k, 2)
    return 1 - (top[:, 1] - top[:, 0])


def _estimate_least_confidence(block: Estimates) -> Estimates:
    return 1 - np.minimum(block.max(axis=1), np.float32(1))


_ESTIMATES: dict[str, Callable[[Estimates], Estimates]] = {
    "entropy": _estimate_entropy,
    "margin": _estimate_margin,
    "least_confidence": _estimate_least_confidence,
}


class _Doubtful:
    """The rows that may be among the `budget` highest, where a score s is off by slack (|s| + 1): met block by block.

    Once a `budget` of rows is known to reach some score, whatever stays below it for certain is forgotten: what is held
    follows the budget and the ties at its edge, not the number of rows.
    """

    def __init__(self, budget: int, slack: float) -> None:
        self._budget, self._slack = budget, slack
        self._rows: list[npt.NDArray[np.int64]] = []
        self._estimates: list[Estimates] = []
        self._least = np.float32(-np.inf)
        self._held = self._after_last = 0

    def meet(self, first: int, estimates: Estimates) -> None:
        """Look at the rows from `first` on."""
        near = np.flatnonzero(estimates >= self._least)
        if not near.size:
            return
        self._rows.append(first + near)
        self._estimates.append(estimates[near])
        self._held += near.size
        if self._held > 2 * max(self._after_last, self._budget, FEWEST):
            self._forget()

    def rows(self) -> npt.NDArray[np.int64]:
        """(k,) the rows, ascending."""
        self._forget()
        return self._rows[0]

    def _forget(self) -> None:
        rows = np.concatenate(self._rows)
        self._rows.clear()
        estimates = np.concatenate(self._estimates)
        self._estimates.clear()
        top = float(np.partition(estimates, len(estimates) - self._budget)[len(estimates) - self._budget])
        sure = top - self._slack * (abs(top) + 1)  # the truth of `budget` rows is at least this
        self._least = np.float32(sure - 2 * self._slack * (abs(sure) + 1))
        kept = estimates >= self._least
        if not kept.all():
            rows, estimates = rows[kept], estimates[kept]
        self._rows, self._estimates = [rows], [estimates]
        self._held = self._after_last = len(rows)


def _require_classes(probabilities: npt.ArrayLike) -> Floats:
    values = require_matrix("probabilities", probabilities)
    if values.shape[1] < 2:
        raise ValueError("probabilities: needs a column for each of 2 classes or more, got 1; pass [1 - p, p]")
    return values


def _require_probabilities(values: Floats, rows: slice, block: Estimates) -> None:
    """Look at the sums of `block`, which is `values[rows]` in float32; in doubt, at every value in float64."""
    sums = block @ np.ones(block.shape[1], np.float32)  # (k,)
    if block.min() >= 0 and np.abs(sums - 1).max() < 0.9 * SUM_TOLERANCE:
        return
    finite = np.isfinite(values[rows]).all(axis=1)
    if not finite.all():
        raise ValueError(f"probabilities: NaN or infinity in row {rows.start + int(np.argmin(finite))}")
    exact = values[rows].astype(np.float64)
    wrong = (exact < 0).any(axis=1) | (np.abs(exact.sum(axis=1) - 1) > SUM_TOLERANCE)
    if wrong.any():
        row = rows.start + int(np.argmax(wrong))
        raise ValueError(f"probabilities: row {row} is negative somewhere or does not sum to 1: {values[row]}")


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: needs one of {', '.join(allowed)}, got {value!r}")

"""Uncertainty sampling: the candidates whose class the proxy is least, or most, sure of."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, Selection, require_budget, require_floats

Measure = Literal["entropy", "margin", "least_confidence"]
Direction = Literal["high", "low"]
Sorted = npt.NDArray[np.float64]
"""Probabilities (n, c), each row ascending."""

SUM_TOLERANCE = 1e-2  # float16 softmax is this far from 1 over many classes; logits are much farther


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
    values = _require_probabilities(probabilities)
    budget = require_budget("probabilities", len(values), budget)
    _require_choice("measure", measure, tuple(_MEASURES))
    _require_choice("direction", direction, get_args(Direction))
    rows = np.sort(values.astype(np.float64), axis=1)  # a fixed order of summation, whatever that of the classes
    scores = _MEASURES[measure](np.minimum(rows, 1.0))
    order = np.argsort(-scores if direction == "high" else scores, kind="stable")[:budget]
    return Selection(indices=order.astype(np.int64), scores=scores[order].astype(np.float32))


def _require_probabilities(probabilities: npt.ArrayLike) -> Floats:
    values = require_floats("probabilities", probabilities)
    if values.shape[1] < 2:
        raise ValueError("probabilities: needs a column for each of 2 classes or more, got 1; pass [1 - p, p]")
    wrong = (values < 0).any(axis=1) | (np.abs(values.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"probabilities: row {row} is negative somewhere or does not sum to 1: {values[row]}")
    return values


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: needs one of {', '.join(allowed)}, got {value!r}")

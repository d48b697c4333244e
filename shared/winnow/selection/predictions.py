"""What the proxy says of the candidates, for strategies that read it beside the features."""

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats
from winnow.selection.uncertainty import most_uncertain


def require_predictions(probabilities: Floats, rows: int) -> Floats:
    """`probabilities` as (rows, c).

    Raises ValueError for what `most_uncertain` refuses, and for another number of rows.
    """
    values = np.asarray(probabilities)
    most_uncertain(values, 1)  # the checks are its own
    if len(values) != rows:
        raise ValueError(f"probabilities: needs a row for each of pool's {rows}, got {len(values)}")
    return values


def predicted_classes(probabilities: Floats) -> npt.NDArray[np.int64]:
    """The likeliest class of each row (n,), the lowest of those that tie."""
    return np.argmax(probabilities, axis=1).astype(np.int64)

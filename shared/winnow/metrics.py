"""Scores from probabilities and labels, by scikit-learn; None where one is not defined, never NaN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

_UNDEFINED: Any = {"zero_division": 0}  # scikit-learn's stubs know only the default


def score(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    classes: Sequence[str],
    positive: str | None,
) -> dict[str, Any]:
    """All scores of one evaluation, ready for JSON.

    Args:
        probabilities: (n, c), rows sum to 1; the highest column is the prediction (ties to the first).
        labels: (n,) in 0 .. c - 1. classes: the c names. positive: the class that F1 is about (the paper's Eq. 4).

    Returns:
        f1, precision, recall, auroc, average_precision of the positive class against the rest (None without one);
        macro_f1, balanced_accuracy, accuracy over the classes that occur; confusion_matrix (rows: truth).

    Raises:
        ValueError: the shapes do not fit, there are no samples, or `positive` is not among `classes`.
    """
    if probabilities.shape != (len(labels), len(classes)) or not len(labels):
        raise ValueError(f"probabilities: {probabilities.shape} for {len(labels)} labels of {len(classes)} classes")
    if positive is not None and positive not in classes:
        raise ValueError(f"positive: {positive!r} is not among {', '.join(classes)}")
    predicted = probabilities.argmax(1)
    present = np.unique(labels)
    recalls = [float((predicted[labels == c] == c).mean()) for c in present]
    return {
        **_of_positive(probabilities, labels, predicted, classes, positive),
        "macro_f1": float(sk.f1_score(labels, predicted, average="macro", **_UNDEFINED)),
        "balanced_accuracy": float(np.mean(recalls)),
        "accuracy": float((predicted == labels).mean()),
        "confusion_matrix": sk.confusion_matrix(labels, predicted, labels=np.arange(len(classes))).tolist(),
        "classes": list(classes),
        "n": len(labels),
    }


def _of_positive(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: Sequence[str],
    positive: str | None,
) -> dict[str, float | None]:
    names = ("f1", "precision", "recall", "auroc", "average_precision")
    if positive is None:
        return dict.fromkeys(names)
    column = list(classes).index(positive)
    truth, said, chance = labels == column, predicted == column, probabilities[:, column]
    both = 0 < truth.sum() < len(truth)
    return {
        "f1": float(sk.f1_score(truth, said, **_UNDEFINED)),
        "precision": float(sk.precision_score(truth, said, **_UNDEFINED)),
        "recall": float(sk.recall_score(truth, said, **_UNDEFINED)) if truth.any() else None,
        "auroc": float(sk.roc_auc_score(truth, chance)) if both else None,
        "average_precision": float(sk.average_precision_score(truth, chance)) if truth.any() else None,
    }

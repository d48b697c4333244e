"""Scores against hand-counted cases."""

import json

import numpy as np
import pytest

from winnow import metrics


def test_two_classes_by_hand() -> None:
    chance = np.array([0.9, 0.8, 0.4, 0.3, 0.6, 0.1])
    labels = np.array([1, 1, 1, 0, 0, 0])
    scores = metrics.score(np.stack([1 - chance, chance], 1), labels, classes=["rest", "TUM"], positive="TUM")
    assert scores["confusion_matrix"] == [[2, 1], [1, 2]]
    assert scores["precision"] == scores["recall"] == scores["f1"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == scores["balanced_accuracy"] == pytest.approx(4 / 6)
    assert scores["auroc"] == pytest.approx(8 / 9)
    assert scores["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert scores["macro_f1"] == pytest.approx(2 / 3)


def test_many_classes_score_the_positive_against_the_rest() -> None:
    probabilities = np.eye(3)[[0, 1, 2, 2, 1]]
    scores = metrics.score(probabilities, np.array([0, 1, 2, 1, 1]), classes=["a", "b", "c"], positive="b")
    assert scores["precision"] == 1 and scores["recall"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx((1 + 0.8 + 2 / 3) / 3)


def test_what_is_not_defined_is_none_and_json_takes_it() -> None:
    scores = metrics.score(np.array([[0.7, 0.3]] * 3), np.zeros(3, int), classes=["rest", "TUM"], positive="TUM")
    assert scores["auroc"] is None and scores["recall"] is None and scores["f1"] == 0
    assert "NaN" not in json.dumps(scores)
    without = metrics.score(np.eye(3), np.arange(3), classes=["a", "b", "c"], positive=None)
    assert without["f1"] is None and without["macro_f1"] == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        metrics.score(np.eye(2), np.arange(3), classes=["a", "b"], positive=None)
    with pytest.raises(ValueError, match="positive"):
        metrics.score(np.eye(2), np.arange(2), classes=["a", "b"], positive="c")

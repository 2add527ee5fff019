"""Metrics beside one accuracy, against scikit-learn, scipy and cases made by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from pipeline.evaluation import metrics
from pipeline.evaluation.analysis.slices import make_slices, worst_slice
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.significance import bootstrap_interval, mcnemar
from tests.support.trained.predictions import CLASSES, random_predictions


def predictions_of(correct: np.ndarray, confidence: np.ndarray) -> Predictions:
    """Two classes, all labels 0; what isn't right is taken for 1."""
    count = len(correct)
    classes = np.where(correct[:, None], [0, 1], [1, 0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)
    return Predictions(
        np.arange(count), np.zeros(count, np.int64), classes, probabilities, np.ones(count), np.empty((count, 0))
    )


def test_the_summary_is_scikit_learns() -> None:
    predictions, _ = random_predictions()
    found, labels, best = metrics.full_metrics(predictions, CLASSES), predictions.label, predictions.classes[:, 0]
    for name, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        each = function(labels, best, average=None)
        assert [value[name] for value in found["per_class"].values()] == pytest.approx(each)
        assert found["macro"][name] == pytest.approx(each.mean())


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """95 % of intervals of 100 rows each, within what 200 draws allow."""
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        low, high = bootstrap_interval((generator.random(100) < 0.7).astype(np.float64), seed)
        inside += low <= 0.7 <= high
    assert 0.90 <= inside / 200 <= 0.99
    assert bootstrap_interval(np.ones(9)) == [1.0, 1.0]


def test_the_calibration_error_of_a_case_made_by_hand() -> None:
    """Two bins: ten rows at 0.9 of which 6 are right, thirty at 0.6 of which 24 are: 0.25 * 0.3 + 0.75 * 0.2."""
    confidence = np.r_[np.full(10, 0.9), np.full(30, 0.6)]
    correct = np.r_[np.arange(10) < 6, np.arange(30) < 24]
    found = metrics.calibration(confidence, correct)
    assert found["ece"] == pytest.approx(0.25 * 0.3 + 0.75 * 0.2)
    bins = [(b["confidence"], b["accuracy"]) for b in found["bins"]]
    np.testing.assert_allclose(bins, [(0.6, 0.8), (0.9, 0.6)])
    sure = metrics.calibration(np.ones(5), np.ones(5, dtype=bool))
    assert sure["ece"] == 0


def test_a_planted_temperature_is_found_and_lowers_the_loss() -> None:
    generator = np.random.default_rng(1)
    logits = 3 * generator.standard_normal((4000, 6))
    labels = np.array([generator.choice(6, p=p) for p in softmax(logits, axis=1)])
    for planted in (0.5, 2.5):
        found = metrics.fit_temperature(planted * logits, labels)
        assert found == pytest.approx(planted, rel=0.06)
        before, after = (log_loss(labels, softmax(planted * logits / t, axis=1)) for t in (1.0, found))
        assert after <= before
    assert -log_softmax(logits, axis=1)[np.arange(4000), labels].mean() > 0


def test_a_planted_weak_slice_is_named_and_chance_is_not() -> None:
    """10,000 rows at 90 %; one class of ten at 80 %. Without it, no slice of random columns is named (20 seeds)."""
    generator = np.random.default_rng(2)
    label = generator.integers(0, 10, 10_000)
    columns = {"class": label.astype(str), "size": generator.random(10_000), "odd": np.arange(10_000) % 2}
    correct = generator.random(10_000) < np.where(label == 3, 0.8, 0.9)
    found = make_slices(correct, columns)
    worst = worst_slice(found, correct.mean())
    assert worst is not None
    assert (worst.column, worst.value) == ("class", "3")
    assert worst.low < 0.8 < worst.high
    named = 0
    for seed in range(20):
        even = np.random.default_rng(seed).random(10_000) < 0.9
        named += worst_slice(make_slices(even, columns), even.mean()) is not None
    assert named <= 2


def test_slices_of_a_column_hold_every_row_once() -> None:
    correct, numbers = np.ones(1003, dtype=bool), np.random.default_rng(0).random(1003)
    for column in (numbers, np.arange(1003) % 7, np.arange(1003).astype(str)):
        found = make_slices(correct, {"c": column})
        assert sum(each.rows for each in found) == 1003
    five = make_slices(correct, {"c": numbers})
    assert sorted(each.rows for each in five) == pytest.approx([200.6] * 5, abs=1)


def test_mcnemar_is_the_exact_one() -> None:
    """Against the binomial sum written out: 12 and 3 rows on which two models differ."""
    from math import comb

    first = np.r_[np.ones(12), np.zeros(3), np.ones(50), np.zeros(5)].astype(bool)
    second = np.r_[np.zeros(12), np.ones(3), np.ones(50), np.zeros(5)].astype(bool)
    found = mcnemar(first, second)
    assert (found["only_first"], found["only_second"], found["both"], found["neither"]) == (12, 3, 50, 5)
    assert found["p"] == pytest.approx(2 * sum(comb(15, k) for k in range(4)) / 2**15)
    assert mcnemar(first, first)["p"] == 1.0

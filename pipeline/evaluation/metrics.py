"""Metrics of an evaluation: accuracy, loss, recall and precision by class, confidence intervals, calibration.

All but counts and recall are computed by scikit-learn, scipy or torchmetrics; here they are only put together.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.significance import Floats, bootstrap_interval, wilson_interval

BINS = 15  # of the reliability diagram, as in Guo et al., arXiv 1706.04599
IntervalMethod = Literal["wilson", "bootstrap"]


def basic_metrics(predictions: Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the metrics that training reports.

    They are: rows, correct and correct_top5 (integers), loss, top1 and top5 (top-K where there are K < 5 classes),
    per_class {name: {recall, rows}} and confusion_matrix [true][predicted] of integers. Counts and losses are summed
    over all rows and divided once, so they do not depend on batches.
    """
    # By counting, not by scikit-learn: its import takes longer than the first validation of many runs.
    labels, best = predictions.label, predictions.classes[:, 0]
    num_rows, num_classes = len(labels), len(classes)
    hits = predictions.classes == labels[:, None]
    confusion = np.bincount(labels * num_classes + best, minlength=num_classes**2).reshape(num_classes, num_classes)
    rows = confusion.sum(axis=1)
    recall = confusion.diagonal() / np.maximum(rows, 1)  # 0 for a class without rows
    return {
        "rows": num_rows,
        "correct": int(hits[:, 0].sum()),
        "correct_top5": int(hits.any(axis=1).sum()),
        "loss": math.fsum(predictions.loss.tolist()) / num_rows,
        "top1": int(hits[:, 0].sum()) / num_rows,
        "top5": int(hits.any(axis=1).sum()) / num_rows,
        "per_class": {
            name: {"recall": float(r), "rows": int(n)} for name, r, n in zip(classes, recall, rows, strict=True)
        },
        "confusion_matrix": confusion.tolist(),
    }


def full_metrics(
    predictions: Predictions, classes: tuple[str, ...], seed: int = 0, method: IntervalMethod = "wilson"
) -> dict[str, Any]:
    """Returns `basic_metrics` with precision and F1 of each class, macro means, 95 % intervals and calibration.

    Macro means are over the classes that have rows. seed: of the bootstrap, which gives the interval of the loss.
    method: of the intervals of top1 and top5; evaluations that don't name it in `interval_method` were made by the
    bootstrap, which gives an interval of no width where all rows are right.
    """
    from sklearn.metrics import precision_recall_fscore_support

    values = basic_metrics(predictions, classes)
    labels, best, every_class = predictions.label, predictions.classes[:, 0], np.arange(len(classes))
    table = precision_recall_fscore_support(labels, best, labels=every_class, zero_division=0.0)
    for name, precision, _, f1, _ in zip(classes, *table, strict=True):
        values["per_class"][name] |= {"precision": float(precision), "f1": float(f1)}
    present = table[3] > 0
    values["macro"] = {
        name: float(column[present].mean()) for name, column in zip(("precision", "recall", "f1"), table, strict=False)
    }
    hits = predictions.classes == labels[:, None]
    columns = {"top1": hits[:, 0], "top5": hits.any(axis=1), "loss": predictions.loss}
    values["intervals"] = {
        name: list(wilson_interval(int(column.sum()), len(column)))
        if method == "wilson" and name != "loss"
        else bootstrap_interval(column.astype(np.float64), seed)
        for name, column in columns.items()
    }
    if method != "bootstrap":
        values["interval_method"] = method
    values["calibration"] = calibration(predictions.probabilities[:, 0], hits[:, 0])
    return values


def calibration(confidence: npt.NDArray[Any], correct: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Returns the expected calibration error (`ece`), the mean confidence, the accuracy and the bins behind them.

    confidence: float [N] in [0, 1], of the best class; correct: bool [N]. ece is the mean over BINS equal bins of
    |accuracy - confidence|, weighted by rows (Naeini et al., AAAI 2015). bins: what a reliability diagram shows.
    """
    import torch
    from sklearn.calibration import calibration_curve
    from torchmetrics.functional.classification import binary_calibration_error

    # float32 probabilities can exceed 1 by a rounding error, which torchmetrics refuses
    clipped = np.clip(np.asarray(confidence, dtype=np.float64), 0.0, 1.0)
    ece = binary_calibration_error(
        torch.from_numpy(clipped), torch.from_numpy(correct.astype(np.int64)), n_bins=BINS, norm="l1"
    )
    accuracy, mean = calibration_curve(correct, clipped, n_bins=BINS)
    return {
        "ece": float(ece),
        "mean_confidence": float(clipped.mean()),
        "accuracy": float(correct.mean()),
        "bins": [{"confidence": float(c), "accuracy": float(a)} for c, a in zip(mean, accuracy, strict=True)],
    }


def fit_temperature(logits: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Returns the temperature T for which softmax(logits / T) has the least loss (Guo et al., arXiv 1706.04599).

    logits: float [N, C], labels: int64 [N], of rows that the model was not trained on.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows, wide = np.arange(len(labels)), logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(wide / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))

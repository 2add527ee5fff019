"""What an evaluation says beyond one accuracy: intervals, calibration, slices, and the comparison of two.

Everything comes from scikit-learn, scipy or torchmetrics; here it is only put together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.predictions import Predictions, metrics

Floats = npt.NDArray[np.float64]
BINS = 15  # of calibration, as Guo et al. (arXiv 1706.04599) have them
_RESAMPLES = 2000
_CONFIDENCE = 0.95
_FEWEST_ROWS = 30  # of a slice that is ranked


def summary(predictions: Predictions, classes: tuple[str, ...], seed: int = 0) -> dict[str, Any]:
    """Returns `evaluate.metrics` with precision and F1 of each class, macro means, 95 % intervals and calibration."""
    from sklearn.metrics import precision_recall_fscore_support

    values = metrics(predictions, classes)
    labels, best, every = predictions.label, predictions.classes[:, 0], np.arange(len(classes))
    table = precision_recall_fscore_support(labels, best, labels=every, zero_division=0.0)
    for name, precision, _, f1, _ in zip(classes, *table, strict=True):
        values["per_class"][name] |= {"precision": float(precision), "f1": float(f1)}
    present = table[3] > 0
    values["macro"] = {
        name: float(column[present].mean()) for name, column in zip(("precision", "recall", "f1"), table, strict=False)
    }
    hits = predictions.classes == labels[:, None]
    each = {"top1": hits[:, 0], "top5": hits.any(axis=1), "loss": predictions.loss}
    values["intervals"] = {name: interval(column.astype(np.float64), seed) for name, column in each.items()}
    values["calibration"] = calibration(predictions.probabilities[:, 0], hits[:, 0])
    return values


def interval(values: Floats, seed: int = 0) -> list[float]:
    """values: float64 [N], one a row. Returns the 95 % percentile bootstrap interval of their mean."""
    from scipy.stats import bootstrap

    if len(values) < 2 or (values == values[0]).all():
        return [float(values.mean())] * 2
    found = bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, batch=100, method="percentile", confidence_level=_CONFIDENCE,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return [float(found.low), float(found.high)]


def calibration(confidence: npt.NDArray[Any], correct: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """confidence: float [N] in [0, 1], of the best class. Returns ece and the reliability diagram's bins.

    ece: expected calibration error, sum over bins of |accuracy - confidence| weighted by rows (Naeini et al., 2015).
    """
    import torch
    from sklearn.calibration import calibration_curve
    from torchmetrics.functional.classification import binary_calibration_error

    sure = np.clip(np.asarray(confidence, dtype=np.float64), 0.0, 1.0)
    ece = binary_calibration_error(
        torch.from_numpy(sure), torch.from_numpy(correct.astype(np.int64)), n_bins=BINS, norm="l1"
    )
    accuracy, mean = calibration_curve(correct, sure, n_bins=BINS)
    return {
        "ece": float(ece),
        "mean_confidence": float(sure.mean()),
        "accuracy": float(correct.mean()),
        "bins": [{"confidence": float(c), "accuracy": float(a)} for c, a in zip(mean, accuracy, strict=True)],
    }


def fit_temperature(logits: Floats, labels: npt.NDArray[np.int64]) -> float:
    """logits: float [N, C] of rows that weren't trained on. Returns the T whose softmax(logits / T) has the least loss.

    Source: Guo et al., arXiv 1706.04599.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows, wide = np.arange(len(labels)), logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(wide / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


# --- slices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """Rows that have something in common. column, value: what; top1 with its 95 % interval (Wilson's)."""

    column: str
    value: str
    rows: int
    correct: int
    low: float
    high: float

    @property
    def top1(self) -> float:
        """Share of right ones."""
        return self.correct / self.rows


def slices(correct: npt.NDArray[np.bool_], columns: Mapping[str, npt.NDArray[Any]], parts: int = 5) -> list[Slice]:
    """columns: of each row. Returns every slice, the worst first: numbers are cut into `parts` of equal rows."""
    found = []
    for name, column in columns.items():
        for value, chosen in _groups(column, parts):
            rows, right = int(chosen.sum()), int(correct[chosen].sum())
            if rows:
                found.append(Slice(name, value, rows, right, *_wilson(right, rows)))
    return sorted(found, key=lambda each: (each.top1, -each.rows))


def _groups(column: npt.NDArray[Any], parts: int) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    different = np.unique(column)
    if column.dtype.kind not in "fiu" or len(different) <= 2 * parts:
        return [(str(value), column == value) for value in different]
    edges = np.unique(np.quantile(column, np.linspace(0, 1, parts + 1)))
    place = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, len(edges) - 2)
    return [(f"{edges[n]:.4g} to {edges[n + 1]:.4g}", place == n) for n in range(len(edges) - 1)]


def _wilson(correct: int, rows: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(correct, rows).proportion_ci(_CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def worst_slice(found: list[Slice], top1: float) -> Slice | None:
    """Returns the slice of 30 rows or more that is farthest below the mean, if its interval lies below it at all.

    The more slices are looked at, the more one of them is low by chance: the interval is Bonferroni's.
    """
    from scipy.stats import binomtest

    large = [each for each in found if each.rows >= _FEWEST_ROWS]
    level = 1 - (1 - _CONFIDENCE) / max(1, len(large))
    for each in large:
        if binomtest(each.correct, each.rows).proportion_ci(level, method="wilson").high < top1:
            return each
    return None


# --- two models on the same rows ---------------------------------------------------------------------------------


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """first, second: bool [N], whether each model is right about a row. Returns both, only_first, only_second, neither
    and p, of the exact test (two-sided): a binomial one of the rows on which they differ (McNemar, 1947).
    """
    from scipy.stats import binomtest

    won, lost = int((~first & second).sum()), int((first & ~second).sum())
    return {
        "both": int((first & second).sum()),
        "only_first": lost,
        "only_second": won,
        "neither": int((~first & ~second).sum()),
        "p": float(binomtest(lost, won + lost).pvalue) if won + lost else 1.0,
    }

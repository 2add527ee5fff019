"""Evaluation: every row of a split exactly once, whatever the number of workers.

Workers return a line for each row; the lines are put into row order and only then summed and divided, once. So
the totals of one checkpoint are the same to the last bit for any number of workers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ExactnessError
from pipeline.loader import Batch
from pipeline.optim import sample_losses
from pipeline.recipes import LossName, TestViews

TOP = 5
# Rows computed together: never dependent on the number of workers.
UNIT_ROWS = 250


@dataclass(frozen=True)
class Predictions:
    """One line a row: row, label int64 [N]; classes int64 and probabilities float32 [N, K], best first, K <= 5;
    loss float64 [N], without label smoothing."""

    row: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    loss: npt.NDArray[np.float64]


def view_logits(model: nn.Module, images: Tensor, views: TestViews) -> Tensor:
    """images: float [N, 3, S, S], normalised. Returns float [N, C], the mean over the views of each image.

    flip: itself and its mirror image. flip-and-shift: half of that, and half of the mean of the same for two images
    shifted by a pixel, up and left and down and right, reflected at the edge (Jordan, arXiv 2404.00498).
    """
    if views == "none":
        logits: Tensor = model(images).float()
        return logits
    both = 0.5 * (model(images).float() + model(images.flip(-1)).float())
    if views == "flip":
        return both
    padded, size = F.pad(images, (1, 1, 1, 1), "reflect"), images.shape[-1]
    shifted = [view_logits(model, padded[:, :, n : n + size, n : n + size], "flip") for n in (0, 2)]
    return 0.5 * both + 0.25 * (shifted[0] + shifted[1])


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    normalise: nn.Module,
    num_classes: int,
    loss: LossName = "cross-entropy",
    views: TestViews = "none",
) -> Predictions:
    """Returns this worker's lines. The model is put into evaluation mode and left there; float32 throughout."""
    model.eval()
    top = min(TOP, num_classes)
    parts = [_no_predictions(top)]
    with torch.inference_mode():
        for batch in batches:
            logits = view_logits(model, normalise(batch.images), views)
            probabilities, classes = logits.softmax(dim=1).topk(top, dim=1)
            labels = batch.labels.to(logits.device)
            losses = sample_losses(loss, logits, labels)
            parts.append(
                Predictions(
                    batch.rows,
                    batch.labels.cpu().numpy(),
                    classes.cpu().numpy(),
                    probabilities.cpu().numpy(),
                    losses.double().cpu().numpy(),
                )
            )
    return _concatenate(parts)


def _no_predictions(top: int) -> Predictions:
    none = np.empty(0, dtype=np.int64)
    return Predictions(none, none, np.empty((0, top), np.int64), np.empty((0, top), np.float32), np.empty(0))


def _concatenate(parts: list[Predictions]) -> Predictions:
    fields = Predictions.__dataclass_fields__
    return Predictions(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def merge(parts: list[Predictions], num_rows: int, left_out: Sequence[int] = (), first_row: int = 0) -> Predictions:
    """Returns all workers' lines in row order. Raises ExactnessError unless each of `num_rows` rows is there once.

    The rows are those from `first_row` on. left_out: rows that must not be there, for their images can't be used.
    """
    together = _concatenate(parts)
    order = np.argsort(together.row, kind="stable")
    merged = Predictions(**{name: getattr(together, name)[order] for name in Predictions.__dataclass_fields__})
    due, seen = np.arange(first_row, first_row + num_rows), [*merged.row.tolist(), *left_out]
    if not np.array_equal(merged.row, np.setdiff1d(due, np.asarray(left_out, dtype=np.int64))):
        rows, counts = np.unique(np.array(seen, dtype=np.int64), return_counts=True)
        raise ExactnessError(
            f"evaluated {len(merged.row)} rows of {num_rows}: missing {np.setdiff1d(due, rows)[:5].tolist()}, "
            f"more than once {rows[counts > 1][:5].tolist()}, foreign {np.setdiff1d(rows, due)[:5].tolist()}"
        )
    return merged


def metrics(predictions: Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns rows, correct (integers), loss, top1, top5 (top-K where there are fewer than 5 classes), per class
    {recall, rows}, and the confusion matrix [true][predicted] of integers."""
    from sklearn.metrics import confusion_matrix, recall_score

    labels, best = predictions.label, predictions.classes[:, 0]
    num_rows, every_class = len(labels), np.arange(len(classes))
    hits = predictions.classes == labels[:, None]
    recall = recall_score(labels, best, labels=every_class, average=None, zero_division=0.0)
    rows = np.bincount(labels, minlength=len(classes))
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
        "confusion_matrix": confusion_matrix(labels, best, labels=every_class).tolist(),
    }

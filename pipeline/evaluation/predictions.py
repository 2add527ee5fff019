"""Evaluation: every row of a split exactly once, whatever the number of workers.

Workers return a line for each row; the lines are put into row order and only then summed and divided, once. So
the totals of one checkpoint are the same to the last bit for any number of workers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.recipe import LossName, TestViews
from pipeline.core.errors import CheckpointError, ExactnessError
from pipeline.dataset.manifest import Split
from pipeline.dataset.parquet import parquet_bytes, read_rows, read_table
from pipeline.loader.api import Batch
from pipeline.models.load import last_layer
from pipeline.models.losses import sample_losses
from pipeline.storage import files

PREDICTIONS_NAME = "predictions.parquet"
Kept = Literal["nothing", "logits", "features"]
TOP = 5
# Rows computed together: never dependent on the number of workers.
UNIT_ROWS = 250


@dataclass(frozen=True)
class Predictions:
    """One line a row: row, label int64 [N]; classes int64 and probabilities float32 [N, K], best first, K <= 5;
    loss float64 [N], without label smoothing; kept float32 [N, M]: logits, or the last layer's inputs, if asked for."""

    row: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    loss: npt.NDArray[np.float64]
    kept: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """bool [N]: whether the best class is the label."""
        right: npt.NDArray[np.bool_] = self.classes[:, 0] == self.label
        return right

    def take(self, places: npt.NDArray[Any]) -> "Predictions":
        """Returns some of the lines. places: indices, in the order wanted, or bool [N]."""
        return Predictions(**{name: getattr(self, name)[places] for name in Predictions.__dataclass_fields__})


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
    keep: Kept = "nothing",
) -> Predictions:
    """Returns this worker's lines. The model is put into evaluation mode and left there; float32 throughout.

    keep: "logits", or "features": what the last layer gets from the first view.
    """
    model.eval()
    top = min(TOP, num_classes)
    seen: list[Tensor] = []
    hook = None
    if keep == "features":
        hook = last_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    parts = [] if keep != "nothing" else [_no_predictions(top)]
    with torch.inference_mode():
        for batch in batches:
            seen.clear()
            logits = view_logits(model, normalise(batch.images), views)
            kept = logits if keep == "logits" else seen[0] if keep == "features" else logits[:, :0]
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
                    kept.float().cpu().numpy(),
                )
            )
    if hook is not None:
        hook.remove()
    return _concatenate(parts or [_no_predictions(top)])


def _no_predictions(top: int) -> Predictions:
    none, floats = np.empty(0, dtype=np.int64), np.empty((0, top), np.float32)
    return Predictions(none, none, np.empty((0, top), np.int64), floats, np.empty(0), floats[:, :0])


def _concatenate(parts: list[Predictions]) -> Predictions:
    parts = [part for part in parts if len(part.row)] or parts[:1]  # a worker without rows knows no widths
    fields = Predictions.__dataclass_fields__
    return Predictions(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def merge(parts: list[Predictions], num_rows: int, left_out: Sequence[int] = (), first_row: int = 0) -> Predictions:
    """Returns all workers' lines in row order. Raises ExactnessError unless each of `num_rows` rows is there once.

    The rows are those from `first_row` on. left_out: rows that must not be there, for their images can't be used.
    """
    together = _concatenate(parts)
    order = np.argsort(together.row, kind="stable")
    merged = together.take(order)
    due, seen = np.arange(first_row, first_row + num_rows), [*merged.row.tolist(), *left_out]
    if not np.array_equal(merged.row, np.setdiff1d(due, np.asarray(left_out, dtype=np.int64))):
        rows, counts = np.unique(np.array(seen, dtype=np.int64), return_counts=True)
        raise ExactnessError(
            f"evaluated {len(merged.row)} rows of {num_rows}: missing {np.setdiff1d(due, rows)[:5].tolist()}, "
            f"more than once {rows[counts > 1][:5].tolist()}, foreign {np.setdiff1d(rows, due)[:5].tolist()}"
        )
    return merged


def write_predictions(folder: str, dataset: str, split: Split, predictions: Predictions) -> None:
    """Writes `predictions.parquet`: a line a row, with its key."""
    table = pa.table(
        {
            "row": predictions.row,
            "key": read_rows(dataset, split, predictions.row, ("key",))["key"],
            "label": predictions.label,
            "classes": list(predictions.classes),
            "probabilities": list(predictions.probabilities),
            "loss": predictions.loss,
        }
    )
    files.write_bytes(files.join(folder, PREDICTIONS_NAME), parquet_bytes(table))


def read_predictions(folder: str) -> tuple[Predictions, list[str]]:
    """Returns the predictions that a run or an evaluation left, and the key of each row.

    Raises CheckpointError if there are none.
    """
    place = files.join(folder, PREDICTIONS_NAME)
    if not files.exists(place):
        raise CheckpointError(
            f"{folder}: no {PREDICTIONS_NAME}; give a finished run, or a folder that jobs/evaluate.py wrote"
        )
    table = read_table(place)
    lists = {name: table[name].combine_chunks() for name in ("classes", "probabilities")}
    width = (-1, len(table["classes"][0])) if table.num_rows else (0, TOP)
    predictions = Predictions(
        row=table["row"].to_numpy(),
        label=table["label"].to_numpy(),
        classes=lists["classes"].flatten().to_numpy().reshape(width),
        probabilities=lists["probabilities"].flatten().to_numpy().reshape(width),
        loss=table["loss"].to_numpy(),
        kept=np.empty((table.num_rows, 0), np.float32),
    )
    return predictions, table["key"].to_pylist()


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

"""Validation images with a duplicate or near duplicate in train, and the accuracy without them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset import parquet
from pipeline.dataset.manifest import Manifest
from pipeline.evaluation.predictions import Predictions


def leaked_rows(dataset: str, data: Manifest) -> npt.NDArray[np.int64]:
    """Returns the rows of val that have a duplicate or near duplicate in train, by the manifest.

    None of them where they are more than half: images that simple look alike by nature, as handwritten digits do.
    """
    split = data.split("val")
    rows = parquet.find_rows(dataset, split, data.leaked.get("val", ()))
    return rows if 2 * len(rows) <= split.rows else rows[:0]


def without_leaked(dataset: str, data: Manifest, predictions: Predictions) -> dict[str, Any] | None:
    """Returns rows, correct and top1 over the val images that have no duplicate or near duplicate in train.

    None where there are none that have (`leaked_rows`).
    """
    rows = leaked_rows(dataset, data)
    clean = ~np.isin(predictions.row, rows)
    if clean.all():
        return None
    right = predictions.classes[clean, 0] == predictions.label[clean]
    correct, count = int(right.sum()), int(clean.sum())
    return {"rows": count, "correct": correct, "top1": correct / count}

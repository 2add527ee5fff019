"""Leakage: validation images that have a duplicate or near duplicate in train, and the accuracy without them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset import parquet
from pipeline.dataset.manifest import Manifest
from pipeline.evaluation.predictions import Predictions


def leaked_rows(dataset: str, data: Manifest, name: str = "val") -> npt.NDArray[np.int64]:
    """Returns the rows of a split, int64 [M], that have a duplicate or near duplicate in train by the manifest.

    No rows if they are more than half of the split: such simple images, handwritten digits for example, are alike by
    nature, and leaving them out would leave an unrepresentative rest.
    """
    split = data.split(name)
    rows = parquet.find_rows(dataset, split, data.leaked.get(name, ()))
    return rows if 2 * len(rows) <= split.rows else rows[:0]


def without_leaked(dataset: str, data: Manifest, predictions: Predictions) -> dict[str, Any] | None:
    """Returns rows, correct and top1 over val without its `leaked_rows`, or None if there are no leaked rows.

    dataset, data: URI and manifest of the data set. predictions: of val.
    """
    rows = leaked_rows(dataset, data)
    clean = ~np.isin(predictions.row, rows)
    if clean.all():
        return None
    correct, count = int(predictions.correct[clean].sum()), int(clean.sum())
    return {"rows": count, "correct": correct, "top1": correct / count}

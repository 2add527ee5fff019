"""The most confident wrong predictions, with their pictures, for a page."""

from typing import Any

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.predictions import Predictions
from pipeline.reporting.charts import thumbnail

_PICTURES = 21  # three rows of seven


def confident_mistakes(dataset: str, data: Manifest, split: str, predictions: Predictions) -> list[dict[str, Any]]:
    """Returns the wrong predictions with the highest probability: picture, key, actual, predicted and probability."""
    wrong = np.flatnonzero(~predictions.correct)
    worst = wrong[np.argsort(-predictions.probabilities[wrong, 0], kind="stable")][:_PICTURES]
    if not len(worst):
        return []
    table = read_rows(dataset, data.split(split), predictions.row[worst])
    return [
        {
            "picture": thumbnail(image.as_py()),
            "key": key.as_py(),
            "actual": data.classes[predictions.label[index]],
            "predicted": data.classes[predictions.classes[index, 0]],
            "probability": float(predictions.probabilities[index, 0]),
        }
        for index, key, image in zip(worst, table["key"], table["image"], strict=True)
    ]

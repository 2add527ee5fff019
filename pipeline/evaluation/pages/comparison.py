"""Writes a comparison of two models: `compare.json` and `compare.html`, with the images on which they differ."""

from typing import Any

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.comparison import LEVEL, Pair, verdict
from pipeline.evaluation.significance import Bools
from pipeline.reporting.charts import render_page, thumbnail
from pipeline.storage import files

COMPARE_NAME, REPORT_NAME = "compare.json", "compare.html"
_PICTURES = 21  # of each kind: three rows of seven


def write_comparison(out: str, dataset: str, data: Manifest, values: dict[str, Any], pair: Pair) -> tuple[str, str]:
    """Writes `compare.json` and `compare.html` into the folder `out` and returns their URIs.

    dataset, data: URI and manifest of the data set. values, pair: of `compare_predictions`.
    """
    uris = files.join(out, COMPARE_NAME), files.join(out, REPORT_NAME)
    files.write_json(uris[0], values, pretty=True)
    one, other = (each.correct for each in pair)
    pictures = {
        "won": _pictures(dataset, data, values["split"], pair, ~one & other),
        "lost": _pictures(dataset, data, values["split"], pair, one & ~other),
    }
    html = render_page("compare.html", values=values, verdict=verdict(values), pictures=pictures, level=LEVEL)
    files.write_bytes(uris[1], html.encode())
    return uris


def _pictures(dataset: str, data: Manifest, split: str, pair: Pair, chosen: Bools) -> list[dict[str, Any]]:
    """Returns the first images of `chosen`, ordered by the confidence of the model that is wrong, highest first."""
    indices = np.flatnonzero(chosen)
    confidence = np.where(
        pair[0].correct[indices], pair[1].probabilities[indices, 0], pair[0].probabilities[indices, 0]
    )
    indices = indices[np.argsort(-confidence, kind="stable")][:_PICTURES]
    if not len(indices):
        return []
    table = read_rows(dataset, data.split(split), pair[0].row[indices])
    return [
        {
            "picture": thumbnail(image.as_py()),
            "key": key.as_py(),
            "actual": data.classes[pair[0].label[index]],
            "predicted": [data.classes[each.classes[index, 0]] for each in pair],
        }
        for index, key, image in zip(indices, table["key"], table["image"], strict=True)
    ]

"""Writes a comparison of two models: `compare.json` and `compare.html`, with the images on which they differ."""

from typing import Any

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.comparison import LEVEL, Pair, verdict
from pipeline.evaluation.significance import Bools
from pipeline.reporting.charts import BLUE, ORANGE, chart_style, new_axes, render_page, svg_data_uri, thumbnail
from pipeline.reporting.links import existing
from pipeline.storage import files

COMPARE_NAME, REPORT_NAME = "compare.json", "compare.html"
_PICTURES = 21  # of each kind: three rows of seven
_CLASSES_SHOWN = 20  # in the chart


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
    html = render_page(
        "compare.html",
        out,
        values=values,
        verdict=verdict(values),
        pictures=pictures,
        level=LEVEL,
        links=_links(out, dataset, values),
        changes=_changes_chart(values["per_class"]),
    )
    files.write_bytes(uris[1], html.encode())
    return uris


def _links(out: str, dataset: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (URI, text) of the pages of both models and of the data set, as far as they exist."""
    texts = {files.join(dataset, "quality.html"): "The data set", files.join(out, COMPARE_NAME): "All numbers, as JSON"}
    for name in ("b", "a"):
        for page, what in (("report.html", "Training"), ("evaluation.html", "Evaluation")):
            texts = {files.join(values[name], page): f"{what} of {name.upper()}"} | texts
    return [(place, texts[place]) for place in existing(*texts)]


@chart_style()
def _changes_chart(per_class: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Returns (chart, caption) of the change of each class's recall; None where no class changes."""
    changed = [each for each in per_class if each["won"] or each["lost"]]
    if not changed:
        return None
    half = _CLASSES_SHOWN // 2
    shown = (changed if len(changed) <= _CLASSES_SHOWN else changed[:half] + changed[-half:])[::-1]
    figure, plot = new_axes(6.4, 0.9 + 0.27 * len(shown))
    points = [100 * each["change"] for each in shown]
    plot.barh([each["class"] for each in shown], points, color=[ORANGE if change < 0 else BLUE for change in points])
    plot.axvline(0, color="#808080", linewidth=1)
    plot.set(xlabel="change of recall, points (B minus A)")
    part = "" if len(shown) == len(changed) else f"; the {half} lowest and highest"
    return svg_data_uri(figure), f"Change of each class's recall{part}"


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

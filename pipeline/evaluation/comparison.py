"""Two models on the same rows: which is better, whether that may be chance, and on which images they differ."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import CertificateError
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.certificate import check_keys
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.significance import mcnemar
from pipeline.reporting.charts import render_page, thumbnail
from pipeline.storage import files

COMPARE_NAME, REPORT_NAME = "compare.json", "compare.html"
LEVEL = 0.05
_PICTURES = 21
Pair = tuple[Predictions, Predictions]


def read_pair(first: str, second: str) -> tuple[Pair, list[str]]:
    """Returns the predictions of two runs or evaluations, both in row order, and the rows' keys.

    Raises CertificateError unless both are of the same rows with the same labels.
    """
    (one, keys), (other, others) = read_predictions(first), read_predictions(second)
    check_keys(others, keys)
    place = {key: number for number, key in enumerate(others)}
    order = np.array([place[key] for key in keys], dtype=np.int64)
    other = other.take(order)
    if not np.array_equal(one.label, other.label):
        key = keys[int(np.flatnonzero(one.label != other.label)[0])]
        raise CertificateError(f"{key}: A and B have different labels for it; compare evaluations of the same data set")
    return (one, other), keys


def split_of(dataset: str, data: Manifest, rows: npt.NDArray[np.int64], keys: list[str]) -> str:
    """Returns the split in which these rows have these keys: val, or train for what runs held out of it.

    Raises CertificateError if there is none.
    """
    for name, split in data.splits.items():
        if rows.max() < split.rows and read_rows(dataset, split, rows, ("key",))["key"].to_pylist() == keys:
            return name
    raise CertificateError(
        f"data={dataset}: isn't what A and B were evaluated on ({keys[0]}, ...); give that with --data"
    )


def compare(first: str, second: str, dataset: str, data: Manifest) -> tuple[dict[str, Any], Pair]:
    """Returns the content of `compare.json`, and both sides. won: keys that only B has right; lost: only A."""
    pair, keys = read_pair(first, second)
    classes = data.classes
    one, other = (each.correct for each in pair)
    label, names = pair[0].label, np.array(keys)
    values = {
        "a": first,
        "b": second,
        "split": split_of(dataset, data, pair[0].row, keys),
        "rows": len(label),
        "top1": [float(one.mean()), float(other.mean())],
        **mcnemar(one, other),
        "won": names[~one & other].tolist(),
        "lost": names[one & ~other].tolist(),
        "per_class": [_of_class(classes[number], label == number, one, other) for number in np.unique(label)],
    }
    values["per_class"].sort(key=lambda line: line["change"])
    return values, pair


def _of_class(
    name: str, chosen: npt.NDArray[np.bool_], one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    found, recall = mcnemar(one[chosen], other[chosen]), [float(each[chosen].mean()) for each in (one, other)]
    return {
        "class": name, "rows": int(chosen.sum()), "recall": recall, "change": recall[1] - recall[0],
        "won": found["only_second"], "lost": found["only_first"], "p": found["p"],
    }  # fmt: skip


def verdict(values: dict[str, Any]) -> str:
    """Returns the sentence that says what to conclude."""
    points = 100 * (values["top1"][1] - values["top1"][0])
    if values["p"] >= LEVEL:
        return (
            f"A difference of {points:+.2f} points on {values['rows']:,} rows may be chance (p = {values['p']:.2g}): "
            "no evidence that either is better"
        )
    better = "B" if points > 0 else "A"
    return f"{better} is better, by {abs(points):.2f} points, and that is hardly chance (p = {values['p']:.2g})"


def write_comparison(out: str, dataset: str, data: Manifest, values: dict[str, Any], pair: Pair) -> tuple[str, str]:
    """Writes `compare.json` and `compare.html` and returns their URIs."""
    places = files.join(out, COMPARE_NAME), files.join(out, REPORT_NAME)
    files.write_json(places[0], values, pretty=True)
    one, other = (each.correct for each in pair)
    pictures = {
        "won": _pictures(dataset, data, values["split"], pair, ~one & other),
        "lost": _pictures(dataset, data, values["split"], pair, one & ~other),
    }
    html = render_page("compare.html", values=values, verdict=verdict(values), pictures=pictures, level=LEVEL)
    files.write_bytes(places[1], html.encode())
    return places


def _pictures(
    dataset: str, data: Manifest, split: str, pair: Pair, chosen: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Returns the images on which the models differ, those first on which the wrong one is most sure."""
    places = np.flatnonzero(chosen)
    sure = np.where(pair[0].correct[places], pair[1].probabilities[places, 0], pair[0].probabilities[places, 0])
    places = places[np.argsort(-sure, kind="stable")][:_PICTURES]
    if not len(places):
        return []
    table = read_rows(dataset, data.split(split), pair[0].row[places])
    return [
        {
            "picture": thumbnail(image.as_py()),
            "key": key.as_py(),
            "actual": data.classes[pair[0].label[place]],
            "said": [data.classes[each.classes[place, 0]] for each in pair],
        }
        for place, key, image in zip(places, table["key"], table["image"], strict=True)
    ]

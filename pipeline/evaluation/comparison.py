"""Compares two models on the same rows: which is better, whether the difference may be chance, and on which rows."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import CertificateError
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.certificate import check_keys
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.significance import Bools, mcnemar

LEVEL = 0.05  # significance level of the verdict
Pair = tuple[Predictions, Predictions]


def read_pair(first: str, second: str) -> tuple[Pair, list[str]]:
    """Returns the predictions of two runs or evaluations in the row order of the first, and the rows' keys.

    Raises CertificateError unless both are of the same rows with the same labels.
    """
    (one, keys), (other, other_keys) = read_predictions(first), read_predictions(second)
    check_keys(other_keys, keys)
    position = {key: number for number, key in enumerate(other_keys)}
    other = other.take(np.array([position[key] for key in keys], dtype=np.int64))
    if not np.array_equal(one.label, other.label):
        key = keys[int(np.flatnonzero(one.label != other.label)[0])]
        raise CertificateError(f"{key}: A and B have different labels for it; compare evaluations of the same data set")
    return (one, other), keys


def split_of(dataset: str, data: Manifest, rows: npt.NDArray[np.int64], keys: list[str]) -> str:
    """Returns the name of the split in which these rows have these keys: val, or train for rows that were held out.

    Raises CertificateError if there is none.
    """
    for name, split in data.splits.items():
        if rows.max() < split.rows and read_rows(dataset, split, rows, ("key",))["key"].to_pylist() == keys:
            return name
    raise CertificateError(
        f"data={dataset}: A and B were evaluated on other rows ({keys[0]}, ...); give the data set of the evaluations"
    )


def compare_predictions(
    first: str, second: str, dataset: str, data: Manifest, labels: npt.NDArray[np.int64] | None = None
) -> tuple[dict[str, Any], Pair]:
    """Returns the content of `compare.json`, and the predictions of both.

    first, second: URIs of the folders of runs or evaluations, called A and B. data: its classes name both models'
    answers. labels: of the classes whose rows are compared; None for all. The content has the counts of McNemar's
    test, its p, and `won` and `lost`: the keys that only B and that only A classifies correctly.
    """
    pair, keys = read_pair(first, second)
    split, every = split_of(dataset, data, pair[0].row, keys), len(keys)
    if labels is not None:
        compared = np.isin(pair[0].label, labels)
        pair, keys = (pair[0].take(compared), pair[1].take(compared)), np.array(keys)[compared].tolist()
    one, other = (each.correct for each in pair)
    label, names = pair[0].label, np.array(keys)
    values = {
        "a": first,
        "b": second,
        "split": split,
        "rows": len(label),
        **({} if labels is None else {"other_classes_rows": every - len(label)}),
        "top1": [float(one.mean()), float(other.mean())],
        **mcnemar(one, other),
        "won": names[~one & other].tolist(),
        "lost": names[one & ~other].tolist(),
        "per_class": [_class_line(data.classes[number], label == number, one, other) for number in np.unique(label)],
    }
    values["per_class"].sort(key=lambda line: line["change"])
    return values, pair


def _class_line(name: str, chosen: Bools, one: Bools, other: Bools) -> dict[str, Any]:
    test, recall = mcnemar(one[chosen], other[chosen]), [float(each[chosen].mean()) for each in (one, other)]
    return {
        "class": name, "rows": int(chosen.sum()), "recall": recall, "change": recall[1] - recall[0],
        "won": test["only_second"], "lost": test["only_first"], "p": test["p"],
    }  # fmt: skip


def verdict(values: dict[str, Any]) -> str:
    """Returns the conclusion of a comparison as one sentence. values: the content of `compare.json`."""
    points = 100 * (values["top1"][1] - values["top1"][0])
    if values["p"] >= LEVEL:
        return (
            f"A difference of {points:+.2f} points on {values['rows']:,} rows may be chance (p = {values['p']:.2g}): "
            "no evidence that either is better"
        )
    better = "B" if points > 0 else "A"
    return f"{better} is better, by {abs(points):.2f} points, and that is hardly chance (p = {values['p']:.2g})"

"""Training images that are likely to carry a wrong label, by confident learning.

Confident learning (Northcutt, Jiang and Chuang, arXiv 1911.00068) asks for probabilities from a model that wasn't
trained on the image. Here that is a logistic regression on the trained network's features, fitted on four fifths of the
rows and asked about the last fifth, five times; the network below it has seen the images, with their labels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import RecipeError
from pipeline.dataset.parquet import parquet_bytes
from pipeline.storage import files

LABELS_NAME = "label-problems.parquet"
FOLDS = 5
_FREEDOM = 50.0  # of the classifier: how much all rows together weigh against small coefficients


@dataclass(frozen=True)
class Problem:
    """A row whose label is in doubt: its index in the evaluated rows, the label that the others suggest, and how much
    the given one is believed, in [0, 1]."""

    index: int
    label: int
    suggested: int
    belief: float


def out_of_sample_probabilities(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.float64]:
    """features: float32 [N, M]. Returns float64 [N, C]: what a classifier that didn't see a row says of it.

    Raises RecipeError where a class has fewer rows than there are folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels, minlength=num_classes)
    if (counts < FOLDS).any():
        raise RecipeError(
            f"label problems: class number {int(counts.argmin())} has {counts.min()} of the rows looked at, {FOLDS} "
            "are needed; look at more with --label-rows"
        )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=_FREEDOM / len(labels), max_iter=200))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found: npt.NDArray[np.float64] = cross_val_predict(classifier, features, labels, cv=folds, method="predict_proba")
    return found


def find_problems(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> list[Problem]:
    """probabilities: float64 [N, C], out of sample. Returns the rows in doubt, the least believed label first."""
    from cleanlab.filter import find_label_issues

    found = find_label_issues(  # by class: of five rules the best on planted labels, docs/log.md
        labels, probabilities, filter_by="prune_by_class", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    best = probabilities.argmax(axis=1)
    return [
        Problem(int(index), int(labels[index]), int(best[index]), float(probabilities[index, labels[index]]))
        for index in found
    ]


def write_problems(out: str, problems: list[Problem], rows: npt.NDArray[np.int64], keys: list[str]) -> str:
    """Writes `label-problems.parquet`, in their order, and returns its URI. rows, keys: of what was looked at."""
    table = pa.table(
        {
            "row": [int(rows[each.index]) for each in problems],
            "key": pa.array([keys[each.index] for each in problems], pa.string()),
            "label": [each.label for each in problems],
            "suggested": [each.suggested for each in problems],
            "belief": [each.belief for each in problems],
        }
    )
    uri = files.join(out, LABELS_NAME)
    files.write_bytes(uri, parquet_bytes(table))
    return uri

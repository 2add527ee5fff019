"""Training images whose label is likely to be wrong, by confident learning.

Confident learning (Northcutt, Jiang and Chuang, arXiv 1911.00068) needs probabilities from a model that was not trained
on the image. Here they come from a logistic regression on the trained network's features, cross-validated in 5 folds.
The network below it was trained on these images and labels; a network trained anew for each fold would be stricter.
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
_INVERSE_REGULARISATION = 50.0  # C of the logistic regression, times the number of rows


@dataclass(frozen=True)
class LabelIssue:
    """A row whose label is likely to be wrong.

    index: in the rows that were examined. label: the given one. suggested: the most probable one. belief: probability
    of the given label, in [0, 1].
    """

    index: int
    label: int
    suggested: int
    belief: float


def out_of_sample_probabilities(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.float64]:
    """Returns class probabilities, float64 [N, C], each row's from a classifier that was not fitted on it.

    features: float32 [N, M]; labels: int64 [N]. Raises RecipeError if a class has fewer rows than there are folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels, minlength=num_classes)
    if (counts < FOLDS).any():
        raise RecipeError(
            f"label problems: class number {int(counts.argmin())} has {counts.min()} of the examined rows, {FOLDS} are "
            "needed; examine more with --label-rows"
        )
    # C grows as 1 / N, so that the regularisation weighs the same for any number of rows.
    regression = LogisticRegression(C=_INVERSE_REGULARISATION / len(labels), max_iter=200)
    classifier = make_pipeline(StandardScaler(), regression)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found: npt.NDArray[np.float64] = cross_val_predict(classifier, features, labels, cv=folds, method="predict_proba")
    return found


def find_label_issues(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> list[LabelIssue]:
    """Returns the rows whose label is likely to be wrong, lowest belief first.

    probabilities: float64 [N, C], of `out_of_sample_probabilities`; labels: int64 [N].
    """
    import cleanlab.filter

    # "prune_by_class" found most of the wrong labels that were planted, of cleanlab's five rules: docs/log.md.
    found = cleanlab.filter.find_label_issues(
        labels, probabilities, filter_by="prune_by_class", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    best = probabilities.argmax(axis=1)
    return [
        LabelIssue(int(index), int(labels[index]), int(best[index]), float(probabilities[index, labels[index]]))
        for index in found
    ]


def write_label_issues(out: str, issues: list[LabelIssue], rows: npt.NDArray[np.int64], keys: list[str]) -> str:
    """Writes `label-problems.parquet` into the folder `out`, in the order of `issues`, and returns its URI.

    rows, keys: of all rows that were examined; an issue's index refers to them.
    """
    table = pa.table(
        {
            "row": [int(rows[each.index]) for each in issues],
            "key": pa.array([keys[each.index] for each in issues], pa.string()),
            "label": [each.label for each in issues],
            "suggested": [each.suggested for each in issues],
            "belief": [each.belief for each in issues],
        }
    )
    uri = files.join(out, LABELS_NAME)
    files.write_bytes(uri, parquet_bytes(table))
    return uri

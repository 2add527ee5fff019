"""Figures that several reports show: the most confused classes and the confusion matrix."""

from typing import Any

import numpy as np

from pipeline.reporting.charts import BLUE, GREY, chart_style, new_axes, svg_data_uri

MAX_MATRIX_CLASSES = 20


def confused_pairs(matrix: Any, classes: tuple[str, ...], count: int = 5) -> list[tuple[int, str, str]]:
    """Returns (images, true class, predicted class) of the most frequent mistakes, sorted by frequency.

    matrix: int [C, C], true classes in rows, predicted ones in columns.
    """
    wrong = np.array(matrix)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    places = [divmod(int(place), len(classes)) for place in order]
    return [(int(wrong[t, p]), classes[t], classes[p]) for t, p in places if wrong[t, p]]


@chart_style()
def confusion_matrix_chart(matrix: Any, classes: tuple[str, ...]) -> str:
    """Returns the confusion matrix as the data URI of an SVG. matrix: int [C, C], true classes in rows."""
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    side = 1.6 + 0.42 * len(classes)
    figure, axes = new_axes(side, side)
    # The diagonal is left white and the scale ends at 12 %: the mistakes are to be seen.
    axes.imshow(np.where(np.eye(len(classes), dtype=bool), np.nan, shares), cmap="Oranges", vmin=0, vmax=0.12)
    for true, line in enumerate(matrix):
        for predicted, count in enumerate(line):
            if count:
                strong = true != predicted and shares[true, predicted] > 0.07
                own = {"weight": "bold", "color": BLUE} if true == predicted else {"color": "white" if strong else GREY}
                axes.text(predicted, true, f"{count:,}", ha="center", va="center", fontsize=8, **own)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    return svg_data_uri(figure)

"""Accuracy of subsets of the rows (slices): by class, size, brightness or any column of the data set's provenance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.significance import CONFIDENCE, wilson_interval

MIN_RANKED_ROWS = 30  # smaller slices are listed, but not ranked: their intervals are too wide


@dataclass(frozen=True)
class Slice:
    """The rows that share a value of a column.

    column, value: for example "class" and "bird". low, high: Wilson's 95 % interval of the slice's top-1.
    """

    column: str
    value: str
    rows: int
    correct: int
    low: float
    high: float

    @property
    def top1(self) -> float:
        """Share of the slice's rows that are classified correctly."""
        return self.correct / self.rows


def make_slices(
    correct: npt.NDArray[np.bool_], columns: Mapping[str, npt.NDArray[Any]], num_bins: int = 5
) -> list[Slice]:
    """Returns the slices of all columns, lowest top-1 first.

    correct: bool [N]. columns: arrays [N]. A numeric column with more than 2 * num_bins different values is cut into
    `num_bins` ranges of about equally many rows; any other column gives a slice for each value.
    """
    found = []
    for name, column in columns.items():
        for value, chosen in _groups(column, num_bins):
            rows, right = int(chosen.sum()), int(correct[chosen].sum())
            if rows:
                found.append(Slice(name, value, rows, right, *wilson_interval(right, rows)))
    return sorted(found, key=lambda each: (each.top1, -each.rows))


def _groups(column: npt.NDArray[Any], num_bins: int) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    different = np.unique(column)
    if column.dtype.kind not in "fiu" or len(different) <= 2 * num_bins:
        return [(str(value), column == value) for value in different]
    edges = np.unique(np.quantile(column, np.linspace(0, 1, num_bins + 1)))
    place = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, len(edges) - 2)
    return [(f"{edges[n]:.4g} to {edges[n + 1]:.4g}", place == n) for n in range(len(edges) - 1)]


def worst_slice(slices: list[Slice], top1: float) -> Slice | None:
    """Returns the slice with the lowest top-1 whose interval lies below `top1`, or None if there is none.

    slices: sorted as by `make_slices`; those of fewer than MIN_RANKED_ROWS rows are ignored. The more slices there are,
    the more likely is a low one by chance, so the intervals are at the Bonferroni level of all ranked slices.
    """
    ranked = [each for each in slices if each.rows >= MIN_RANKED_ROWS]
    level = 1 - (1 - CONFIDENCE) / max(1, len(ranked))
    for each in ranked:
        if wilson_interval(each.correct, each.rows, level)[1] < top1:
            return each
    return None

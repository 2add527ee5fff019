"""From a recipe's sampling and a data set's columns to the expected count of each training row."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.choices import check_choice
from pipeline.config.sampling import Sampling, is_table
from pipeline.config.shares import parse_shares
from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import Manifest
from pipeline.loader.sampling.columns import SplitColumns
from pipeline.loader.sampling.counts import ExpectedCounts, whole_total
from pipeline.loader.sampling.mixture import Mixture
from pipeline.loader.sampling.tables import table_values

Numbers = npt.NDArray[np.float64]
_MOST_COPIES = 1 << 20  # of a row in an epoch


def expected_counts(
    uri: str, data: Manifest, sampling: Sampling, num_rows: int | None = None, split: str = "train"
) -> ExpectedCounts | None:
    """Returns how often each of the first `num_rows` rows of a split is expected in an epoch; None: each row once.

    uri: of the data set whose manifest is `data`. num_rows: None for all. Reads the rows' index, and other columns
    where the sampling names them; no image. Raises RecipeError with field, value and remedy if that can't
    be done.
    """
    if not sampling.is_active:
        return None
    rows = data.split(split)
    mixture = make_mixture(data, sampling.shares, split) if sampling.shares else None
    columns = SplitColumns(uri, data, split, rows.rows if num_rows is None else num_rows)
    labels = columns.column("label")
    passing = passing_rows(columns, sampling.where)
    repeats = np.zeros(columns.num_rows)
    repeats[passing] = _factors(columns, sampling.repeat, "repeat", passing)
    if sampling.repeat_below:
        repeats *= _repeat_factors(labels, passing, sampling.repeat_below)
    mass = repeats.copy()
    mass[passing] *= _factors(columns, sampling.weights, "weights", passing)
    if sampling.class_balance:
        mass *= _class_factors(labels, mass, sampling.class_balance)
    wanted, total = sampling.share * _sum(repeats), _sum(mass)
    if not total > 0:
        raise RecipeError("sampling.weights and sampling.repeat leave no row of train; give some of them more than 0")
    expected = mass * (wanted / total)
    if expected.max() >= _MOST_COPIES:
        raise RecipeError(f"sampling: a row would come {expected.max():.3g} times in an epoch; make its weight smaller")
    try:
        whole = whole_total(expected, labels.astype(np.int32))
    except ValueError as error:
        raise RecipeError(f"sampling: {error}; make sampling.share or sampling.repeat smaller") from error
    if mixture is None:
        return whole
    for number, (name, (_, part)) in enumerate(zip(data.sources, mixture.parts(rows.row_group_rows), strict=True)):
        if not whole.units[part].any() and any(shares[number] for _, shares in mixture.stages):
            raise RecipeError(f"sampling.shares={sampling.shares!r}: no row of {name} is left; give it a share of 0")
    return replace(whole, mixture=mixture)


def make_mixture(data: Manifest, text: str, split: str) -> Mixture:
    """Returns the mixture of a data set's sources that `sampling.shares` says.

    Raises RecipeError if the data set is no mixture, or if its sources have other names.
    """
    said = f"sampling.shares={text!r}"
    if not data.sources:
        raise RecipeError(
            f"{said}: {data.name} isn't made of several data sets; make a mixture with image-pipeline mix"
        )
    stages = parse_shares("sampling.shares", text)
    for name, _ in stages[0].shares:
        check_choice("sampling.shares", name, tuple(data.sources))
    if missing := [name for name in data.sources if name not in dict(stages[0].shares)]:
        raise RecipeError(f"{said}: says nothing of {', '.join(missing)}; a share of 0 leaves a source out")
    shares = []
    for stage in stages:
        given, total = dict(stage.shares), math.fsum(share for _, share in stage.shares)
        shares.append((stage.step, tuple(given[name] / total for name in data.sources)))
    return Mixture(tuple(data.source_row_groups(split).values()), tuple(shares))


def passing_rows(columns: SplitColumns, where: str | None, field_name: str = "sampling.where") -> npt.NDArray[np.int64]:
    """Returns int64, the rows that pass a filter, ascending. Raises RecipeError if none does, or it is no condition."""
    if where is None:
        return np.arange(columns.num_rows)
    passes = columns.values(field_name, where)
    if passes.dtype != np.bool_:
        raise RecipeError(f'{field_name}={where!r}: is no condition; write one such as "width >= 200"')
    rows = np.flatnonzero(passes)
    if not len(rows):
        raise RecipeError(f"{field_name}={where!r}: no row passes; {columns.ranges(where) or 'it names no column'}")
    return rows


def _factors(columns: SplitColumns, text: str | None, name: str, passing: npt.NDArray[np.int64]) -> Numbers | float:
    """Returns the factor of each row that passes the filter, from an expression or a file."""
    if text is None:
        return 1.0
    said = f"sampling.{name}"
    values = table_values(name, text, columns.column("key").tolist()) if is_table(text) else columns.values(said, text)
    if values.dtype == object:
        raise RecipeError(f"{said}={text!r}: gives texts, and numbers are needed")
    numbers = values[passing].astype(np.float64)
    wrong = ~(np.isfinite(numbers) & (numbers >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        key = columns.column("key")[passing[first]]
        raise RecipeError(
            f"{said}={text!r}: is {numbers[first]:g} for {key} and {int(wrong.sum()) - 1:,} other rows; each must be a "
            "number of 0 or more"
        )
    return numbers


def _repeat_factors(labels: npt.NDArray[Any], passing: npt.NDArray[np.int64], below: float) -> Numbers:
    """Returns the repeat factor of each row by its class (arXiv 1908.03195, appendix B.2, one label an image)."""
    counts = np.bincount(labels[passing], minlength=int(labels.max()) + 1)
    factors = [max(1.0, math.sqrt(below * len(passing) / count)) if count else 0.0 for count in counts.tolist()]
    return np.array(factors)[labels]


def _class_factors(labels: npt.NDArray[Any], mass: Numbers, power: float) -> Numbers:
    """Returns for each row W^-power, with the mass W of its class."""
    sums = np.bincount(labels, weights=mass)
    return np.array([each**-power if each > 0 else 0.0 for each in sums.tolist()])[labels]


def _sum(values: Numbers) -> float:
    """Returns the sum, rounded once: the same on every machine."""
    return math.fsum(values.tolist())

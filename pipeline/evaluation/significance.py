"""Statistics of shares and means: confidence intervals, and McNemar's test for two models on the same rows.

The estimators are scipy's, or give what scipy's do; here they are only given their inputs.
"""

from math import sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.shares import CONFIDENCE as CONFIDENCE
from pipeline.core.shares import wilson_interval as wilson_interval

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_RESAMPLES = 2000


def bootstrap_interval(values: Floats, seed: int = 0) -> list[float]:
    """Returns [low, high], the 95 % percentile bootstrap interval of the mean.

    values: float64 [N], one for each row. A constant column has an interval of width zero.
    """
    from scipy.stats import bootstrap

    if len(values) < 2 or (values == values[0]).all():
        return [float(values.mean())] * 2
    found = bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, batch=100, method="percentile", confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return [float(found.low), float(found.high)]


def exact_bounds(correct: int, rows: int, level: float) -> tuple[float, float]:
    """Returns the one-sided lower and upper bounds, each at `level`, of a share `correct / rows`.

    Exact, by Clopper and Pearson (Biometrika 26, 1934), as `scipy.stats.binomtest` has them.
    """
    from scipy.special import betaincinv

    low = float(betaincinv(correct, rows - correct + 1, level)) if correct else 0.0
    high = float(betaincinv(correct + 1, rows - correct, 1 - level)) if correct < rows else 1.0
    return low, high


def paired_bounds(won: int, lost: int, rows: int, level: float) -> tuple[float, float]:
    """Returns the one-sided lower and upper bounds, each at `level`, of the difference of two models' shares of rows.

    won, lost: rows about which only the second model, and only the first, is right; the difference is that of the
    second minus the first. By Agresti and Min for paired proportions: half a row is added to each of the four cells
    (Statistics in Medicine 24, 2005).
    """
    from scipy.special import ndtri

    z, change = float(ndtri(1 - level)), (won - lost) / (rows + 2)
    spread = sqrt((won + lost + 1) - (won - lost) ** 2 / (rows + 2)) / (rows + 2)
    return max(-1.0, change - z * spread), min(1.0, change + z * spread)


def mcnemar(first: Bools, second: Bools, alternative: Literal["two-sided", "greater"] = "two-sided") -> dict[str, Any]:
    """Returns McNemar's exact test of two models on the same rows, with the table of counts that it rests on.

    first, second: bool [N], whether each model is right about a row. alternative: "greater" asks whether the second is
    the better one, "two-sided" whether they differ. The result has `both`, `only_first`, `only_second`, `neither`
    (counts of rows) and `p`: a binomial test of the rows about which exactly one model is right (McNemar,
    Psychometrika 12, 1947). p is 1 where there are no such rows.
    """
    only_second, only_first = int((~first & second).sum()), int((first & ~second).sum())
    return {
        "both": int((first & second).sum()),
        "only_first": only_first,
        "only_second": only_second,
        "neither": int((~first & ~second).sum()),
        "p": mcnemar_p(only_first, only_second, alternative),
    }


def mcnemar_p(only_first: int, only_second: int, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
    """Returns the p-value of `mcnemar` for counts of rows about which exactly one model is right."""
    from scipy.stats import binomtest

    discordant = only_second + only_first
    return float(binomtest(only_second, discordant, alternative=alternative).pvalue) if discordant else 1.0

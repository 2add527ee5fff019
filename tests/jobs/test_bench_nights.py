"""The simulation of nights: its rules against their authors' numbers, and what it says of the gate."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.bench import nights
from jobs.bench.nights import Rule, Setting, account_levels, simulate

# The p-values and levels of the examples of onlineFDR, the R package of the methods' authors (Robertson et al., 2019;
# Alpha_spending and online_fallback with random=FALSE and alpha=0.05), and of LORD++ with w0=0.025.
SPENDING_P = (
    2.90e-17, 0.06743, 0.01514, 0.08174, 0.00171, 3.60e-05, 0.79149, 0.27201, 0.28295, 7.59e-08, 0.69274, 0.30443,
    0.00136, 0.72342, 0.54757,
)  # fmt: skip
SPENDING = (
    0.0026758385, 0.0005819103, 0.0004956249, 0.0004121803, 0.0003494435, 0.0003022950, 0.0002659722, 0.0002372613,
    0.0002140474, 0.0001949126, 0.0001788796, 0.0001652568, 0.0001535420, 0.0001433627, 0.0001344368,
)  # fmt: skip
FALLBACK = (
    0.0026758385, 0.0032577488, 0.0004956249, 0.0004121803, 0.0003494435, 0.0003022950, 0.0005682672, 0.0002372613,
    0.0002140474, 0.0001949126, 0.0003737922, 0.0001652568, 0.0001535420, 0.0001433627, 0.0001344368,
)  # fmt: skip
LORD_P = (
    2.90e-14, 0.00143, 0.06514, 0.00174, 0.00171, 3.61e-05, 0.79149, 0.27201, 0.28295, 7.59e-08, 0.69274, 0.30443,
    0.000487, 0.72342, 0.54757,
)  # fmt: skip
LORD = (
    0.001338, 0.001629, 0.003215, 0.001036, 0.000876, 0.000738, 0.003309, 0.001136, 0.000987, 0.000854, 0.003426,
    0.001251, 0.0011, 0.003639, 0.001438,
)  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "p_values", "expected"),
    [
        (Rule(0.05 * nights.gamma(15)), SPENDING_P, SPENDING),
        (nights.Fallback(0.05 * nights.gamma(15)), SPENDING_P, FALLBACK),
        (nights.LordPlusPlus(0.05, 0.025, 15, 1), LORD_P, LORD),
    ],
)
def test_published_rules_give_their_authors_levels(
    rule: Rule, p_values: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    levels = []
    for number, p in enumerate(p_values):
        levels.append(float(np.ravel(rule.level(number))[0]))
        rule.told(number, np.array([p <= levels[-1]]))
    assert levels == pytest.approx(expected, abs=6e-7 if expected is LORD else 6e-11)


EQUAL = Setting(10_000)
YEARS = 60


def test_each_night_alone_errs_as_often_as_its_level_says() -> None:
    """On new images each night; 365 * 0.05 = 18.25, of which the exactness of the test on counts takes some."""
    result = simulate(replace(EQUAL, turnover=1.0), Rule(np.full(365, 0.05)), YEARS, 0)
    assert 15.5 < result.false.mean() < 18.25


@pytest.mark.parametrize("turnover", [0.0, 1 / 90, 1.0])
@pytest.mark.parametrize("rows", [1000, 10_000])
def test_the_account_keeps_its_limit_however_the_images_change(rows: int, turnover: float) -> None:
    """One false promotion a year; the mean of 60 years has a standard error of at most 0.13."""
    result = simulate(Setting(rows, turnover=turnover), Rule(account_levels(1.0, 365)), YEARS, 0)
    assert result.false.mean() <= 1 + 3 * 0.13
    assert (turnover < 1) == (result.false.mean() < 0.5)


def test_a_point_is_found_within_a_month_and_a_model_that_is_worse_never_passes() -> None:
    levels = Rule(account_levels(1.0, 365))
    better = simulate(replace(EQUAL, gain=0.01, start=60), levels, YEARS, 0)
    assert (better.found <= 30).mean() > 0.95
    assert (better.found >= 1).all()
    assert simulate(replace(EQUAL, gain=-0.005, turnover=1.0), levels, YEARS, 0).worse.sum() == 0


def test_val_wears_out_by_what_is_chosen_and_the_lock_box_does_not() -> None:
    nightly = simulate(EQUAL, Rule(np.full(365, 0.05)), YEARS, 0)
    locked = simulate(replace(EQUAL, lock_box=0.5), Rule(np.full(365, 0.05)), YEARS, 0)
    assert nightly.optimism.mean() > 0.2
    assert locked.optimism.mean() > 0.2
    assert abs(locked.lock_box_optimism.mean()) < 0.15
    assert locked.readings.mean() < 2  # of 365 nights

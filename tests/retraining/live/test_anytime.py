"""Always-valid p-values: they hold at all looks together, and find what is there."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.integrate import quad

from pipeline.retraining.live.anytime import below_p, paired_p


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (9, 1), (30, 12), (12, 30), (400, 300)])
def test_the_paired_p_is_the_mixture_of_likelihood_ratios(won: int, lost: int) -> None:
    """Against numerical integration of its definition."""
    ratio, _ = quad(lambda p: 2 * (2 * p) ** won * (2 * (1 - p)) ** lost, 0.5, 1, limit=200)
    assert paired_p(won, lost) == pytest.approx(min(1.0, 1 / ratio), rel=1e-6)


def test_the_p_of_an_accuracy_is_exact_in_a_small_case() -> None:
    """3 of 4 wrong against a share of 1/2: the integral of q(1 - q)^3 over (0, 1/2), by hand."""
    integral = sum(Fraction(comb(3, k) * (-1) ** k, (k + 2) * 2 ** (k + 2)) for k in range(4))
    ratio = integral * 2 / Fraction(1, 2) ** 4
    assert below_p(1, 4, 0.5) == pytest.approx(float(1 / ratio))
    assert below_p(5, 5, 0.5) == 1.0
    assert below_p(0, 0, 0.5) == below_p(0, 9, 0.0) == below_p(0, 9, 1.0) == 1.0


def test_many_counts_neither_overflow_nor_end_in_an_error() -> None:
    assert paired_p(10**6, 0) == 0.0
    assert paired_p(0, 10**6) == 1.0
    assert 0.0 <= below_p(10**6, 3 * 10**6, 0.5) < 1e-9
    assert below_p(10**6, 10**6 + 1, 0.5) == 1.0


def test_looked_at_every_night_equal_models_are_told_apart_at_most_as_often_as_the_level_says() -> None:
    """1,000 pairs of equal models, looked at after each of 200 rows: McNemar's test fails there, this one holds."""
    generator = np.random.default_rng(1)
    wins = generator.integers(0, 2, (1000, 200)).cumsum(axis=1)
    smallest = {(won, n): paired_p(won, n - won) for n in range(1, 201) for won in range(n + 1)}
    ever = [any(smallest[int(won), n] <= 0.05 for n, won in enumerate(row, 1)) for row in wins]
    assert 0.001 < np.mean(ever) <= 0.05
    certain = generator.random((200, 200)) < 0.9  # the worse model loses 9 of 10
    found = [paired_p(int(row.sum()), 200 - int(row.sum())) <= 0.05 for row in certain]
    assert np.mean(found) == 1.0

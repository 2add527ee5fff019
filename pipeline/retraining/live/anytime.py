"""Tests that may be looked at every night: p-values that hold at all looks together (always valid).

Each is 1 / M, with M a likelihood ratio that is averaged over a uniform prior on the alternative. Under the null
hypothesis M is a non-negative supermartingale that starts at 1, so the probability that p is ever at most `level` is at
most `level` (Ville, 1939; Robbins, Annals of Mathematical Statistics 41, 1970; Johari et al., Operations Research 70,
2022). An ordinary test that is repeated every night finds a difference sooner or later where there is none.
"""

from math import exp, inf, log

_LOG_2 = log(2.0)


def paired_p(won: int, lost: int) -> float:
    """Returns the always-valid p-value of "the model is no better", in (0, 1]: a sequential form of McNemar's test.

    won, lost: rows about which exactly one of two models is right, the model or the other one. The null hypothesis is
    that each such row is won with probability 1/2 or less.
    """
    # The integral of 2 p^won (1 - p)^lost over (1/2, 1), divided by (1/2)^(won + lost).
    return _p_value(_log_integral(lost, won, 0.5) + _LOG_2 + (won + lost) * _LOG_2)


def below_p(correct: int, rows: int, share: float) -> float:
    """Returns the always-valid p-value of "the accuracy is `share` or more", in (0, 1].

    correct: of `rows` rows. share: in [0, 1]; at 0 or 1 nothing can be told, and p is 1.
    """
    if not 0.0 < share < 1.0:
        return 1.0
    wrong = rows - correct
    ratio = _log_integral(correct, wrong, share) - log(share) - correct * log(share) - wrong * log(1.0 - share)
    return _p_value(ratio)


def _log_integral(successes: int, failures: int, end: float) -> float:
    """Returns the logarithm of the integral of p^successes (1 - p)^failures over (0, end)."""
    from scipy.special import betainc, betaln

    part = float(betainc(successes + 1, failures + 1, end))
    return float(betaln(successes + 1, failures + 1)) + log(part) if part > 0.0 else -inf


def _p_value(log_ratio: float) -> float:
    return exp(-log_ratio) if log_ratio > 0.0 else 1.0

"""Counts and shares of rows as text, in one form everywhere; of a share Wilson's confidence interval."""

from math import sqrt

CONFIDENCE = 0.95


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: `1 image`, `2,000 images`. plural: None for the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def wilson_interval(correct: int, rows: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns (low, high), Wilson's interval of the share `correct / rows` (Wilson, JASA 22, 1927).

    To the last bit what `scipy.stats.binomtest` gives; the import of scipy.stats would take a second of every report.
    """
    from scipy.special import ndtri

    share, z = correct / rows, float(ndtri(0.5 + 0.5 * confidence))
    denominator = 2 * (rows + z**2)
    centre = (2 * rows * share + z**2) / denominator
    half = z / denominator * sqrt(4 * rows * share * (1 - share) + z**2)
    return 0.0 if correct == 0 else centre - half, 1.0 if correct == rows else centre + half


def share_text(correct: int, rows: int) -> str:
    """Returns a share with its 95 % interval, for consoles and tables of numbers: `0.4583 [0.3717, 0.5475]`."""
    if not rows:
        return "no rows"
    low, high = wilson_interval(correct, rows)
    return f"{correct / rows:.4f} [{low:.4f}, {high:.4f}]"


def percent_text(correct: int, rows: int) -> str:
    """Returns a share with its 95 % interval, in per cent: `45.8 % [37.2, 54.8]`."""
    return f"{100 * correct / rows:.1f} % {interval_text(correct, rows)}" if rows else "no rows"


def interval_text(correct: int, rows: int) -> str:
    """Returns the 95 % interval of a share alone, in per cent: `[37.2, 54.8]`."""
    low, high = wilson_interval(correct, rows)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"

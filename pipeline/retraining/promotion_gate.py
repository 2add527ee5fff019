"""Whether a challenger takes the champion's place: only on evidence, and never where a part of it got worse.

Both are looked at on the same rows, which neither was trained on. Every check says what it found and what it allows.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import RecipeError
from pipeline.evaluation.metrics import calibration
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.significance import mcnemar

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gate:
    """What is asked of a challenger.

    level: how often, at most, one that is no better passes by chance; minimum_gain: of top-1, in [0, 1]. recall_drop:
    most that the recall of any class may fall, in [0, 1]; more is refused where it is no chance, at `level` over all
    classes together. calibration_rise: most that the expected calibration error may grow. latency_ratio: most that the
    time of a prediction may grow by, where both were measured.
    """

    level: float = 0.05
    minimum_gain: float = 0.0
    recall_drop: float = 0.02
    calibration_rise: float = 0.1
    latency_ratio: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.level < 0.5:
            raise RecipeError(f"gate level={self.level} must lie in (0, 0.5)")
        for name in ("minimum_gain", "recall_drop", "calibration_rise"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"gate {name}={getattr(self, name)} must lie in [0, 1]")
        if self.latency_ratio < 1:
            raise RecipeError(f"gate latency_ratio={self.latency_ratio} must be 1 or more")


@dataclass(frozen=True)
class Check:
    """One of them. found, allowed: numbers of the check's own kind; text: what it says."""

    name: str
    passed: bool
    found: float
    allowed: float
    text: str


@dataclass(frozen=True)
class Decision:
    """What came of it."""

    promote: bool
    checks: tuple[Check, ...]

    @property
    def reason(self) -> str:
        """One sentence: what was decided, and by what."""
        failed = [check.text for check in self.checks if not check.passed]
        if failed:
            return f"kept the champion: {'; '.join(failed)}"
        return f"promoted: {'; '.join(check.text for check in self.checks[:1])}"

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {"promote": self.promote, "reason": self.reason, "checks": [asdict(check) for check in self.checks]}


def decide(
    champion: Predictions, challenger: Predictions, classes: tuple[str, ...], gate: Gate,
    latency_seconds: tuple[float, float] | None = None,
) -> Decision:  # fmt: skip
    """champion, challenger: of the same rows in the same order; latency_seconds: an image's, of both."""
    if not np.array_equal(champion.row, challenger.row) or not np.array_equal(champion.label, challenger.label):
        raise ValueError("champion and challenger were looked at on different rows")
    checks = [
        better(champion.correct, challenger.correct, gate),
        weakest_class(champion.correct, challenger.correct, champion.label, classes, gate),
        _calibrated(champion, challenger, gate),
    ]
    if latency_seconds is not None:
        checks.append(_fast(latency_seconds, gate))
    return Decision(all(check.passed for check in checks), tuple(checks))


def better(champion: Bools, challenger: Bools, gate: Gate) -> Check:
    """The gain, by McNemar's exact test, one-sided: of the rows on which just one is right, are the challenger's more
    than chance gives (McNemar, 1947)? And is it as much as is asked?"""
    test = mcnemar(champion, challenger, "greater")
    won, lost, p = test["only_second"], test["only_first"], test["p"]
    gain = (won - lost) / len(champion)
    passed = p <= gate.level and gain >= gate.minimum_gain
    text = f"{100 * gain:+.2f} points on {len(champion):,} images ({won:,} won, {lost:,} lost, p = {p:.2g})"
    if p > gate.level:
        text += f", which may be chance (level {gate.level:g})"
    elif gain < gate.minimum_gain:
        text += f", less than the {100 * gate.minimum_gain:g} points asked for"
    return Check("gain", passed, p, gate.level, text)


def weakest_class(
    champion: Bools, challenger: Bools, labels: npt.NDArray[np.int64], classes: tuple[str, ...], gate: Gate
) -> Check:
    """The class whose recall has fallen most for certain: by the lower bound of the fall, one-sided, at the level over
    all classes (Bonferroni). The bound is Agresti and Min's for paired shares (Statistics in Medicine 24, 2005)."""
    from scipy.stats import norm

    present = np.unique(labels)
    z = float(norm.ppf(1 - gate.level / len(present)))
    worst: tuple[float, float, str] = (-np.inf, 0.0, "")
    for number in present:
        of_class = labels == number
        rows = int(of_class.sum())
        lost = float((champion & ~challenger)[of_class].sum())
        won = float((~champion & challenger)[of_class].sum())
        fall = (lost - won) / (rows + 2)  # half a row more in each cell, as they have it
        spread = np.sqrt((won + lost + 1) - (lost - won) ** 2 / (rows + 2)) / (rows + 2)
        worst = max(worst, (fall - z * spread, (lost - won) / rows, classes[number]))
    bound, fall, name = worst
    passed = bool(bound <= gate.recall_drop)
    text = f"recall of {name} {100 * -fall:+.1f} points"
    text += "" if passed else f", a fall of more than the {100 * gate.recall_drop:g} points allowed, and no chance"
    return Check("recall of each class", passed, float(bound), gate.recall_drop, text)


def _calibrated(champion: Predictions, challenger: Predictions, gate: Gate) -> Check:
    before, after = (calibration(each.probabilities[:, 0], each.correct)["ece"] for each in (champion, challenger))
    passed = after <= before + gate.calibration_rise
    text = f"calibration error {before:.3f} -> {after:.3f}"
    text += "" if passed else f", a rise of more than {gate.calibration_rise:g}"
    return Check("calibration", passed, after - before, gate.calibration_rise, text)


def _fast(seconds: tuple[float, float], gate: Gate) -> Check:
    ratio = seconds[1] / seconds[0]
    passed = ratio <= gate.latency_ratio
    text = f"{1e3 * seconds[0]:.2f} -> {1e3 * seconds[1]:.2f} ms an image"
    text += "" if passed else f", more than {gate.latency_ratio:g} times as long"
    return Check("latency", passed, ratio, gate.latency_ratio, text)

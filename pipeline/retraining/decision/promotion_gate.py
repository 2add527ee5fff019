"""The promotion gate: statistical tests that decide whether a challenger replaces the champion.

Both models are compared on the same rows, which neither was trained on. The challenger must be better beyond chance,
and may not get worse in any class, in calibration or in latency by more than the gate allows.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import RecipeError
from pipeline.core.shares import counted
from pipeline.evaluation.metrics import calibration
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.significance import mcnemar, paired_bounds

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gate:
    """The limits of the promotion gate. They are part of a retraining run's identity: no field may be renamed."""

    level: float = 0.05  # significance level in (0, 0.5): how often a challenger that is no better may pass
    minimum_gain: float = 0.0  # of top-1, in [0, 1]
    # Largest fall of any class's recall, in [0, 1]. A larger one is refused if it is significant at `level` over all
    # classes together.
    recall_drop: float = 0.02
    calibration_rise: float = 0.1  # largest rise of the expected calibration error, in [0, 1]
    latency_ratio: float = 1.5  # largest ratio of the seconds per image, if both were measured; 1 or more
    # Limit of the expected number of false promotions a year, above 0: each night tests the gain at a level of its own,
    # `level` at most (`sequential.py`). None tests each night at `level`, however many there are.
    false_promotions_per_year: float | None = 1.0
    # Share of val that is kept apart as the split test, in [0, 1): the lock-box, which only promotions read.
    lock_box: float = 0.0
    night_level: float | None = None  # of the test of the gain, tonight; None for `level`. Never part of the identity

    def __post_init__(self) -> None:
        if not 0 < self.level < 0.5:
            raise RecipeError(f"gate level={self.level} must lie in (0, 0.5)")
        for name in ("minimum_gain", "recall_drop", "calibration_rise"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"gate {name}={getattr(self, name)} must lie in [0, 1]")
        if self.latency_ratio < 1:
            raise RecipeError(f"gate latency_ratio={self.latency_ratio} must be 1 or more")
        per_year = self.false_promotions_per_year
        if per_year is not None and not 0 < per_year < math.inf:
            raise RecipeError(f"gate false_promotions_per_year={per_year} must be above 0, such as 1")
        if not 0 <= self.lock_box < 1:
            raise RecipeError(f"gate lock_box={self.lock_box} must be 0 (none), or a share below 1 such as 0.2")

    @property
    def gain_level(self) -> float:
        """Significance level of the test of the gain."""
        return self.level if self.night_level is None else self.night_level

    def identity(self) -> dict[str, Any]:
        """Returns the fields, without the newer ones where they change nothing: old workspaces don't know them."""
        values = asdict(self)
        del values["night_level"]
        for name, nothing in (("false_promotions_per_year", None), ("lock_box", 0.0)):
            if values[name] == nothing:
                del values[name]
        return values


@dataclass(frozen=True)
class Check:
    """The result of one check. It is written to `decision.json`."""

    name: str
    passed: bool
    found: float  # the statistic that was tested: a p-value, a difference or a ratio
    allowed: float  # its limit, in the same unit
    text: str  # for people: what was found
    rule: str = ""  # for people: when the check fails


@dataclass(frozen=True)
class RecallChange:
    """The change of one class's recall, challenger minus champion, with its interval.

    low, high: the one-sided bounds, each at the gate's level divided by the number of classes (Bonferroni), by Agresti
    and Min (Statistics in Medicine 24, 2005) for differences of paired proportions. All are shares, not points.
    """

    name: str
    rows: int
    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is promoted, and the checks that decided it.

    correct: {"champion": rows, "challenger": rows} that each classifies correctly, of those compared; without a
    champion only the challenger's. changes: of each class's recall, the most doubtful first. remark: what else the
    reason says, such as which classes have changed.
    """

    promote: bool
    checks: tuple[Check, ...]
    correct: dict[str, int] = field(default_factory=dict)
    changes: tuple[RecallChange, ...] = ()
    remark: str = ""

    @property
    def reason(self) -> str:
        """One sentence: the decision, and the checks that it rests on."""
        failed = [check.text for check in self.checks if not check.passed]
        rest = [self.remark] if self.remark else []
        if failed:
            return f"kept the champion: {'; '.join(failed + rest)}"
        return f"promoted: {'; '.join([check.text for check in self.checks[:1]] + rest)}"

    def as_json(self) -> dict[str, Any]:
        """Returns the decision as JSON values."""
        checks = [asdict(check) for check in self.checks]
        return {"promote": self.promote, "reason": self.reason, "checks": checks, "correct": self.correct}


def decide(
    champion: Predictions, challenger: Predictions, classes: tuple[str, ...], gate: Gate,
    latency_seconds: tuple[float, float] | None = None,
) -> Decision:  # fmt: skip
    """Returns the decision of all checks.

    champion, challenger: predictions for the same rows in the same order. latency_seconds: per image, of champion and
    challenger; None leaves the check out. Raises ValueError if the rows differ.
    """
    if not np.array_equal(champion.row, challenger.row) or not np.array_equal(champion.label, challenger.label):
        raise ValueError("the predictions of champion and challenger are of different rows")
    rights = champion.correct, challenger.correct
    changes = recall_changes(*rights, champion.label, classes, gate)
    checks = [check_gain(*rights, gate), _check_recall(changes, gate), _check_calibration(champion, challenger, gate)]
    if latency_seconds is not None:
        checks.append(_check_latency(latency_seconds, gate))
    correct = {"champion": int(rights[0].sum()), "challenger": int(rights[1].sum())}
    return Decision(all(check.passed for check in checks), tuple(checks), correct, changes)


def check_gain(champion: Bools, challenger: Bools, gate: Gate) -> Check:
    """Returns whether the challenger is better beyond chance and by the minimum gain.

    McNemar's exact test, one-sided (McNemar, 1947): of the rows about which exactly one model is right, are more the
    challenger's than chance gives? champion, challenger: bool [N], whether each is right about a row.
    """
    test = mcnemar(champion, challenger, "greater")
    won, lost, p = test["only_second"], test["only_first"], test["p"]
    gain = (won - lost) / len(champion)
    passed = p <= gate.gain_level and gain >= gate.minimum_gain
    text = f"{100 * gain:+.2f} points on {len(champion):,} images ({won:,} won, {lost:,} lost, p = {p:.2g})"
    if won <= lost:
        text += ", no gain"
    elif p > gate.gain_level:
        text += f", which may be chance (level {gate.gain_level:.3g})"
    elif gain < gate.minimum_gain:
        text += f", less than the {100 * gate.minimum_gain:g} points asked for"
    rule = f"fails unless p is at most {gate.gain_level:.3g}"
    rule += f" and the gain at least {100 * gate.minimum_gain:g} points" if gate.minimum_gain else ""
    return Check("gain", passed, p, gate.gain_level, text, rule)


def check_recall(
    champion: Bools, challenger: Bools, labels: npt.NDArray[np.int64], classes: tuple[str, ...], gate: Gate
) -> Check:
    """Returns whether no class's recall has fallen by more than the gate allows; names the worst class.

    The statistic of a class is the one-sided lower bound of its fall: `RecallChange.high` with the sign reversed.
    champion, challenger: bool [N], whether each is right about a row. labels: int64 [N].
    """
    return _check_recall(recall_changes(champion, challenger, labels, classes, gate), gate)


def recall_changes(
    champion: Bools, challenger: Bools, labels: npt.NDArray[np.int64], classes: tuple[str, ...], gate: Gate
) -> tuple[RecallChange, ...]:
    """Returns the change of each class's recall, the most likely fall first. Arguments: as for `check_recall`."""
    present = np.unique(labels)
    changes = list[RecallChange]()
    for label in present:
        of_class = labels == label
        rows = int(of_class.sum())
        lost = int((champion & ~challenger)[of_class].sum())
        won = int((~champion & challenger)[of_class].sum())
        bounds = paired_bounds(won, lost, rows, gate.level / len(present))
        changes.append(RecallChange(classes[label], rows, (won - lost) / rows, *bounds))
    return tuple(sorted(changes, key=lambda each: (each.high, each.change)))


def _fall(change: RecallChange) -> str:
    """Returns the fall of a class's recall: `3.0 points (interval of the change [-5.1, -0.9])`."""
    interval = f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return f"{-100 * change.change:.1f} points (interval of the change {interval})"


def _check_recall(changes: tuple[RecallChange, ...], gate: Gate) -> Check:
    worst, lowest = changes[0], min(changes, key=lambda each: each.change)
    passed = -worst.high <= gate.recall_drop
    if not passed:
        others = sum(-each.high > gate.recall_drop for each in changes) - 1
        text = f"the recall of {worst.name} fell by {_fall(worst)}, "
        text += f"certainly by more than the {100 * gate.recall_drop:g} points allowed"
        text += f"; so did that of {counted(others, 'other class', 'other classes')}" if others else ""
    elif lowest.change < 0:
        text = f"the largest fall is that of {lowest.name}, by {_fall(lowest)}"
    else:
        text = "no class has a lower recall"
    rule = f"fails if the whole interval of a class lies below {-100 * gate.recall_drop:+g} points"
    return Check("recall of each class", passed, -worst.high, gate.recall_drop, text, rule)


def _check_calibration(champion: Predictions, challenger: Predictions, gate: Gate) -> Check:
    before, after = (calibration(each.probabilities[:, 0], each.correct)["ece"] for each in (champion, challenger))
    passed = after <= before + gate.calibration_rise
    text = f"calibration error {before:.3f} -> {after:.3f}"
    text += "" if passed else f", a rise of more than {gate.calibration_rise:g}"
    rule = f"fails if it rises by more than {gate.calibration_rise:g}"
    return Check("calibration", passed, after - before, gate.calibration_rise, text, rule)


def _check_latency(seconds: tuple[float, float], gate: Gate) -> Check:
    ratio = seconds[1] / seconds[0]
    passed = ratio <= gate.latency_ratio
    text = f"{1e3 * seconds[0]:.2f} -> {1e3 * seconds[1]:.2f} ms an image"
    text += "" if passed else f", more than {gate.latency_ratio:g} times as long"
    rule = f"fails if the challenger takes more than {gate.latency_ratio:g} times as long"
    return Check("latency", passed, ratio, gate.latency_ratio, text, rule)

"""Checks of the gate where classes were added, removed or merged: no loss on shared ones, and recall of new ones.

Each check holds for itself at the gate's level. No correction for their number is needed: the challenger must pass all
of them (intersection-union test, Berger, Technometrics 24, 1982).
"""

from dataclasses import replace

import numpy as np

from pipeline.core.shares import counted
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.significance import exact_bounds, paired_bounds
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining.classes import ClassRules
from pipeline.retraining.decision.promotion_gate import Bools, Check, Decision, Gate


def with_changed_classes(
    decision: Decision, shared: tuple[Predictions, Predictions] | None, challenger: Predictions,
    class_map: ClassMap, rules: ClassRules, gate: Gate,
) -> Decision:  # fmt: skip
    """Returns the decision of a run in which classes were added, removed or merged since the champion.

    A gain isn't asked for, since a challenger that knows more has more ways to be wrong: on the classes that both know
    it may not lose more than `rules.shared_drop`. Each new class must reach its recall.

    decision: of the checks on the rows of classes that both know. shared: predictions of champion and challenger for
    these rows; None if there are none. challenger: its predictions for all rows that count.
    """
    checks = list(decision.checks)
    if shared is not None and rules.shared_drop:
        gain = next(check for check in checks if check.name == "gain")
        if not gain.passed:
            champion, other = (each.correct for each in shared)
            checks[checks.index(gain)] = check_no_loss(champion, other, gate.level, rules.shared_drop)
    minimum = rules.new_class_recall
    for name in class_map.added:
        right = challenger.correct[challenger.label == class_map.classes.index(name)]
        least = 1 / len(class_map.classes) if minimum is None else minimum
        checks.append(check_new_class(name, right, gate.level, least, is_chance=minimum is None))
    return replace(decision, promote=all(check.passed for check in checks), checks=tuple(checks))


def check_no_loss(champion: Bools, challenger: Bools, level: float, drop: float) -> Check:
    """Returns whether the challenger's top-1 is at most `drop` lower for certain, though it need not be higher.

    A test of non-inferiority: the whole one-sided interval of the paired difference (`paired_bounds`) lies above -drop.
    champion, challenger: bool [N], whether each is right about a row.
    """
    won, lost = int((~champion & challenger).sum()), int((champion & ~challenger).sum())
    rows, change = len(champion), (won - lost) / len(champion)
    low = min(change, paired_bounds(won, lost, rows, level)[0])
    passed, needed = low > -drop, least_rows_without_loss(level, drop)
    text = f"{'no' if passed else 'a'} loss of {100 * drop:g} points or more on the classes that both know"
    text += "" if passed else " isn't ruled out"
    text += f": {100 * change:+.2f} on {counted(rows, 'image')} ({won:,} won, {lost:,} lost), at worst {100 * low:+.2f}"
    text += f"; too few images to judge, {needed:,} or more are needed" if not passed and rows < needed else ""
    rule = (
        f"classes have changed, so no gain is asked for: fails unless the lower bound is above {-100 * drop:+g} points"
    )
    return Check("no loss", passed, -low, drop, text, rule)


def least_rows_without_loss(level: float, drop: float) -> int:
    """Returns the fewest images with which no loss can be certain, if the models agree about all of them.

    drop: the largest loss allowed, in (0, 1). The lower bound of `paired_bounds` is -z / (N + 2) then.
    """
    from scipy.special import ndtri

    return max(1, int(np.floor(-float(ndtri(level)) / drop - 2)) + 1)


def check_new_class(name: str, right: Bools, level: float, minimum: float, is_chance: bool) -> Check:
    """Returns whether the recall of a class that the champion doesn't know is above a minimum for certain.

    The lower bound of the exact binomial interval at `level`, one-sided (Clopper and Pearson, Biometrika 26, 1934), has
    to lie above. right: bool [N], whether the challenger is right about each validation image of the class; N may be 0.
    is_chance: whether the minimum is that of a guess, for the text.
    """
    rows, correct = len(right), int(right.sum())
    asked = f"{100 * minimum:.3g} %" + (", a guess" if is_chance else "")
    rule = f"fails unless the lower bound of its recall is above {asked}"
    low = exact_bounds(correct, rows, level)[0] if rows else 0.0
    passed = low > minimum
    text = f"{correct:,} of {counted(rows, 'validation image')} of {name} right, "
    text += f"recall {100 * correct / rows:.1f} %, at least {100 * low:.1f} %" if rows else "no recall can be measured"
    if minimum >= 1:
        text += ": the only class is always right, so that is no more than a guess; give --new-class-recall"
    elif not passed and rows < (needed := least_rows(level, minimum)):
        text += f": too few images to judge, {needed:,} or more are needed"
    elif not passed:
        text += f": not above {asked}, for certain"
    return Check(f"new class {name}", passed, low, minimum, text, rule)


def least_rows(level: float, minimum: float) -> int:
    """Returns the fewest images of a class with which it can pass: all right, the lower bound is `level` ** (1/N).

    minimum: in [0, 1).
    """
    rows = 1
    while exact_bounds(rows, rows, level)[0] <= minimum:
        rows = max(rows + 1, int(np.log(level) / np.log(minimum)))
    return rows

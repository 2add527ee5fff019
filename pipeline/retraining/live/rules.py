"""The rules by which a candidate is promoted or dropped, and by which a champion goes back to the version before."""

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.core.shares import percent_text, wilson_interval
from pipeline.evaluation.significance import mcnemar_p
from pipeline.retraining.decision.promotion_gate import Check
from pipeline.retraining.live.anytime import below_p, paired_p
from pipeline.retraining.live.limits import LABELS_AFTER_RETURN, LiveRule

Action = Literal["wait", "promote", "drop", "keep", "return"]


@dataclass(frozen=True)
class Alone:
    """One version in use."""

    images: int = 0  # different usable ones, of the window, that it was asked about
    failures: int = 0  # of them, those without an answer
    labelled: int = 0  # of those that it answered
    correct: int = 0
    month: tuple[int, int, int] = (0, 0, 0)  # the newest with labels, counting from 1; labelled; correct


@dataclass(frozen=True)
class Pair:
    """Two versions on the same images: the first is or was live, the second may follow or has followed it."""

    images: int = 0  # different usable ones of the window, as failures, answers and seconds
    failures: tuple[int, int] = (0, 0)  # of them, those without an answer of each
    answered: int = 0  # by both
    disagreements: int = 0  # of those that both answered
    seconds: tuple[float, float] | None = None  # for an image; None if they weren't measured
    labelled: int = 0  # of those that both answered
    correct: tuple[int, int] = (0, 0)
    only_first: int = 0  # labelled images about which only the first is right
    only_second: int = 0
    certified_gain: float = 0.0  # of the second's certified accuracy over the first's, 0 or more
    month: tuple[int, int, int] = (0, 0, 0)  # the newest with labels, counting from 1; only_first; only_second


@dataclass(frozen=True)
class Verdict:
    """What a rule says. checks: all that could be made; those that failed are the reason, if there are any."""

    action: Action
    reason: str
    checks: tuple[Check, ...] = ()


def judge_candidate(
    alone: Alone, certified: tuple[int, int], pair: Pair, rule: LiveRule, after_return: bool = False
) -> Verdict:
    """Returns whether a candidate is promoted, dropped or waits for more images or labels.

    alone: the candidate. certified: (correct, rows) of its certified evaluation. pair: champion and candidate.
    Failures, disagreement and latency count from `min_images` on, labels always. A candidate that would go back as soon
    as it was champion is dropped. after_return: whether labels must speak for it (`candidates.needs_labels`): on
    LABELS_AFTER_RETURN of them or more it must be right as often as the champion.
    """
    seen = pair.images >= rule.min_images
    checks = [*_checks_in_use(pair, rule, rule.max_disagreement), *_latency(pair, rule)] if seen else []
    checks += _paired(pair, _level(rule), "the champion", "the candidate")
    failed = [check.text for check in checks if not check.passed]
    as_champion = judge_champion(alone, certified, pair, rule)
    if not failed and as_champion.action == "return":
        failed = [f"as champion it would go back: {as_champion.reason}"]
        checks = list(as_champion.checks)
    if failed:
        return Verdict("drop", "; ".join(failed), tuple(checks))
    if not seen:
        return Verdict("wait", f"{pair.images:,} of {rule.min_images:,} images seen", tuple(checks))
    least = max(rule.min_labels, LABELS_AFTER_RETURN) if after_return else rule.min_labels
    if pair.labelled < least:
        return Verdict("wait", f"{pair.labelled:,} of {least:,} labels known", tuple(checks))
    if after_return and pair.correct[1] < pair.correct[0]:
        text = f"{pair.correct[1]:,} right of {pair.labelled:,} labelled images, the champion {pair.correct[0]:,}"
        return Verdict("wait", f"{text}; after a return it must be no worse", tuple(checks))
    return Verdict("promote", "; ".join(check.text for check in checks), tuple(checks))


def judge_champion(alone: Alone, certified: tuple[int, int], pair: Pair, rule: LiveRule) -> Verdict:
    """Returns whether the champion goes back to the version before ("return") or stays ("keep").

    alone: the champion. certified: (correct, rows) of its certified evaluation. pair: the version before and the
    champion. Where the labels say for certain that the champion is the better one of the pair, its accuracy is no
    reason to go back: the images have become harder.
    """
    level = _level(rule)
    checks = [] if alone.images < rule.min_images else [_failures(alone.failures, alone.images, "the champion", rule)]
    if pair.images >= rule.min_images:
        checks.append(_disagreement(pair, rule.return_disagreement, "the version before"))
    checks += _paired(pair, level, "the version before", "the champion")
    is_better = paired_p(pair.only_second, pair.only_first) <= level
    checks += _fall((alone.correct, alone.labelled), certified, rule.max_fall, level, is_better)
    checks += _newest_month(alone, certified, pair, rule.max_fall, level)
    failed = [check.text for check in checks if not check.passed]
    if failed:
        return Verdict("return", "; ".join(failed), tuple(checks))
    return Verdict("keep", "; ".join(check.text for check in checks) or "too little is known", tuple(checks))


def _level(rule: LiveRule) -> float:
    """Returns the level of each of four parts, which together hold at `live_level`: two tests, the paired one and that
    of the accuracy, each once for all labels, and once for the months from the second one on.
    """
    return rule.live_level / 4


def _newest_month(alone: Alone, certified: tuple[int, int], pair: Pair, most: float, level: float) -> list[Check]:
    """Returns both tests on the newest month's labels alone, so that years of good ones hide no fall.

    Month k >= 2 has the level `level / (k (k - 1))`. Each month's test is always valid, and these levels add up to
    `level`, whatever the months have to do with each other (Bonferroni).
    """
    checks = list[Check]()
    month, lost, won = pair.month
    if month >= 2:
        p, least = paired_p(lost, won), level / (month * (month - 1))
        text = f"in month {month} {won:,} won, {lost:,} lost, sequential p = {p:.2g}"
        text += "" if p > least else f": worse than the version before for certain (level {least:.2g})"
        rule = f"fails if the sequential p is at most {least:.2g}"
        checks.append(Check("newest month, paired", p > least, p, least, text, rule))
    month, labelled, correct = alone.month
    if month >= 2:
        least = level / (month * (month - 1))
        is_better = pair.month[0] == month and paired_p(won, lost) <= level
        found = _fall((correct, labelled), certified, most, least, is_better)
        checks += [replace(each, name="newest month", text=f"in month {month} {each.text}") for each in found]
    return checks


def _checks_in_use(pair: Pair, rule: LiveRule, most: float) -> list[Check]:
    return [_failures(pair.failures[1], pair.images, "the candidate", rule), _disagreement(pair, most, "the champion")]


def _failures(failures: int, images: int, name: str, rule: LiveRule) -> Check:
    share = failures / images
    text = f"{name} gave no answer for {failures:,} of {images:,} images"
    return _limit("failures", share, rule.max_failures, text, f"{100 * share:.2g} %", f"{100 * rule.max_failures:g} %")


def _disagreement(pair: Pair, most: float, other: str) -> Check:
    share = pair.disagreements / pair.answered if pair.answered else 0.0
    most = min(1.0, most + pair.certified_gain)
    text = f"another class than {other} for {pair.disagreements:,} of {pair.answered:,} images"
    return _limit("disagreement", share, most, text, f"{100 * share:.3g} %", f"{100 * most:.3g} %")


def _latency(pair: Pair, rule: LiveRule) -> list[Check]:
    if pair.seconds is None:
        return []
    first, second = pair.seconds
    ratio, most = second / first, rule.max_latency_ratio
    text = f"{1e3 * first:.2f} -> {1e3 * second:.2f} ms an image"
    return [_limit("latency", ratio, most, text, f"{ratio:.2f} times as long", f"{most:g}")]


def _limit(name: str, found: float, allowed: float, text: str, shown: str, most: str) -> Check:
    passed = found <= allowed
    text += f" ({shown})" if passed else f" ({shown}, more than {most})"
    return Check(name, passed, found, allowed, text, f"fails above {most}")


def _paired(pair: Pair, level: float, first: str, second: str) -> list[Check]:
    """Returns the paired test: is the second model worse than the first one on the same labelled images?"""
    if not pair.labelled:
        return []
    p = paired_p(pair.only_first, pair.only_second)
    accuracies = [percent_text(correct, pair.labelled) for correct in pair.correct]
    mcnemar = mcnemar_p(pair.only_second, pair.only_first, "greater")
    text = f"on {pair.labelled:,} labelled images {first} {accuracies[0]}, {second} {accuracies[1]} ("
    text += f"{pair.only_second:,} won, {pair.only_first:,} lost, sequential p = {p:.2g}, McNemar's p = {mcnemar:.2g})"
    text += "" if p > level else f": worse for certain (level {level:g})"
    return [
        Check("live accuracy, paired", p > level, p, level, text, f"fails if the sequential p is at most {level:g}")
    ]


def _fall(
    counts: tuple[int, int], certified: tuple[int, int], most: float, level: float, is_better: bool
) -> list[Check]:
    """Returns the test of the champion's accuracy against its certified one, of which the interval's low end counts.

    counts: (correct, labelled images).
    """
    if not counts[1]:
        return []
    least = wilson_interval(*certified)[0] - most
    p = below_p(*counts, least)
    passed = p > level or is_better
    text = f"live accuracy {percent_text(*counts)} of {counts[1]:,} labelled images, "
    text += f"certified {percent_text(*certified)}"
    if p <= level:
        text += f": below {100 * least:.1f} % for certain (sequential p = {p:.2g})"
        text += ", but ahead of the version before" if is_better else ""
    rule = f"fails if it is more than {100 * most:g} points below the certified interval, with p at most {level:.2g}"
    return [Check("live accuracy", passed, p, level, text, rule)]

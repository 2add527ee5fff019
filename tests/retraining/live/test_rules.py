"""The rules for models in use, as tables of counts."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.core.errors import RecipeError
from pipeline.retraining.live.limits import LiveRule
from pipeline.retraining.live.rules import Alone, Pair, judge_candidate, judge_champion

RULE = LiveRule(min_images=100)
GOOD = Pair(100, (0, 0), 100, 20, (0.001, 0.001))


@pytest.mark.parametrize(
    ("changes", "action", "words"),
    [
        ({}, "promote", "another class than the champion for 20 of 100 images (20 %)"),
        ({"images": 99}, "wait", "99 of 100 images seen"),
        ({"images": 0, "answered": 0, "disagreements": 0}, "wait", "0 of 100"),
        ({"disagreements": 25}, "promote", "25 of 100"),  # the limit itself passes
        ({"disagreements": 26}, "drop", "(26 %, more than 25 %)"),
        ({"disagreements": 60, "certified_gain": 0.41}, "promote", "60 of 100"),  # it is 41 points better
        ({"disagreements": 67, "certified_gain": 0.41}, "drop", "(67 %, more than 66 %)"),
        ({"disagreements": 26, "images": 99}, "wait", "99 of 100"),  # too few to tell
        ({"failures": (0, 1)}, "promote", "no answer for 1 of 100"),
        ({"failures": (0, 2)}, "drop", "no answer for 2 of 100 images (2 %, more than 1 %)"),
        ({"failures": (0, 100), "answered": 0, "disagreements": 0, "seconds": None}, "drop", "100 of 100"),
        ({"failures": (50, 0)}, "promote", ""),  # the champion's
        ({"seconds": (0.001, 0.002)}, "promote", "1.00 -> 2.00 ms an image"),
        ({"seconds": (0.001, 0.0021)}, "drop", "2.10 times as long, more than 2"),
        ({"seconds": None}, "promote", ""),
        ({"labelled": 60, "correct": (50, 35), "only_first": 17, "only_second": 2}, "drop", "worse for certain"),
        ({"labelled": 60, "correct": (50, 35), "only_first": 17, "only_second": 2, "images": 60}, "drop", "17 lost"),
        ({"labelled": 60, "correct": (50, 46), "only_first": 6, "only_second": 2}, "promote", "6 lost"),  # chance
    ],
)  # fmt: skip
def test_a_candidate(changes: dict[str, Any], action: str, words: str) -> None:
    verdict = judge_candidate(Alone(), (900, 1000), replace(GOOD, **changes), RULE)
    assert verdict.action == action, verdict
    assert words in verdict.reason


def test_a_candidate_waits_for_labels_if_asked_to() -> None:
    rule = replace(RULE, min_labels=30)
    few, enough = (replace(GOOD, labelled=number, correct=(20, 20)) for number in (29, 30))
    assert judge_candidate(Alone(), (900, 1000), few, rule).reason == "29 of 30 labels known"
    assert judge_candidate(Alone(), (900, 1000), enough, rule).action == "promote"


@pytest.mark.parametrize(
    ("labelled", "correct", "action", "words"),
    [
        (99, (90, 90), "wait", "99 of 100 labels known"),
        (100, (90, 90), "promote", ""),
        (100, (90, 89), "wait", "89 right of 100 labelled images, the champion 90; after a return it must be no worse"),
    ],
)
def test_after_a_return_a_candidate_needs_labels(
    labelled: int, correct: tuple[int, int], action: str, words: str
) -> None:
    pair = replace(GOOD, labelled=labelled, correct=correct)
    verdict = judge_candidate(Alone(), (900, 1000), pair, RULE, after_return=True)
    assert verdict.action == action
    assert words in verdict.reason
    assert judge_candidate(Alone(), (900, 1000), pair, RULE).action == "promote"


def test_a_candidate_that_would_go_back_at_once_is_dropped() -> None:
    """Labels of images that the champion hasn't seen speak against it."""
    verdict = judge_candidate(Alone(500, 0, 200, 120), (900, 1000), GOOD, RULE)
    assert verdict.action == "drop"
    assert "as champion it would go back: live accuracy 60.0 %" in verdict.reason


@pytest.mark.parametrize(
    ("alone", "pair", "action", "words"),
    [
        (Alone(), Pair(), "keep", "too little is known"),
        (Alone(500, 0, 200, 180), Pair(), "keep", "live accuracy 90.0 %"),
        (Alone(500, 0, 200, 165), Pair(), "keep", "certified 90.0 %"),  # below, but not for certain
        (Alone(500, 0, 200, 120), Pair(), "return", "below 83.0 % for certain"),
        (Alone(500, 6, 0, 0), Pair(), "return", "gave no answer for 6 of 500 images (1.2 %, more than 1 %)"),
        (Alone(99, 99, 0, 0), Pair(), "keep", ""),  # too few
        (Alone(), Pair(200, (0, 0), 200, 101), "return", "another class than the version before for 101 of 200"),
        (Alone(), Pair(200, (0, 0), 200, 100), "keep", ""),
        (Alone(), Pair(9, (0, 0), 9, 9), "keep", ""),
        (Alone(), Pair(40, (0, 0), 40, 20, None, 40, (35, 20), 17, 2), "return", "worse for certain"),
        (Alone(), Pair(40, (0, 0), 40, 20, None, 40, (35, 30), 9, 4), "keep", "9 lost"),
        # Both became worse, the version before more so: to go back would not help.
        (Alone(500, 0, 200, 120), Pair(200, (0, 0), 200, 60, None, 200, (80, 120), 10, 50), "keep", "but ahead of"),
    ],
)  # fmt: skip
def test_a_champion(alone: Alone, pair: Pair, action: str, words: str) -> None:
    verdict = judge_champion(alone, (900, 1000), pair, RULE)
    assert verdict.action == action, verdict
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("alone", "pair", "action", "words"),
    [  # after 100,000 labels at 95 % a fall to 50 % needs 18,000 more of the whole
        ((1, 400, 200), (0, 0, 0), "keep", ""),  # the first month is judged by the whole alone
        ((2, 100, 50), (0, 0, 0), "return", "in month 2 live accuracy 50.0 %"),
        ((2, 100, 88), (0, 0, 0), "keep", "in month 2 live accuracy 88.0 %"),
        ((36, 100, 50), (0, 0, 0), "return", "in month 36 live accuracy"),
        ((36, 40, 25), (0, 0, 0), "keep", ""),  # enough in month 2 alone
        ((2, 40, 25), (0, 0, 0), "return", ""),
        ((3, 100, 50), (3, 2, 40), "keep", "but ahead of the version before"),
        ((3, 100, 50), (2, 2, 40), "return", ""),  # it was ahead in another month
        ((0, 0, 0), (2, 40, 5), "return", "in month 2 5 won, 40 lost"),
        ((0, 0, 0), (2, 20, 15), "keep", "in month 2 15 won, 20 lost"),
        ((0, 0, 0), (1, 40, 5), "keep", ""),
    ],
)
def test_years_of_good_labels_hide_no_fall(
    alone: tuple[int, int, int], pair: tuple[int, int, int], action: str, words: str
) -> None:
    years = Alone(5000, 0, 100_400, 95_200, alone), Pair(month=pair)
    verdict = judge_champion(years[0], (940, 1000), years[1], RULE)
    assert verdict.action == action, verdict
    assert words in verdict.reason


def test_all_tests_together_hold_at_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the limits on p that reviews of a candidate and of a champion have, in 10,000 months, the sum is the level."""
    monkeypatch.setattr("pipeline.retraining.live.rules.paired_p", lambda lost, won: 0.5)
    limits = dict[str, float]()
    for month in range(1, 10_001):
        alone, pair = Alone(0, 0, 10, 9, (month, 10, 9)), replace(GOOD, images=0, labelled=10, month=(month, 1, 1))
        verdicts = judge_champion(alone, (9, 10), pair, RULE), judge_candidate(alone, (9, 10), pair, RULE)
        for check in [*verdicts[0].checks, *verdicts[1].checks]:
            limits[check.name + (str(month) if "month" in check.name else "")] = check.allowed
    assert sum(limits.values()) == pytest.approx(RULE.live_level, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_images": 0}, "min-images=0 must be 1 or more"),
        ({"window_images": 0}, "window-images=0 must be 1 or more"),
        ({"min_labels": -1}, "min-labels=-1 must be 0 or more"),
        ({"max_disagreement": 1.5}, r"max-disagreement=1.5 must lie in \[0, 1\]"),
        ({"live_level": 0.5}, "live-level=0.5 must lie in"),
        ({"max_latency_ratio": 0.9}, "must be 1 or more"),
        ({"return_disagreement": 0.1}, "a candidate would be promoted and taken back"),
    ],
)
def test_a_value_out_of_range_raises(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        LiveRule(**changes)

"""The gate where classes have changed: what is compared, no loss on shared classes, recall of new ones."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.significance import exact_bounds
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining.classes import ClassRules
from pipeline.retraining.decision.class_checks import (
    check_new_class,
    check_no_loss,
    least_rows,
    least_rows_without_loss,
)
from pipeline.retraining.decision.promotion import Contest, decide_promotion
from pipeline.retraining.decision.promotion_gate import Decision, Gate

GATE, RULES = Gate(), ClassRules()


def answers(labels: np.ndarray, best: np.ndarray) -> Predictions:
    """Returns predictions of the classes `best` for images of the classes `labels`, each with probability 0.9."""
    rows = np.arange(len(labels))
    classes = np.stack([best, (best + 1) % 3], axis=1)
    sure = np.tile(np.array([0.9, 0.1], np.float32), (len(rows), 1))
    return Predictions(rows, labels, classes, sure, np.zeros(len(rows)), np.empty((len(rows), 0), np.float32))


def test_bounds_are_scipys_and_the_least_rows_are_enough() -> None:
    for right, rows in ((0, 7), (3, 7), (7, 7), (41, 50)):
        found = exact_bounds(right, rows, 0.05)
        for bound, alternative in zip(found, ("greater", "less"), strict=True):
            interval = binomtest(right, rows, alternative=alternative).proportion_ci(0.95)
            assert bound == pytest.approx(interval.low if alternative == "greater" else interval.high, abs=1e-9)
    for minimum in (0.0, 0.01, 0.1, 0.5, 0.9, 0.99):
        rows = least_rows(0.05, minimum)
        assert exact_bounds(rows, rows, 0.05)[0] > minimum
        assert rows == 1 or exact_bounds(rows - 1, rows - 1, 0.05)[0] <= minimum


@pytest.mark.parametrize(("level", "drop"), [(0.05, 0.02), (0.05, 0.3), (0.01, 0.02), (0.05, 0.5), (0.05, 0.9)])
def test_no_loss_says_how_many_images_it_needs_and_they_are_enough(level: float, drop: float) -> None:
    rows = least_rows_without_loss(level, drop)
    right = np.ones(rows, bool)
    assert check_no_loss(right, right, level, drop).passed
    if rows > 1:
        check = check_no_loss(right[1:], right[1:], level, drop)
        assert not check.passed
        assert check.text.endswith(f"too few images to judge, {rows:,} or more are needed")
    lost = check_no_loss(np.ones(500, bool), np.arange(500) >= 100, level, 0.02)
    assert "too few" not in lost.text


def test_one_class_that_is_new_is_refused_without_an_error() -> None:
    check = check_new_class("owl", np.ones(50, bool), 0.05, 1.0, is_chance=True)
    assert not check.passed
    assert "no more than a guess; give --new-class-recall" in check.text


@pytest.mark.parametrize(
    ("right", "rows", "minimum", "passed", "text"),
    [
        (20, 20, 0.5, True, "20 of 20 validation images of owl right, recall 100.0 %, at least 86.1 %"),
        (12, 20, 0.5, False, "not above 50 %, for certain"),
        (4, 4, 0.5, False, "too few images to judge, 5 or more are needed"),
        (0, 0, 0.5, False, "no recall can be measured: too few images to judge, 5 or more are needed"),
        (1, 1, 0.0, True, "1 of 1 validation image of owl right"),
        (0, 30, 0.0, False, "not above 0 %, for certain"),
    ],
)
def test_a_new_class_must_reach_its_recall_for_certain(
    right: int, rows: int, minimum: float, passed: bool, text: str
) -> None:
    check = check_new_class("owl", np.arange(rows) < right, 0.05, minimum, is_chance=False)
    assert check.passed == passed
    assert text in check.text


def test_a_class_that_is_guessed_passes_as_rarely_as_the_level_says() -> None:
    generator = np.random.default_rng(0)
    right = generator.random((4000, 40)) < 0.1
    passed = [check_new_class("owl", each, 0.05, 0.1, is_chance=True).passed for each in right]
    assert 0.01 < np.mean(passed) < 0.05


def test_a_loss_of_the_allowed_size_passes_as_rarely_as_the_level_says() -> None:
    """Of 2,000 images 6 % are told apart; the challenger is worse by the 2 points that are allowed at most."""
    generator = np.random.default_rng(0)

    def share(loss: float) -> float:
        told = generator.random((1000, 2000))
        won, lost = told < 0.03 - loss / 2, told > 1 - 0.03 - loss / 2
        pairs = zip(lost, won, strict=True)  # the champion is right about the lost ones, the challenger about the won
        return float(np.mean([check_no_loss(*pair, 0.05, 0.02).passed for pair in pairs]))

    assert share(0.02) < 0.06
    assert share(0.0) > 0.9


Case = tuple[tuple[str, ...], dict[str, str], list[int], list[int]]


def contest(old: tuple[str, ...], renamed: dict[str, str], champion: list[int], challenger: list[int]) -> Contest:
    """Returns a contest on 60 images of each of the classes cat, dog and owl.

    champion, challenger: the answers to the images of these classes, as indices of ClassMap.answers.
    """
    class_map = ClassMap(old, ("cat", "dog", "owl"), renamed)
    labels = np.repeat(np.arange(3), 60)
    given = [answers(labels, np.repeat(np.array(best), 60)) for best in (champion, challenger)]
    return Contest(given[0], given[1], class_map.classes, np.ones(180, bool), class_map)


def decided(case: Case, rules: ClassRules = RULES) -> Decision:
    return decide_promotion(contest(*case), GATE, rules=rules)


GROWN: Case = (("cat", "dog"), {}, [0, 1, 0], [0, 1, 2])
TABLE = [
    # case, promoted, rows compared, checks that failed
    (GROWN, True, 120, []),
    ((("cat", "dog"), {}, [0, 1, 0], [0, 1, 0]), False, 120, ["new class owl"]),  # it isn't learnt
    # at the cost of dog
    ((("cat", "dog"), {}, [0, 1, 0], [0, 2, 2]), False, 120, ["no loss", "recall of each class", "calibration"]),
    ((("cat", "dog"), {}, [0, 0, 0], [0, 1, 2]), True, 120, []),  # better on what both know
    # another name alone: a gain is asked
    ((("cat", "dog", "eule"), {"eule": "owl"}, [0, 1, 2], [0, 1, 2]), False, 180, ["gain"]),
    ((("cat", "dog", "eule"), {"eule": "owl"}, [0, 1, 0], [0, 1, 2]), True, 180, []),
    ((("cat", "tabby", "dog", "owl"), {"tabby": "cat"}, [0, 1, 2], [0, 1, 2]), True, 180, []),  # merged, and as good
    ((("cat", "dog", "owl", "yak"), {}, [0, 1, 3], [0, 1, 2]), True, 180, []),  # the champion answers a removed class
    ((("cat", "tabby", "dog", "owl"), {"tabby": "cat"}, [0, 1, 2], [0, 1, 1]), False, 180,
     ["no loss", "recall of each class", "calibration"]),
    ((("cat", "dog", "owl"), {}, [0, 1, 2], [0, 1, 2]), False, 180, ["gain"]),  # nothing has changed: a gain is asked
    ((("ant", "bee"), {}, [3, 4, 3], [0, 1, 2]), True, 180, []),  # no class in common: as a first model
]  # fmt: skip


@pytest.mark.parametrize(("case", "promoted", "rows", "failed"), TABLE)
def test_the_gate_judges_shared_classes_in_pairs_and_new_ones_by_recall(
    case: Case, promoted: bool, rows: int, failed: list[str]
) -> None:
    decision = decided(case)
    assert [check.name for check in decision.checks if not check.passed] == failed
    assert decision.promote == promoted
    assert contest(*case).rows.sum() == rows


def test_the_reason_and_the_counts_say_what_was_compared() -> None:
    decision = decided(GROWN)
    assert decision.correct == {"champion": 120, "challenger": 120}
    assert decision.reason.startswith(
        "promoted: no loss of 2 points or more on the classes that both know: +0.00 on 120 images (0 won, 0 lost), at "
    )
    assert decision.reason.endswith("; new class 'owl'")
    strict = decided(GROWN, rules=replace(RULES, shared_drop=0.0))
    assert not strict.promote
    assert "no gain" in strict.reason
    demanding = decided(GROWN, rules=replace(RULES, new_class_recall=0.96))
    assert [check.name for check in demanding.checks if not check.passed] == ["new class owl"]


def test_images_that_a_model_was_trained_on_count_nowhere() -> None:
    whole = contest(*GROWN)
    unseen = np.ones(180, bool)
    unseen[120:178] = False  # two images of the new class are left
    decision = decide_promotion(replace(whole, unseen=unseen), GATE)
    assert "too few images to judge, 3 or more are needed" in decision.checks[-1].text

"""What the decision rests on: the rows that count, the first model, and the data sets that were trained on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.retraining import registry
from pipeline.retraining.decision import promotion
from pipeline.retraining.decision.promotion_gate import Gate
from tests.support.trained.predictions import predictions
from tests.support.trained.retraining import planned_run

GATE = Gate()


def test_the_first_model_must_be_better_than_a_guess() -> None:
    good, bad = predictions(np.arange(400) % 4 > 0), predictions(np.arange(400) % 10 == 0)
    assert promotion.decide_without_champion(good, 10, GATE).promote
    refused = promotion.decide_without_champion(bad, 10, GATE)
    assert not refused.promote
    assert "no better than that" in refused.reason


def test_only_rows_that_neither_model_trained_on_count(digits_dataset: str) -> None:
    data = load(digits_dataset)
    assert promotion.unseen_rows(digits_dataset, replace(data, leaked={}), []).all()
    keys = read_rows(digits_dataset, data.split("val"), np.arange(3), ("key",))["key"].to_pylist()
    leaked = replace(data, leaked={"val": tuple(keys)})
    assert (~promotion.unseen_rows(digits_dataset, leaked, [])).sum() == 3
    champion, challenger = predictions(np.zeros(359, bool)), predictions(np.ones(359, bool))
    fair = np.zeros(359, dtype=bool)
    with pytest.raises(RecipeError, match="no validation image is left"):
        promotion.Contest(champion, challenger, data.classes, fair)
    fair[:100] = True
    decision = promotion.decide_promotion(promotion.Contest(champion, challenger, data.classes, fair), GATE)
    assert decision.promote
    assert "100 images" in decision.reason


def test_the_champions_own_data_set_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drift is measured against it; its ancestors' only say what can't be judged on."""
    parents = {"c": "b", "b": "a", "a": ""}
    data = {"c": "w/datasets/1", "b": "w/datasets/9", "a": "w/datasets/1"}
    monkeypatch.setattr(registry, "get", lambda place, name: SimpleNamespace(parent=parents[name]))
    monkeypatch.setattr(promotion, "read_metrics", lambda uri: {"dataset": {"uri": data[uri.rsplit("/", 1)[1]]}})
    champion = registry.Move("champion", 1, "c", 0, "", 0.0)
    assert promotion.earlier_datasets(planned_run("w", champion=champion)) == ["w/datasets/1", "w/datasets/9"]
    assert promotion.earlier_datasets(planned_run("w")) == []


def test_the_class_that_holds_most_images_of_a_missing_one_is_found(digits_dataset: str) -> None:
    data = load(digits_dataset)
    renamed = replace(data, classes=("round", *data.classes[1:]))
    zero, one = data.classes[:2]
    assert promotion.moved_classes(digits_dataset, data, digits_dataset, renamed, [zero]) == {zero: "round"}
    without = replace(renamed, splits={"val": data.splits["val"]})  # a fifth of the images
    assert promotion.moved_classes(digits_dataset, data, digits_dataset, without, [zero, one]) == {}

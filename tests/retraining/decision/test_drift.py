"""Drift between two versions of a data set."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.dataset.manifest import load
from pipeline.retraining.decision.drift import Thresholds, assess, class_mix, feature_distance


def test_drift_is_measured_and_named(digits_dataset: str) -> None:
    data = load(digits_dataset)
    train = data.split("train")
    counts = list(train.rows_per_class)
    moved = replace(train, rows_per_class=(counts[0] - 50, counts[1] + 50, *counts[2:]))
    mixed = replace(data, splits={**data.splits, "train": moved})
    assert class_mix(data, data) == 0
    assert class_mix(data, mixed) == pytest.approx(50 / sum(counts))
    generator = np.random.default_rng(0)
    before = generator.standard_normal((4000, 8)).astype(np.float32)
    assert feature_distance(before, before) == 0
    assert feature_distance(before, before + 2) == pytest.approx(2, rel=0.05)
    assert feature_distance(3 * before, 3 * before + 6) == pytest.approx(2, rel=0.05)
    quiet, loud = assess(0.01, None, 0.2, Thresholds()), assess(0.3, 0.4, 0.9, Thresholds())
    assert quiet.warnings == ()
    assert len(loud.warnings) == 3

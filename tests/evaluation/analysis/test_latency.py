"""The latency of networks: one number for one network, whoever has trained it."""

from dataclasses import replace

import pytest

from pipeline.evaluation.analysis.latency import prediction_seconds
from pipeline.models.load import find_model


@pytest.mark.ray
def test_models_of_the_same_network_have_the_same_latency(trained: str) -> None:
    model = find_model(trained)
    flipped = replace(model, recipe=replace(model.recipe, test_views="flip-and-shift"))
    one, other, six_views = prediction_seconds([model, model, flipped])
    assert one == other
    assert six_views > 2 * one

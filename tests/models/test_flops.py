"""Counted operations, against published numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.config.presets import recipes
from pipeline.loader.sample_order import training_order
from pipeline.loader.sampling.selection import Selection
from pipeline.models.factory import make_model
from pipeline.models.flops import operations_per_image, training_operations
from pipeline.training.selection.proxy import proxy_operations


@pytest.mark.parametrize(
    ("name", "size_px", "epochs", "published"),
    [
        ("airbench94", 32, 8, 0.29e15),
        ("airbench95", 32, 15, 1.39e15),
        ("airbench96", 32, 31, 7.46e15 * 31 / 40),
        ("airbench96-slim", 32, 37, 4.91e15),
    ],
)
def test_operations_are_the_published_ones(name: str, size_px: int, epochs: int, published: float) -> None:
    counted = training_operations(make_model(name, 10, size_px), [size_px] * epochs, 50_000)
    assert counted["total"] == pytest.approx(published, rel=0.03)


def test_operations_of_a_filtered_run_are_the_published_ones() -> None:
    """airbench96_faster: 3.1 PFLOP, the proxy's counted."""
    recipe = recipes["cifar10-96"]
    assert recipe.proxy_filter
    order = training_order(recipe, (50_000,), 0)
    kept = replace(order, selection=Selection(recipe.proxy_filter, np.zeros((recipe.epochs, 50_000), dtype=np.bool_)))
    net = make_model(recipe.model, 10, 32)
    counted = training_operations(net, [32] * recipe.epochs, kept.trained_rows)["total"]
    chosen = proxy_operations(recipe, recipe.proxy_filter, 10, order)
    assert counted + chosen == pytest.approx(3.1e15, rel=0.01)
    # By hand: 34.2 MFLOP forward; backward 54.0, without gradients of the frozen layer and of the input of the second.
    assert chosen == pytest.approx(44 * 50_000 * (34.17e6 + 53.95e6 / 4), rel=1e-3)


def test_operations_of_a_forward_pass_are_a_third() -> None:
    net = make_model("airbench94", 10, 32)
    assert operations_per_image(net, 32, backward=False) == pytest.approx(operations_per_image(net, 32) / 3, rel=0.02)


def test_operations_of_a_resnet_50_are_three_times_its_known_forward_pass() -> None:
    """4.09e9 multiply-adds for 224 px (He et al. say 3.8e9 without the stride's place in the 3x3)."""
    with torch.device("meta"):
        net = make_model("resnet50", 1000, 224)
    assert operations_per_image(net, 224) == pytest.approx(3 * 2 * 4.09e9, rel=0.02)


def test_operations_of_depthwise_convolutions_are_three_times_the_forward_pass() -> None:
    """EfficientNet-B0 takes 0.39e9 multiply-adds for 224 px (Tan and Le, arXiv 1905.11946, table 2)."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        net = make_model("timm:efficientnet_b0", 1000, 224)
    assert operations_per_image(net, 224) == pytest.approx(3 * 2 * 0.39e9, rel=0.05)

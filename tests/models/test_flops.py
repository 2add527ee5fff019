"""Counted operations, against published numbers."""

import pytest
import torch

from pipeline.models.factory import make_model
from pipeline.models.flops import operations_per_image, training_operations


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

"""Explanations: against gradients by hand, and the check that they depend on the network, which can fail."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.analysis import explain
from pipeline.evaluation.analysis.sanity_check import check_sanity, randomise, rank_correlation
from pipeline.models.factory import make_model


class _TopLeft(nn.Module):
    """Class 1 is brightness of the top left quarter, class 0 of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.conv(images))
        corner = maps[:, 1, :8, :8].sum(dim=(1, 2))
        return torch.stack([maps[:, 0].sum(dim=(1, 2)) - corner, corner], dim=1)


def test_both_methods_find_the_only_place_that_counts() -> None:
    images, one = torch.rand(3, 3, 16, 16) + 0.1, torch.ones(3, dtype=torch.long)
    shares = explain.integrated_gradients(_TopLeft(), images, one)
    assert shares[:, 8:].max() == 0
    assert shares[:, :8, 8:].max() == 0
    np.testing.assert_allclose(shares[:, :8, :8], images[:, :, :8, :8].sum(dim=1), rtol=1e-4)  # linear: x times slope
    assert explain.grad_cam(_TopLeft(), images, one).shape == (3, 16, 16)


def test_integrated_gradients_add_up_to_the_logit() -> None:
    """Completeness (Sundararajan et al., axiom 2), for a network with no negative share."""
    images, one = torch.rand(4, 3, 16, 16) + 0.1, torch.ones(4, dtype=torch.long)
    net = _TopLeft()
    shares = explain.integrated_gradients(net, images, one).sum(axis=(1, 2))
    np.testing.assert_allclose(shares, (net(images)[:, 1] - net(0 * images)[:, 1]).detach(), rtol=1e-4)


@pytest.mark.parametrize("model", ["airbench-small", "vgg11", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_every_kind_of_network_can_be_looked_into(model: str) -> None:
    net = explain.without_inplace(make_model(model, 10, 32))
    images, classes = torch.randn(2, 3, 32, 32), torch.tensor([3, 4])
    for method in explain.METHODS.values():
        found = method(net, images, classes)
        assert found.shape == (2, 32, 32)
        assert found.min() >= 0
    filters = explain.first_filters(net)
    assert filters is not None
    assert filters.min() >= 0
    assert filters.max() <= 1


def test_an_explanation_that_ignores_the_network_fails_the_check() -> None:
    torch.manual_seed(0)
    net, images, classes = make_model("fast-resnet", 10, 32).eval(), torch.randn(6, 3, 32, 32), torch.arange(6)
    edges = {"edges": lambda net, images, classes: images.abs().sum(dim=1).numpy()}
    assert [line.depends for line in check_sanity(net, images, classes, edges)] == [False, False]


def test_an_explanation_that_is_made_of_the_weights_passes_the_check() -> None:
    def weights(net: nn.Module, images: Tensor, classes: Tensor) -> np.ndarray:
        kernel = next(p for p in reversed(list(net.parameters())) if p.dim() > 1).detach().numpy().ravel()
        return np.stack([np.resize(kernel, (32, 32))] * len(images))

    net = make_model("fast-resnet", 10, 32).eval()
    lines = check_sanity(net, torch.randn(2, 3, 32, 32), torch.arange(2), {"weights": weights})
    assert [(line.random, line.depends) for line in lines] == [("last layer", True), ("all layers", True)]
    assert rank_correlation(np.arange(18.0).reshape(2, 3, 3), 5 + np.arange(18.0).reshape(2, 3, 3) ** 3) == 1
    assert rank_correlation(np.ones((1, 3, 3)), np.arange(9.0).reshape(1, 3, 3)) == 0


def test_random_weights_are_random_where_they_are_said_to_be() -> None:
    net = make_model("fast-resnet", 10, 32)
    head, all_layers = (randomise(net, head_only) for head_only in (True, False))
    changed = [
        sum(not torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())
        for other in (head, all_layers)
    ]
    assert 1 <= changed[0] <= 2 < changed[1]
    before = torch.get_rng_state()
    randomise(net, False)
    assert torch.equal(before, torch.get_rng_state())

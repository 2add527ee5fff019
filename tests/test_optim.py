import math
from typing import get_args

import pytest
import torch
from torch import nn

from pipeline.optim import (
    Muon,
    learning_rate_factor,
    make_optimizers,
    orthogonalised,
    sample_losses,
    set_learning_rates,
)
from pipeline.recipes import OptimizerName


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log_sum = math.log(math.exp(2) + 1 + math.exp(-1))
    assert sample_losses("cross-entropy", logits, torch.tensor([0])).item() == pytest.approx(log_sum - 2)
    # alpha = 0.3: the targets are 0.8, 0.1, 0.1
    expected = log_sum - (0.8 * 2 + 0.1 * 0 + 0.1 * -1)
    assert sample_losses("cross-entropy", logits, torch.tensor([0]), 0.3).item() == pytest.approx(expected)


def test_mse_is_taken_between_probabilities_and_one_hot_targets() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    expected = (0.3**2 + 0.2**2 + 0.1**2) / 3
    assert sample_losses("mse", logits, torch.tensor([0])).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("step", [1 / 3, 2 / 3, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", [1 / 3, 2 / 3, *[(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]]),
        ("one-cycle", [1 / 3, 2 / 3, *[1 - k / 8 for k in range(8)]]),
    ],
)
def test_schedules_against_a_table_of_ten_steps_with_two_of_warmup(schedule, factors) -> None:  # type: ignore[no-untyped-def]
    assert [learning_rate_factor(schedule, step, 10, 2) for step in range(10)] == pytest.approx(factors)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def take_steps(net: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 4) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        loss = net(torch.randn(6, 3, 8, 8)).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


REFERENCES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_each_name_is_torchs_optimiser(name: OptimizerName) -> None:
    ours, theirs = small_net(), small_net()
    take_steps(ours, make_optimizers(ours, name, 0.05, 0.9, 0.0))
    take_steps(theirs, [REFERENCES[name](theirs.parameters())])
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_every_name_makes_an_optimiser() -> None:
    assert set(get_args(OptimizerName)) == {*REFERENCES, "muon"}


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_trainable_parameter_has_one_optimiser_and_norms_are_not_decayed(name: OptimizerName) -> None:
    net = small_net()
    net[0].bias.requires_grad_(False)
    groups = [group for optimizer in make_optimizers(net, name, 0.1, 0.9, 0.5) for group in optimizer.param_groups]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in net.parameters() if parameter.requires_grad)
    decayed = {id(p) for group in groups if group.get("weight_decay") for p in group["params"]}
    assert decayed == {id(net[4].weight)} | ({id(net[0].weight)} if name != "muon" else set())


def test_orthogonalised_is_near_the_polar_factor() -> None:
    for shape in ((8, 30), (30, 8), (16, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalised(matrix, num_iterations=5))
        assert values.min() > 0.5
        assert values.max() < 1.4
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        polar, ours = u @ v, orthogonalised(matrix, num_iterations=5)
        assert (polar * ours).sum() / (polar.norm() * ours.norm()) > 0.97


def test_muon_steps_by_the_learning_rate_on_rescaled_kernels() -> None:
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    before = kernel.detach() * (8**0.5 / kernel.detach().norm())
    kernel.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    Muon([kernel], lr=0.1, momentum=0.6).step()
    step = (before - kernel.detach()) / 0.1
    # the first step's direction is grad + 0.6 * grad: orthogonalised, scale falls out
    assert torch.allclose(step, orthogonalised((1.6 * kernel.grad).flatten(1)).view_as(step), atol=1e-4)


def test_the_schedule_scales_every_group_from_its_own_peak() -> None:
    optimizers = make_optimizers(small_net(), "muon", 0.24, 0.6, 0.0)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    for factor in (0.5, 0.25):
        set_learning_rates(optimizers, factor)
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        assert rates == pytest.approx([factor * peak for peak in peaks])

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from pipeline.config.choices import MODELS, OptimizerName
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.models.factory import make_model
from pipeline.models.losses import sample_losses
from pipeline.training.optim.factory import describe_groups, make_optimizers
from pipeline.training.optim.optimizers import (
    Lamb,
    Lars,
    Muon,
    newton_schulz,
    newton_schulz_in_products,
    orthogonalised,
)
from pipeline.training.optim.schedules import learning_rate_factor, set_learning_rates


def recipe_with(name: OptimizerName, **changes: Any) -> Recipe:
    """A recipe of which only what optimisers take is looked at."""
    plain = {"learning_rate": 0.05, "head_rate": 0.0, "bias_rate": 0.0, "momentum": 0.9, "weight_decay": 0.0}
    return replace(make_recipe("digits", epochs=1), optimizer=name, **{**plain, **changes})


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
        ("parabola", [1 / 3, 2 / 3, *[(1 - k / 8) ** 2 for k in range(8)]]),
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
    take_steps(ours, make_optimizers(ours, recipe_with(name)))
    take_steps(theirs, [REFERENCES[name](theirs.parameters())])
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_every_name_makes_an_optimiser() -> None:
    assert set(get_args(OptimizerName)) == {*REFERENCES, "muon", "lars", "lamb"}


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_trainable_parameter_has_one_optimiser_and_norms_are_not_decayed(name: OptimizerName) -> None:
    net = small_net()
    net[0].bias.requires_grad_(False)
    groups = [
        group
        for optimizer in make_optimizers(net, recipe_with(name, weight_decay=0.5))
        for group in optimizer.param_groups
    ]
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


def test_the_iteration_in_three_products_is_the_one_in_eight_operations() -> None:
    matrices = torch.randn(3, 8, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    torch.testing.assert_close(newton_schulz_in_products(matrices), newton_schulz(matrices))


def test_muon_steps_by_the_learning_rate_on_rescaled_kernels() -> None:
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    before = kernel.detach() * (8**0.5 / kernel.detach().norm())
    kernel.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    Muon([kernel], lr=0.1, momentum=0.6).step()
    step = (before - kernel.detach()) / 0.1
    # the first step's direction is grad + 0.6 * grad: orthogonalised, scale falls out
    assert torch.allclose(step, orthogonalised((1.6 * kernel.grad).flatten(1)).view_as(step), atol=1e-4)


def test_the_schedule_scales_every_group_from_its_own_peak() -> None:
    recipe = recipe_with("muon", learning_rate=0.24, head_rate=2.0, bias_rate=0.2)
    optimizers = make_optimizers(small_net(), recipe)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert sorted(peaks) == [0.2, 0.24, 2.0]
    for step, factor in ((5, 0.5), (8, 0.2)):
        assert set_learning_rates(optimizers, recipe, step, 10, 10) == pytest.approx(factor)
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        assert rates == pytest.approx([factor * peak for peak in peaks])


def test_a_whitening_bias_is_trained_for_some_epochs_only() -> None:
    """airbench94: over 3 of 8 epochs of 25 steps, to zero, while the others fall over all 200."""
    recipe = make_recipe("cifar10-94")
    optimizers = make_optimizers(make_model("airbench94", 10, 32), recipe)
    for step in (0, 30, 74, 75, 199):
        set_learning_rates(optimizers, recipe, step, 200, 25)
        rates = {group["name"]: group["lr"] for optimizer in optimizers for group in optimizer.param_groups}
        assert rates["kernels"] == pytest.approx(0.24 * (1 - step / 200))
        assert rates["matrices"] == pytest.approx(1340 * (1 - step / 200))
        assert rates["biases and norms"] == pytest.approx(106 * (1 - step / 200))
        assert rates["whitening bias"] == pytest.approx(106 * max(0, 1 - step / 75))


def test_a_whitening_bias_with_a_rate_of_its_own_follows_the_schedule_and_is_frozen() -> None:
    """airbench95 (KellerJordan/cifar10-airbench, legacy/airbench95.py), its rates for the mean of 1,024 losses."""
    recipe = make_recipe("cifar10-95")
    optimizers = make_optimizers(make_model("airbench95", 10, 32), recipe)
    step_length = 1 + 1 / (1 - 0.85)
    rising = [(step, 0.2 + 0.8 * step / 169) for step in (0, 84, 146, 147, 169)]
    for step, factor in [*rising, (452, 1 - 0.93 / 2), (734, 1 - 0.93 * 565 / 566)]:
        set_learning_rates(optimizers, recipe, step, 735, 49)
        groups = {group["name"]: group for optimizer in optimizers for group in optimizer.param_groups}
        rate = 10 / step_length * factor
        assert groups["kernels"]["lr"] == groups["matrices"]["lr"] == pytest.approx(rate)
        assert groups["biases and norms"]["lr"] == pytest.approx(64 * rate)
        assert groups["whitening bias"]["lr"] == pytest.approx(rate if step < 3 * 49 else 0)
        decay = 0.0153 / step_length  # of the weights in a step at the peak rate, in every group
        assert all(group["initial_lr"] * group["weight_decay"] == pytest.approx(decay) for group in groups.values())


def test_schedules_that_fall_may_end_above_zero() -> None:
    ends = {"constant": 1.0, "step": 0.01, "cosine": 0.1, "one-cycle": 0.1, "parabola": 0.1}
    for name, expected in ends.items():
        factors = [learning_rate_factor(name, step, 1000, 0, end=0.1) for step in range(1001)]
        assert factors[0] == pytest.approx(1.0)
        assert factors[-1] == pytest.approx(expected)
        assert factors == sorted(factors, reverse=True)


def test_warm_up_may_begin_above_zero() -> None:
    factors = [learning_rate_factor("one-cycle", step, 10, 3, 0.2) for step in range(4)]
    assert factors == pytest.approx([0.4, 0.6, 0.8, 1.0])


# --- against the papers' equations, in float64 -------------------------------------------------------------------


def gradients(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter, slopes: list[torch.Tensor]) -> torch.Tensor:
    for slope in slopes:
        weight.grad = slope.clone()
        optimizer.step()
    return weight.detach()


def test_lars_is_its_papers_algorithm() -> None:
    """You et al. 1708.03888, algorithm 1, with eta = 0.001, momentum 0.9, weight decay 0.01, rate 0.5."""
    slopes, weight = gradients(5, 4, 6), nn.Parameter(gradients(1, 4, 6)[0])
    w, v = weight.detach().clone(), torch.zeros(4, 6, dtype=torch.float64)
    for g in slopes:
        rate = 0.001 * w.square().sum().sqrt() / (g.square().sum().sqrt() + 0.01 * w.square().sum().sqrt())
        v = 0.9 * v + 0.5 * rate * (g + 0.01 * w)
        w = w - v
    out = stepped(Lars([weight], lr=0.5, momentum=0.9, weight_decay=0.01), weight, slopes)
    assert torch.allclose(out, w, rtol=1e-12, atol=1e-14)


def test_lamb_is_its_papers_algorithm() -> None:
    """You et al. 1904.00962, algorithm 2, with bias correction; phi is the identity."""
    slopes, weight = gradients(5, 4, 6), nn.Parameter(gradients(1, 4, 6)[0])
    w = weight.detach().clone()
    m = v = torch.zeros(4, 6, dtype=torch.float64)
    for t, g in enumerate(slopes, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-6) + 0.02 * w
        w = w - 0.1 * (w.norm() / r.norm()) * r
    out = stepped(Lamb([weight], lr=0.1, weight_decay=0.02), weight, slopes)
    assert torch.allclose(out, w, rtol=1e-12, atol=1e-14)


def test_lamb_without_decay_is_adam() -> None:
    slopes = gradients(6, 5)
    ours, theirs = (nn.Parameter(gradients(1, 5)[0]) for _ in range(2))
    one = stepped(Lamb([ours], lr=0.1), ours, slopes)
    other = stepped(torch.optim.Adam([theirs], lr=0.1, eps=1e-6), theirs, slopes)
    assert torch.allclose(one, other, rtol=1e-9)


def test_muon_is_its_published_iteration() -> None:
    """Nesterov momentum 0.6, three quintic steps, kernels rescaled to sqrt(out), in float64."""
    slopes, weight = gradients(4, 6, 2, 3, 3), nn.Parameter(gradients(1, 6, 2, 3, 3)[0])
    w = weight.detach().clone()
    buffer = torch.zeros_like(w)
    for g in slopes:
        buffer = 0.6 * buffer + g
        x = (g + 0.6 * buffer).reshape(6, 18)
        x = x / (x.norm() + 1e-7)
        for _ in range(3):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        w = w * (6**0.5 / w.norm()) - 0.1 * x.reshape(w.shape)
    assert torch.allclose(stepped(Muon([weight], lr=0.1), weight, slopes), w, rtol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_that_is_a_bias_or_a_norm_decays_in_any_model_of_the_zoo(name: str) -> None:
    with torch.device("meta"):
        model = make_model(name, 10, 32 if name.startswith("airbench") else 224)
    norms = {
        f"{module_name}.{own}"
        for module_name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for own, _ in module.named_parameters(recurse=False)
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (optimizer,) = make_optimizers(model, recipe_with("nesterov", weight_decay=1e-4))
    of_group = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert of_group.keys() == trained
    for parameter, decay in of_group.items():
        spared = parameter.endswith(".bias") or parameter in norms
        assert decay == (0.0 if spared else 1e-4), parameter
    if name == "resnet50":
        assert of_group["layer1.0.downsample.1.weight"] == 0.0
        assert of_group["layer1.0.downsample.0.weight"] == 1e-4
    if name == "resnet18":
        lines = {line["group"]: line for line in describe_groups(model, [optimizer])}
        assert lines["kernels"]["tensors"] == 20
        assert lines["kernels"]["first"] == "conv1.weight"
        assert sum(line["parameters"] for line in lines.values()) == sum(p.numel() for p in model.parameters())

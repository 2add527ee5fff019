"""One step: gradients of micro-batches, and gradients that are too long."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Order
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.optim.sharpness import moved_uphill
from pipeline.training.train_step import TrainStep

KEYS = np.arange(24, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def batch_of(count: int) -> Batch:
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    rows = np.arange(count)
    return Batch(0, rows, images, torch.arange(count) % 4, KEYS[:count], rows, rows[:0])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize(("count", "parts"), [(12, 3), (11, 4), (3, 8)])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(count: int, parts: int, mixup: float) -> None:
    gradients = []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        recipe = make_recipe("cifar10", optimizer="nesterov", learning_rate=0.1, precision="float32",
                             accumulate_steps=accumulate, augment=Augment(mixup_alpha=mixup))  # fmt: skip
        order = Order((count,), 0, count, pairs=bool(mixup))
        step = TrainStep(recipe, net, make_optimizers(net, recipe), order)
        loss, norm = step.gradients(batch_of(count), 0)
        gradients.append([loss, norm, *[parameter.grad for parameter in net.parameters()]])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_too_long_is_cut() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    recipe = make_recipe("cifar10", optimizer="sgd", learning_rate=1.0, bias_rate=1.0, clip_norm=0.01,
                         schedule="constant", precision="float32", weight_decay=0.0)  # fmt: skip
    before = [parameter.detach().clone() for parameter in net.parameters()]
    step = TrainStep(recipe, net, make_optimizers(net, recipe), Order((12,), 0, 12))
    _, norm = step.gradients(batch_of(12), 0)
    assert float(norm) > 0.01
    step.update(norm, 0, 10)
    length = sum((p.detach() - b).square().sum() for p, b in zip(net.parameters(), before, strict=True)) ** 0.5
    assert float(length) == pytest.approx(0.01, rel=1e-3)


def test_sharpness_aware_steps_are_the_papers() -> None:
    """Foret et al. 2010.01412, algorithm 1, by hand: the gradient at w + radius g / |g|, taken from w."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    hand = copy.deepcopy(net)
    recipe = make_recipe("cifar10", optimizer="sgd", learning_rate=0.1, bias_rate=0.1, sam_radius=0.5, weight_decay=0.0,
                         bias_weight_decay=0.0, schedule="constant", precision="float32", accumulate_steps=1,
                         label_smoothing=0.0, augment=Augment())  # fmt: skip
    step = TrainStep(recipe, net, make_optimizers(net, recipe), Order((12,), 0, 12))
    for number in range(3):
        loss, norm = step.gradients(batch_of(12), number)
        step.update(norm, number, 10)
        parameters = list(hand.parameters())
        first = nn.functional.cross_entropy(hand(step.normalise(batch_of(12).images)), batch_of(12).labels)
        slopes = torch.autograd.grad(first, parameters)
        length = torch.sqrt(sum((slope.square().sum() for slope in slopes), torch.zeros(())))
        statistics = copy.deepcopy(hand[1].state_dict())
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.add_(0.5 * slope / length)
        above = nn.functional.cross_entropy(hand(step.normalise(batch_of(12).images)), batch_of(12).labels)
        uphill = torch.autograd.grad(above, parameters)
        with torch.no_grad():
            for parameter, slope, other in zip(parameters, slopes, uphill, strict=True):
                parameter.sub_(0.5 * slope / length + 0.1 * other)
            hand[1].load_state_dict({**hand[1].state_dict(), **{k: v for k, v in statistics.items() if "running" in k}})
        assert float(loss) / 12 == pytest.approx(float(first.detach()), rel=1e-5)
        assert float(above.detach()) > float(first.detach())
    for (name, one), other in zip(net.state_dict().items(), hand.state_dict().values(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_weights_that_moved_along_a_gradient_that_is_not_finite_are_back_where_they_were() -> None:
    net = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    with moved_uphill(net, list(net.parameters()), torch.tensor(float("nan")), 0.1):
        assert net.weight.isnan().all()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), before, strict=True))

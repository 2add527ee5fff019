"""Steps with `found_inf` = 1 change nothing, whichever optimiser takes them, and no host waits to know it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from pipeline.config.choices import OptimizerName
from pipeline.config.presets import make_recipe
from pipeline.models.weight_averages import LookAhead, WeightAverage
from pipeline.training.on_device.waits import count_waits
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.optim.found_inf import honour_found_inf, set_found_inf

Optimizers = list[torch.optim.Optimizer]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 5)).to(memory_format=torch.channels_last)


def named(name: OptimizerName) -> Callable[[nn.Module], Optimizers]:
    recipe = replace(make_recipe("digits"), optimizer=name, learning_rate=0.05, momentum=0.9, weight_decay=0.01)
    return lambda net: make_optimizers(net, recipe)


def fused(make: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], Optimizers]:
    """As `make_optimizers` makes them on a GPU."""
    return lambda net: [honour_found_inf(make(list(net.parameters()), fused=True))]


MAKERS: dict[str, Callable[[nn.Module], Optimizers]] = {
    **{name: named(name) for name in get_args(OptimizerName)},
    "fused sgd": fused(lambda p, **how: torch.optim.SGD(p, lr=0.05, **how)),
    "fused momentum": fused(lambda p, **how: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, **how)),
    "fused adamw": fused(lambda p, **how: torch.optim.AdamW(p, lr=0.05, **how)),
}


def step(net: nn.Module, optimizers: Optimizers, number: int, flag: float | None, spoil: float = 0.0) -> None:
    """A step with gradients of its number; spoil: added to some of them."""
    generator = torch.Generator().manual_seed(number)
    for parameter in net.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)  # in the parameter's memory format, as autograd's
        parameter.grad.flatten()[0] += spoil
    set_found_inf(optimizers, None if flag is None else torch.tensor(flag))
    for optimizer in optimizers:
        # torch's Adam reads its step counter where it isn't fused, which is on CPUs alone.
        reads = isinstance(optimizer, torch.optim.Adam) and not optimizer.defaults["fused"]
        with count_waits() as waits:
            optimizer.step()
        assert reads or not waits["read"], waits.table()


def content(net: nn.Module, optimizers: Optimizers) -> list[bytes]:
    states = [optimizer.state[p] for optimizer in optimizers for p in net.parameters() if p in optimizer.state]
    tensors = [*net.parameters(), *(value for state in states for value in state.values() if value is not None)]
    return [tensor.detach().contiguous().numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("name", MAKERS)
def test_a_flagged_step_leaves_weights_state_and_counters_bit_equal(name: str, spoil: float) -> None:
    net = small_net()
    optimizers = MAKERS[name](net)
    step(net, optimizers, 0, 0.0)
    step(net, optimizers, 1, None)
    before = content(net, optimizers)
    step(net, optimizers, 2, 1.0, spoil)
    assert content(net, optimizers) == before
    step(net, optimizers, 3, 0.0)
    assert content(net, optimizers) != before


@pytest.mark.parametrize("name", MAKERS)
def test_after_a_flagged_first_step_training_goes_on_as_if_it_had_not_been(name: str) -> None:
    one, other = small_net(), small_net()
    ours, theirs = MAKERS[name](one), MAKERS[name](other)
    step(one, ours, 0, 1.0, float("nan"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    for number in (1, 2, 3):
        step(one, ours, number, 0.0)
        step(other, theirs, number, None)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_a_flag_of_zero_gives_the_bits_of_none(name: str) -> None:
    nets = [small_net(), small_net()]
    made = [MAKERS[name](net) for net in nets]
    for number in range(3):
        step(nets[0], made[0], number, 0.0)
        step(nets[1], made[1], number, None)
    assert content(nets[0], made[0]) == content(nets[1], made[1])


@pytest.mark.parametrize("kind", [lambda net: WeightAverage(net, 0.9), lambda net: LookAhead(net, 1)])
def test_a_flagged_step_has_no_part_in_an_average(kind: Callable[[nn.Module], Any]) -> None:
    net = small_net()
    average, zero, one = kind(net), torch.tensor(0.0), torch.tensor(1.0)
    with torch.no_grad(), count_waits() as waits:
        net[0].weight += 1
        average.update(1, 9, found_inf=zero)
        before = [tensor.clone() for tensor in (*average.values.values(), net[0].weight)]
        net[3].running_mean.fill_(float("nan"))
        average.update(2, 9, found_inf=one)
    assert not waits["read"], waits.table()
    assert all(torch.equal(a, b) for a, b in zip(before, (*average.values.values(), net[0].weight), strict=True))


def test_look_ahead_ends_on_its_slow_weights_even_if_the_last_step_is_flagged() -> None:
    net = small_net()
    ahead = LookAhead(net, 5)
    slow = copy.deepcopy(ahead.values)
    with torch.no_grad():
        net[0].weight.fill_(float("nan"))
        ahead.update(9, 9, found_inf=torch.tensor(1.0))
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in slow.items())
    assert all(torch.equal(ahead.values[name], tensor) for name, tensor in slow.items())

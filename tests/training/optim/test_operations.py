"""Operations that the update of a step launches: on a GPU, each costs the host some microseconds."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from jobs.bench.operations import count_step
from pipeline.config.choices import OptimizerName
from pipeline.config.presets import make_recipe
from pipeline.models.factory import make_model
from pipeline.models.weight_averages import LookAhead, WeightAverage
from pipeline.training.on_device.operations import count_operations
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.optim.found_inf import set_found_inf


@pytest.mark.parametrize(("name", "before", "most"), [("lars", 240, 84), ("lamb", 310, 148), ("muon", 230, 150)])
def test_our_optimisers_launch_few_operations(name: OptimizerName, before: int, most: int) -> None:
    """On airbench94, the network of `cifar10-94`. before: at commit a7a8d21, tensor by tensor."""
    torch.manual_seed(0)
    net = make_model("airbench94", 10, 32).to(memory_format=torch.channels_last)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizers(net, replace(make_recipe("cifar10-94"), optimizer=name, weight_decay=1e-4))[0]
    optimizer.step()  # makes the state
    with count_operations() as counts:
        optimizer.step()
    assert most < before
    assert counts.total() <= most, counts


def of_depth(depth: int) -> nn.Module:
    """Returns a network whose parameters have the same shapes for every depth; only their number grows."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(depth)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 8)).to(memory_format=torch.channels_last)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    return net


def operations_of_update(name: OptimizerName, depth: int, flag: torch.Tensor | None) -> int:
    net = of_depth(depth)
    optimizers = make_optimizers(net, replace(make_recipe("digits"), optimizer=name, weight_decay=1e-2))
    averages = WeightAverage(net, 0.9), LookAhead(net, 1)
    for _ in range(2):  # the first one makes the state
        set_found_inf(optimizers, flag)
        with count_operations() as counts:
            for optimizer in optimizers:
                optimizer.step()
            for average in averages:
                average.update(1, 9, flag)
    return counts.total()


@pytest.mark.parametrize("name", [name for name in get_args(OptimizerName) if name != "rmsprop"])
@pytest.mark.parametrize("flagged", [False, True])
def test_the_operations_of_an_update_do_not_grow_with_the_number_of_parameters(
    monkeypatch: pytest.MonkeyPatch, name: OptimizerName, flagged: bool
) -> None:
    """As on a GPU, where torch's optimisers are fused. Its RMSprop isn't, and takes tensors one by one on a CPU."""
    monkeypatch.setattr("pipeline.training.optim.factory._fused", lambda groups: {"fused": True})
    flag = torch.zeros(()) if flagged else None
    assert operations_of_update(name, 3, flag) == operations_of_update(name, 12, flag)


@pytest.mark.parametrize(("recipe", "most"), [("cifar10-94", (1, 105, 7, 88, 0)), ("cifar10-96", (1, 145, 7, 4, 8))])
def test_a_whole_step_launches_no_more_operations_than_the_table_says(recipe: str, most: tuple[int, ...]) -> None:
    """The table of docs/benchmarks.md, which has ResNet-50, too. A loop over tensors or images would exceed it."""
    counts = [names.total() for names in count_step(make_recipe(recipe)).values()]
    assert all(count <= limit for count, limit in zip(counts, most, strict=True)), counts

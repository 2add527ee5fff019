"""Operations that a step of an optimiser launches: on a GPU, each costs the host some microseconds."""

from dataclasses import replace

import pytest
import torch

from pipeline.config.choices import OptimizerName
from pipeline.config.presets import make_recipe
from pipeline.models.factory import make_model
from pipeline.training.optim.factory import make_optimizers
from tests.support.operations import count_operations


@pytest.mark.parametrize(("name", "before", "most"), [("lars", 240, 90), ("lamb", 310, 160), ("muon", 230, 150)])
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

"""The scale of losses in float16 beside torch's own."""

import math
import random

import pytest
import torch

from pipeline.training.on_device.loss_scale import LossScale
from pipeline.training.on_device.waits import count_waits

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_goes_the_way_of_torchs_own(seed: int) -> None:
    draw, weight = random.Random(seed), torch.zeros(2, requires_grad=True)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    ours, optimizer = LossScale(CPU, 2.0**16, growth_steps=3), torch.optim.SGD([weight], lr=1.0)
    for _ in range(60):
        bad = draw.random() < 0.2
        gradient = torch.tensor([1.0, math.inf if bad else 2.0])
        theirs.scale((weight * gradient).sum()).backward()
        theirs.unscale_(optimizer)
        scaled = gradient * ours.scale
        ours.unscale([scaled])
        assert torch.equal(scaled, weight.grad)
        theirs.update()
        with count_waits() as waits:
            ours.update(torch.tensor(float(bad)))
        assert waits.total == 0
        assert ours.scale.item() == theirs.get_scale()
        optimizer.zero_grad()


def test_the_scale_stays_between_one_and_what_float32_holds() -> None:
    ours = LossScale(CPU, 4.0, growth_steps=1)
    scales = []
    for bad in (1.0, 1.0, 1.0, 0.0):
        ours.update(torch.tensor(bad))
        scales.append(ours.scale.item())
    assert scales == [2.0, 1.0, 1.0, 2.0]
    for _ in range(200):
        ours.update(torch.zeros(()))
    assert ours.scale.item() == 2.0**127

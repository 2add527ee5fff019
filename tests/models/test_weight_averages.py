"""Averages of the weights, against their formulas."""

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.models.weight_averages import LookAhead, WeightAverage


def moved(net: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


def test_an_exponential_average_is_its_formula() -> None:
    net = moved(nn.Linear(2, 1, bias=False), 1.0)
    average = WeightAverage(net, 0.9, every_steps=2)
    expected = 1.0
    for step in range(1, 7):
        moved(net, float(step))
        average.update(step, 6)
        expected = 0.9 * expected + 0.1 * step if step % 2 == 0 else expected
    assert average.values["weight"].flatten().tolist() == pytest.approx([expected] * 2)
    assert net.weight.flatten().tolist() == [6.0, 6.0]  # training isn't touched


@pytest.mark.parametrize("power", [2 / 3, 1.0])
def test_a_decay_that_grows_is_timms(power: float) -> None:
    reference: Any = pytest.importorskip("timm.utils.model_ema").ModelEmaV3
    net = moved(nn.Linear(2, 1, bias=False).double(), 1.0)
    ours = WeightAverage(net, 0.75, every_steps=2, warmup_power=power)
    theirs = reference(net, decay=0.75, use_warmup=True, warmup_gamma=1.0, warmup_power=power)
    for step in range(1, 25):
        moved(net, float(step))
        ours.update(step, 24)
        if step % 2 == 0:
            theirs.update(net, step=step // 2)
        torch.testing.assert_close(ours.values["weight"], theirs.module.weight.detach(), rtol=1e-12, atol=1e-12)
    assert ours.values["weight"][0, 0] < 23.5


def test_look_ahead_sets_the_weights_back_now_and_then_and_at_the_end() -> None:
    net = moved(nn.Linear(1, 1, bias=False), 1.0)
    ahead, slow = LookAhead(net, 5), 1.0
    for step in range(1, 13):
        moved(net, 2.0 * step)
        ahead.update(step, 12)
        if step % 5 == 0:
            decay = 0.95**5 * (step / 12) ** 3
            slow = decay * slow + (1 - decay) * 2 * step
            assert net.weight.item() == pytest.approx(slow)
        else:
            assert net.weight.item() == pytest.approx(slow if step == 12 else 2.0 * step)

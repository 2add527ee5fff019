"""Steps whose losses are read later: judged at once on the device, the same on all ranks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training.on_device.rank_zero import RankZero, Request
from pipeline.training.on_device.steps_in_flight import StepsInFlight
from pipeline.training.on_device.waits import count_waits

CPU = torch.device("cpu")
BAD = (math.nan, math.inf, -math.inf)


def add(flight: StepsInFlight, step: int, loss: float, norm: float, **named: Any) -> torch.Tensor | None:
    return flight.add(step, np.array([step]), torch.tensor(loss), torch.tensor(norm), **named)


@pytest.mark.parametrize("loss", [1.5, 3e38, *BAD])
@pytest.mark.parametrize("norm", [0.0, 3e38, *BAD])
@pytest.mark.parametrize("steps", [0, 4])
def test_a_step_that_is_not_finite_is_found_on_the_device_and_by_the_host(steps: int, loss: float, norm: float) -> None:
    flight, good = StepsInFlight(1, CPU, steps), math.isfinite(loss) and math.isfinite(norm)
    with count_waits() as waits:
        found = add(flight, 0, loss, norm)
    assert waits.total == 0
    if good and not steps:
        assert found is None  # known already
    else:
        assert found is not None
        assert (found.dtype, found.ndim, found.item()) == (torch.float32, 0, 0.0 if good else 1.0)
    (result,) = flight.results(1)
    assert result.is_finite == good
    assert (result.step, result.rows.tolist()) == (0, [0])
    assert [result.loss, result.own_loss, result.norm] == pytest.approx([loss, loss, norm], rel=1e-6, nan_ok=True)


def test_results_come_in_order_and_none_is_overwritten_before_it_is_read() -> None:
    flight, seen = StepsInFlight(1, CPU, 3), []
    for step in range(20):
        add(flight, step, float(step), 1.0)
        seen += [(result.step, result.loss) for result in flight.results(step + 1 - flight.steps)]
        assert len(seen) == max(0, step + 1 - 3)
    seen += [(result.step, result.loss) for result in flight.results(20)]
    assert seen == [(step, float(step)) for step in range(20)]


def sums_with(monkeypatch: pytest.MonkeyPatch, others: Sequence[float]) -> None:
    """Makes the sum over ranks include those of another rank: loss, norm, requests."""

    def all_reduce(mine: torch.Tensor) -> None:
        mine += torch.tensor(others, dtype=mine.dtype)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)


@pytest.mark.parametrize("other", [[2.0, 1.0, 0.0], *([bad, 1.0, 0.0] for bad in BAD), *([2.0, b, 0.0] for b in BAD)])
@pytest.mark.parametrize("steps", [0, 2])
def test_ranks_agree_on_what_is_finite(monkeypatch: pytest.MonkeyPatch, steps: int, other: list[float]) -> None:
    sums_with(monkeypatch, other)
    flight, good = StepsInFlight(2, CPU, steps), math.isfinite(sum(other))
    found = add(flight, 0, 3e38, 1.0)
    assert (found is None) if good and not steps else (found is not None and bool(found) != good)
    (result,) = flight.results(1)
    assert result.is_finite == good
    assert result.own_loss == pytest.approx(3e38)
    if math.isfinite(other[0]):
        assert result.loss == float(torch.tensor(3e38).double()) + other[0]  # in float64


def test_requests_of_rank_zero_reach_the_others_with_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On rank 1 of 2: rank 0 asks for a report with step 1, and for a stop with step 3."""
    flight, told, followed = StepsInFlight(2, CPU, 2), RankZero(2), []
    for step, sent in enumerate([0, 2, 0, 1, 0, 0]):
        sums_with(monkeypatch, [1.0, 1.0, sent])
        add(flight, step, 1.0, 1.0, requests=told.outgoing())
        known = step + 1 - flight.steps
        for result in flight.results(known):
            told.receive(result.step, result.requests)
        followed.append(told.due(known))
    nothing = Request()
    assert followed == [nothing, nothing, nothing, Request(report=True), nothing, Request(stop=True)]


def test_what_is_read_early_is_followed_no_earlier_than_on_other_ranks() -> None:
    told = RankZero(2)
    for step, sent in enumerate([0, 1, 2]):
        told.receive(step, sent)
    assert [told.due(step) for step in range(4)] == [Request(), Request(), Request(stop=True), Request(report=True)]


def test_a_rank_that_is_alone_follows_at_once() -> None:
    told = RankZero(1)
    told.request(Request(stop=True))
    assert told.due(-3) == Request(stop=True)
    assert told.due(10) == Request()
    others = RankZero(2)
    others.request(Request(report=True))
    others.request(Request(stop=True))
    assert (others.due(10), others.outgoing(), others.outgoing()) == (Request(), 3, 0)

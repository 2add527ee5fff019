"""What counts as a wait of the host."""

from collections.abc import Callable

import pytest
import torch

from pipeline.training.on_device.waits import count_waits


@pytest.mark.parametrize(
    ("call", "reads", "copies"),
    [
        (lambda x: x.sum().item(), 1, 0),
        (lambda x: bool(x.sum() > 0), 1, 0),
        (lambda x: float(x.sum()), 1, 0),
        (lambda x: x.tolist(), 1, 0),
        (lambda x: x.numpy(), 1, 0),
        (lambda x: x.cpu(), 1, 0),
        (lambda x: x[x > 0], 1, 0),
        (lambda x: torch.nonzero(x), 1, 0),
        (lambda x: x.to("cpu"), 0, 1),
        (lambda x: x.to(torch.device("cpu"), torch.float64), 0, 1),
        (lambda x: x.to("cpu", non_blocking=True), 0, 0),
        (lambda x: x.to(torch.float64), 0, 0),
        (lambda x: torch.where(x > 0, x, 0).sum(), 0, 0),
        (lambda x: x[torch.tensor([1, 0])], 0, 0),
    ],
)
def test_what_would_wait_for_a_gpu_is_counted(call: Callable[[torch.Tensor], object], reads: int, copies: int) -> None:
    x = torch.arange(4.0)
    with count_waits() as waits:
        call(x)
    assert (waits["read"], waits["copy"]) == (reads, copies)
    assert waits.total == reads + copies
    call(x)
    assert waits.total == reads + copies  # nothing is counted after the block


def test_places_are_named_and_backward_passes_are_seen() -> None:
    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float(gradient.sum())

    x = torch.ones(3, requires_grad=True)
    with count_waits() as waits:
        Asks.apply(x).sum().backward()
    assert list(waits.places) == [
        ("read", f"{__name__}:{Asks.backward.__code__.co_firstlineno + 2} _local_scalar_dense")
    ]
    assert "    0.50 read" in waits.table(steps=2)

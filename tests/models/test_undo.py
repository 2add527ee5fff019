"""Updates that are taken back on the device, to the last bit."""

import pytest
import torch

from pipeline.models.undo import Undo

VALUES = [0.0, -0.0, 1.5, float("nan"), float("inf"), -3e-40]


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist()) if tensor.ndim else bits(tensor[None])


def tensors() -> list[torch.Tensor]:
    made = [torch.tensor(VALUES, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    image = torch.arange(48.0).view(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)
    return [*made, torch.tensor(7.0), torch.tensor([2**62, -1]), torch.tensor([True, False]), image]


@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_an_update_is_taken_back_bit_for_bit_or_left(flag: float) -> None:
    held, created = tensors(), torch.tensor([float("nan"), 2.0])
    undo = Undo(held)
    for tensor in held:
        tensor.copy_(tensor.flip(0) if tensor.ndim else torch.tensor(float("nan")))
    updated = [bits(tensor) for tensor in held]
    undo.undo_if(torch.tensor(flag), [created])
    assert [bits(tensor) for tensor in held] == ([bits(tensor) for tensor in tensors()] if flag else updated)
    assert bits(created) == bits(torch.zeros(2) if flag else torch.tensor([float("nan"), 2.0]))


def test_nothing_to_undo_is_nothing() -> None:
    Undo([]).undo_if(torch.tensor(1.0))

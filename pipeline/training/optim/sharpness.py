"""Sharpness-aware minimisation: gradients are taken at weights that are moved uphill first."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved_uphill(model: nn.Module, parameters: list[nn.Parameter], norm: Tensor, radius: float) -> Iterator[None]:
    """Moves the weights along their gradients, `radius` far in all, for a block; gradients are cleared.

    w + radius g / |g| (Foret et al., arXiv 2010.01412, equation 2). norm: |g|, a scalar on the device; nothing waits
    for it. Afterwards the weights have their bits of before, also where the gradient isn't finite. BatchNorm takes no
    statistics in the block: those of the moved weights are others'.
    """
    moved: list[Tensor] = [parameter for parameter in parameters if parameter.grad is not None]
    slopes = [parameter.grad for parameter in moved if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    noting = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.track_running_stats]
    with torch.no_grad():
        torch._foreach_add_(moved, torch._foreach_mul(slopes, radius / (norm + 1e-12)))
    for parameter in moved:
        parameter.grad = None
    for module in noting:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in noting:
            module.track_running_stats = True
        with torch.no_grad():
            torch._foreach_copy_(moved, before)

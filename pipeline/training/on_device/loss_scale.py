"""The scale of losses in float16, decided on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

LOWEST = 1.0
"""The scale at which gradients that aren't finite are no longer the scale's fault."""


class LossScale:
    """The factor that keeps gradients within the range of float16 (Micikevicius et al., arXiv 1710.03740, section 3.2).

    The rule and its numbers are those of torch.amp.GradScaler: half the scale after gradients that aren't finite, twice
    the scale after 2,000 steps without. GradScaler itself asks the device before the update of every optimiser that
    torch hasn't fused; here the optimisers get a flag (`found_inf`), and the host asks nothing. The scale stays at 1 or
    above, and finite.

    tensors: what a checkpoint keeps, float32 scalars on the device: "scale", and "good_steps" since it changed.
    """

    def __init__(self, device: torch.device, initial: float = 2.0**16, growth_steps: int = 2000) -> None:
        self._initial, self._growth_steps = initial, growth_steps
        self.tensors = {"scale": torch.empty((), device=device), "good_steps": torch.empty((), device=device)}
        self.reset()

    @property
    def scale(self) -> Tensor:
        """The factor, float32 scalar: a power of 2, by which a product is exact."""
        return self.tensors["scale"]

    def reset(self) -> None:
        """Sets the scale of a new run."""
        self.tensors["scale"].fill_(self._initial)
        self.tensors["good_steps"].zero_()

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divides gradients by the scale."""
        torch._foreach_mul_(list(gradients), self.scale.reciprocal())

    def update(self, found_inf: Tensor) -> None:
        """Sets the scale for the next step. found_inf: scalar, 1 where gradients weren't finite, else 0."""
        scale, bad = self.scale, found_inf > 0
        good_steps = torch.where(bad, 0.0, self.tensors["good_steps"] + 1)
        grows = (good_steps >= self._growth_steps) & (2 * scale).isfinite()
        scale.copy_(torch.where(bad, (scale / 2).clamp(min=LOWEST), torch.where(grows, 2 * scale, scale)))
        self.tensors["good_steps"].copy_(torch.where(good_steps >= self._growth_steps, 0.0, good_steps))

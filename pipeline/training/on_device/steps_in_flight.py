"""Steps that the host has launched and whose losses it hasn't read: judged on the device, read a few steps later."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.loader.sample_order import Rows
from pipeline.training.on_device.host_copies import HostCopies
from pipeline.training.on_device.loss_scale import LOWEST

STEPS_IN_FLIGHT = 4
"""Steps that the host launches before it reads the loss of the first of them, on a GPU: enough that the GPU always has
work, few enough that a loss that isn't finite is known soon. A guess, not measured."""


@dataclass(frozen=True)
class StepResult:
    """What the host has read of a step. Of several ranks, all but `own_loss` and `norm` are the same on each."""

    step: int
    rows: Rows
    """Rows of this rank's part of the batch, to name its images."""
    loss: float
    """Sum of the sample losses of the global batch."""
    own_loss: float
    """Sum of the sample losses of this rank's part."""
    norm: float
    """Norm of the gradient."""
    is_finite: bool
    """Whether the losses of all ranks and the gradient are finite; otherwise the step changed nothing."""
    scale: float
    """The scale that the losses had in float16; `LOWEST` in other precisions."""
    requests: int
    """What rank 0 tells all ranks (`RankZero`)."""

    @property
    def is_overflow(self) -> bool:
        """Whether the losses were finite, and the gradient would have been with a lower scale."""
        return not self.is_finite and math.isfinite(self.loss) and self.scale > LOWEST


class StepsInFlight:
    """Judges each step on the device, and gives its result when the device has long passed it.

    steps: that the host is ahead before it reads; 0 reads at once, which on a CPU costs nothing, and tells the error of
    a step before the next one is computed. The same on all ranks, which read the same steps at the same time.
    """

    def __init__(self, world_size: int, device: torch.device, steps: int | None = None) -> None:
        self._world_size, self._device = world_size, device
        self.steps = (STEPS_IN_FLIGHT if device.type == "cuda" else 0) if steps is None else steps
        self._copies = HostCopies(3 + 3 * (world_size > 1), self.steps + 1, device)
        self._waiting: deque[tuple[int, Rows]] = deque()
        self._no_scale = torch.full((), LOWEST, device=device)

    def add(
        self, step: int, rows: Rows, loss: Tensor, norm: Tensor, scale: Tensor | None = None, requests: int = 0
    ) -> Tensor | None:
        """Notes a step, and returns its `found_inf`: 1 on the device where it must change nothing, on any rank.

        loss: scalar, the sum of this rank's sample losses; norm: scalar, of the gradient. requests: of rank 0, else 0.
        Returns None if the host knows already that all is finite. All ranks together; `results` follows each call.
        """
        own = torch.stack([loss, norm, self._no_scale if scale is None else scale])
        shared, copied = own, own
        if self._world_size > 1:
            requests_here = torch.full((1,), requests, dtype=torch.float64, device=self._device)
            # A sum is finite only if each rank's number is. In float64, where those of float32 can't overflow.
            shared = torch.cat([own[:2].double(), requests_here])
            torch.distributed.all_reduce(shared)
            copied = torch.cat([own.double(), shared])
        self._copies.start(step, copied.double())
        self._waiting.append((step, rows))
        if not self.steps and self._result(step, rows).is_finite:
            return None
        # x - x is 0 where x is finite, and NaN otherwise, which isn't 0.
        return (shared - shared).sum().ne(0).float()

    def results(self, up_to: int) -> Iterator[StepResult]:
        """Yields the results of the steps before step `up_to` that haven't been read, in their order."""
        while self._waiting and self._waiting[0][0] < up_to:
            yield self._result(*self._waiting.popleft())

    def _result(self, step: int, rows: Rows) -> StepResult:
        own_loss, norm, scale, *shared = self._copies.read(step)
        loss, norms, requests = shared or (own_loss, norm, 0.0)
        is_finite = math.isfinite(loss) and math.isfinite(norms)
        return StepResult(step, rows, loss, own_loss, norm, is_finite, scale, int(requests))

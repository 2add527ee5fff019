"""`found_inf`: a flag on the device by which an optimiser leaves weights and state as they are.

torch's fused optimisers take it (they were given it for GradScaler), the others don't. `honour_found_inf` gives it to
all, so that the host needn't wait for a step's loss before it launches the update.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.models.undo import Undo


def set_found_inf(optimizers: list[torch.optim.Optimizer], found_inf: Tensor | None) -> None:
    """Sets what the next steps of the optimisers of `make_optimizers` heed.

    found_inf: float32 scalar on the parameters' device. 1.0: weights, state and step counters stay bit-equal, whatever
    the gradients hold. 0.0 or None: the step is taken; None costs nothing.
    """
    for optimizer in optimizers:
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]


def honour_found_inf(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Returns the optimiser, which from now on heeds its attribute `found_inf`."""
    set_found_inf([optimizer], None)
    if optimizer.defaults.get("fused"):
        optimizer.register_step_pre_hook(_fill_momentum)
    else:
        _TakesBack(optimizer)
    return optimizer


def _fill_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Gives a fused SGD buffers of zero before its first step: torch leaves its own unset if that step isn't taken."""
    if isinstance(optimizer, torch.optim.SGD) and optimizer.found_inf is not None:  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)


class _TakesBack:
    """Takes a step back after it, for an optimiser that doesn't know `found_inf`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._flag: Tensor | None = None
        self._undo = Undo(())
        self._known: set[int] = set()
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: Any, *_: Any) -> None:
        self._flag = optimizer.found_inf
        if self._flag is not None:
            optimizer.found_inf = None  # torch's optimisers that aren't fused refuse it
            moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            state = list(_state_of(optimizer))
            self._undo, self._known = Undo([*moved, *state]), {id(tensor) for tensor in state}

    def _after(self, optimizer: Any, *_: Any) -> None:
        if self._flag is not None:
            created = [tensor for tensor in _state_of(optimizer) if id(tensor) not in self._known]
            self._undo.undo_if(self._flag, created)
            optimizer.found_inf, self._undo = self._flag, Undo(())


def _state_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for values in optimizer.state.values():
        yield from (value for value in values.values() if isinstance(value, Tensor))

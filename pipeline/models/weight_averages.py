"""Averages of the weights over steps: an exponential one for evaluation, and Look-ahead, which training continues from.

Both average the running statistics of BatchNorm like weights. Integer buffers take no part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.models.undo import Undo


class WeightAverage:
    """Exponential moving average: average = decay average + (1 - decay) weights, every `every_steps` steps.

    It starts with the weights at construction. values: {name: tensor}, a part of the network's state_dict, kept in this
    form because checkpoints store it by name.
    """

    def __init__(self, net: nn.Module, decay: float, every_steps: int = 1) -> None:
        self._every_steps = every_steps
        self._average: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.values = {name: tensor.detach().clone() for name, tensor in _float_tensors(net)}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int, num_steps: int, found_inf: Tensor | None = None) -> None:
        """Updates the average after step number `step`, which counts from 1.

        found_inf: scalar on the device; 1: the step was skipped, and has no part in the average.
        """
        if step % self._every_steps == 0:
            current, average = dict(_float_tensors(net)), list(self.values.values())
            with _unless(found_inf, average):
                # Torch's function takes the number of updates and doesn't use it.
                self._average(average, [current[name] for name in self.values], step)


class LookAhead:
    """Look-ahead (Zhang et al., arXiv 1907.08610): slow weights that the trained, fast weights are set back to.

    Every `every_steps` steps: slow += (1 - decay) (fast - slow), then fast = slow. The decay grows with training as in
    Jordan's CIFAR-10 speed runs (arXiv 2404.00498): 0.95^5 (step / num_steps)^3. After the last step, fast = slow.
    """

    def __init__(self, net: nn.Module, every_steps: int = 5) -> None:
        self._every_steps = every_steps
        self.values = {name: tensor.detach().clone() for name, tensor in _float_tensors(net)}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int, num_steps: int, found_inf: Tensor | None = None) -> None:
        """Updates slow and fast weights, if it is time, after step number `step`, which counts from 1.

        found_inf: scalar on the device; 1: the step was skipped, and has no part in the slow weights; even then, the
        last step ends with fast = slow.
        """
        decays = [0.95**5 * (step / num_steps) ** 3] if step % self._every_steps == 0 else []
        if step == num_steps:
            decays.append(1.0)
        if decays:
            current = dict(_float_tensors(net))
            slow, fast = list(self.values.values()), [current[name] for name in self.values]
            with _unless(found_inf, [*slow, *fast]):
                for decay in decays:
                    torch._foreach_lerp_(slow, fast, 1 - decay)
                    torch._foreach_copy_(fast, slow)
            if step == num_steps:
                torch._foreach_copy_(fast, slow)


def _float_tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in net.state_dict().items() if tensor.is_floating_point())


@contextmanager
def _unless(found_inf: Tensor | None, tensors: list[Tensor]) -> Iterator[None]:
    """Takes back what its block does to the tensors where `found_inf` is 1."""
    undo = None if found_inf is None else Undo(tensors)
    yield
    if undo is not None and found_inf is not None:
        undo.undo_if(found_inf)

"""Averages of the weights over steps: an exponential one for evaluation, and Look-ahead, which training continues from.

Both average the running statistics of BatchNorm like weights. Integer buffers take no part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.models.device.sharding import own_part
from pipeline.models.undo import Undo


class WeightAverage:
    """Exponential moving average: average = decay average + (1 - decay) weights, every `every_steps` steps.

    It starts with the weights at construction. warmup_power: p of a decay that grows to `decay`, 1 - (1 + k)^-p after k
    updates, as that of timm's ModelEmaV3; 0 for a constant one. net: its tensors may be loaded anew, but not be
    replaced by others; they are looked up once. values: {name: tensor}, a part of the network's state_dict, kept in
    this form because checkpoints store it by name.
    """

    def __init__(self, net: nn.Module, decay: float, every_steps: int = 1, warmup_power: float = 0.0) -> None:
        self._every_steps, self._decay, self._power = every_steps, decay, warmup_power
        self.values, self._averages, self._current = _copies(net)

    @torch.no_grad()
    def update(self, step: int, num_steps: int, found_inf: Tensor | None = None) -> None:
        """Updates the average after step number `step`, which counts from 1.

        found_inf: scalar on the device; 1: the step was skipped, and has no part in the average.
        """
        if step % self._every_steps == 0:
            with _unless(found_inf, self._averages):
                # Torch's function takes the number of updates and doesn't use it.
                update: Callable[..., None] = get_ema_multi_avg_fn(self._decay_at(step))  # type: ignore[no-untyped-call]
                update(self._averages, self._current, step)

    def _decay_at(self, step: int) -> float:
        if not self._power:
            return self._decay
        return min(self._decay, 1 - (step // self._every_steps) ** -self._power)


class LookAhead:
    """Look-ahead (Zhang et al., arXiv 1907.08610): slow weights that the trained, fast weights are set back to.

    Every `every_steps` steps: slow += (1 - decay) (fast - slow), then fast = slow. The decay grows with training as in
    Jordan's CIFAR-10 speed runs (arXiv 2404.00498): 0.95^5 (step / num_steps)^3. After the last step, fast = slow.
    net, values: as of `WeightAverage`.
    """

    def __init__(self, net: nn.Module, every_steps: int = 5) -> None:
        self._every_steps = every_steps
        self.values, self._slow, self._fast = _copies(net)

    @torch.no_grad()
    def update(self, step: int, num_steps: int, found_inf: Tensor | None = None) -> None:
        """Updates slow and fast weights, if it is time, after step number `step`, which counts from 1.

        found_inf: scalar on the device; 1: the step was skipped, and has no part in the slow weights; even then, the
        last step ends with fast = slow.
        """
        decays = [0.95**5 * (step / num_steps) ** 3] if step % self._every_steps == 0 else []
        if step == num_steps:
            decays.append(1.0)
        if decays:
            slow, fast = self._slow, self._fast
            with _unless(found_inf, [*slow, *fast]):
                for decay in decays:
                    torch._foreach_lerp_(slow, fast, 1 - decay)
                    torch._foreach_copy_(fast, slow)
            if step == num_steps:
                torch._foreach_copy_(fast, slow)


def _copies(net: nn.Module) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Returns copies of the network's tensors of floating point, by name; the copies in this order, and the tensors.

    In the lists, those that are spread over ranks are this rank's parts.
    """
    # The parameters and buffers themselves: to look through the network at each update takes the host longer than
    # the update.
    tensors = {name: tensor for name, tensor in net.state_dict(keep_vars=True).items() if tensor.is_floating_point()}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return copies, [own_part(copy) for copy in copies.values()], [own_part(tensor) for tensor in tensors.values()]


@contextmanager
def _unless(found_inf: Tensor | None, tensors: list[Tensor]) -> Iterator[None]:
    """Takes back what its block does to the tensors where `found_inf` is 1."""
    undo = None if found_inf is None else Undo(tensors)
    yield
    if undo is not None and found_inf is not None:
        undo.undo_if(found_inf)

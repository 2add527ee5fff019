"""Averages of weights over steps: an exponential one that is evaluated, and Look-ahead, that training goes on from."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def _floats(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The trained weights and the running statistics, by name."""
    return ((name, tensor) for name, tensor in net.state_dict().items() if tensor.is_floating_point())


class WeightAverage:
    """a = decay a + (1 - decay) w, every `every_steps`: of weights and running statistics.

    values: {name: tensor}, as in the network's state_dict, without integers.
    """

    def __init__(self, net: nn.Module, decay: float, every_steps: int = 1) -> None:
        self._decay, self._every = decay, every_steps
        self.values = {name: tensor.detach().clone() for name, tensor in _floats(net)}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int, num_steps: int) -> None:
        """Called after step number `step`, which counts from 1."""
        if step % self._every == 0:
            for name, tensor in _floats(net):
                self.values[name].lerp_(tensor, 1 - self._decay)


class LookAhead:
    """Slow weights that the fast ones are set back to (Zhang et al., arXiv 1907.08610), as Jordan's speed runs do it.

    Every `every_steps`: slow += (1 - decay) (fast - slow), fast = slow, with decay = 0.95^5 (step / num_steps)^3, so
    that it pulls more and more; after the last step fast = slow. Running statistics take part.
    """

    def __init__(self, net: nn.Module, every_steps: int = 5) -> None:
        self._every = every_steps
        self.values = {name: tensor.detach().clone() for name, tensor in _floats(net)}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int, num_steps: int) -> None:
        """Called after step number `step`, which counts from 1."""
        decays = [0.95**5 * (step / num_steps) ** 3] if step % self._every == 0 else []
        for decay in [*decays, *([1.0] if step == num_steps else [])]:
            for name, tensor in _floats(net):
                self.values[name].lerp_(tensor, 1 - decay)
                tensor.copy_(self.values[name])
